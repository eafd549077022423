//! The transport over Kafka keeps every promise of a transport, on the embedded broker and on a real one.

mod common;

use async_trait::async_trait;
use common::RealBroker;
use rdkafka::{
    ClientConfig,
    producer::{FutureProducer, FutureRecord},
};
use saga_core::{testing::transport, testing::transport::Broker, transport::Transport};
use saga_kafka::{EmbeddedBroker, KafkaTransport, KafkaTransportBuilder, TopicSpec};
use std::{sync::Arc, time::Duration};

struct Embedded(EmbeddedBroker);

#[async_trait]
impl Broker for Embedded {
    async fn node(&self) -> Arc<dyn Transport> {
        Arc::new(node(EmbeddedBroker::settings(self.0.brokers(), &[])))
    }

    async fn topic(&self, name: &str) {
        // One that is there already, because it is for dead letters, gets a topic for its own.
        let missing = if name.ends_with(".dlt") { format!("{name}.dlt") } else { name.into() };
        let spec = TopicSpec::new(&missing);
        let spec = if name.ends_with(".dlt") { spec.without_dead_letters() } else { spec };
        self.0.create_topics(&[spec]).unwrap();
    }

    async fn rubbish(&self, topic: &str) -> bool {
        rubbish(self.0.brokers(), topic).await
    }
}

struct Real(RealBroker);

#[async_trait]
impl Broker for Real {
    async fn node(&self) -> Arc<dyn Transport> {
        Arc::new(node(KafkaTransport::builder(&self.0.brokers).set_consumer("session.timeout.ms", "6000")))
    }

    async fn topic(&self, name: &str) {
        KafkaTransport::new(&self.0.brokers).unwrap().ensure_topics(&[TopicSpec::new(name)]).await.unwrap();
    }

    async fn rubbish(&self, topic: &str) -> bool {
        rubbish(&self.0.brokers, topic).await
    }
}

fn node(settings: KafkaTransportBuilder) -> KafkaTransport {
    settings.build().unwrap()
}

async fn rubbish(brokers: &str, topic: &str) -> bool {
    let producer: FutureProducer = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    for partition in 0..4 {
        let record = FutureRecord::<(), _>::to(topic).partition(partition).payload(&[0xff_u8, 0][..]);
        producer.send(record, Duration::from_secs(30)).await.unwrap();
    }
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_conforms_on_the_embedded_broker() {
    transport::conformance(&Embedded(EmbeddedBroker::start(&[]).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_conforms_on_a_real_broker() {
    transport::conformance(&Real(RealBroker::start())).await;
}
