//! The transport over the embedded broker: what the conformance suite does not ask.

use async_trait::async_trait;
use saga_core::{
    Encoded,
    message::Message,
    transport::{Outgoing, Receiver, Subscription, Transport, Unavailable, Verdict},
};
use saga_kafka::{EmbeddedBroker, KafkaTransport, TopicSpec};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::timeout};

const PATIENCE: Duration = Duration::from_secs(60);

struct Into(mpsc::UnboundedSender<Message>);

#[async_trait]
impl Receiver for Into {
    async fn receive(&self, batch: &[Message]) -> Result<Vec<Verdict>, Unavailable> {
        batch.iter().for_each(|message| drop(self.0.send(message.clone())));
        Ok(vec![Verdict::Done; batch.len()])
    }
}

fn event(topic: &str, key: &str, n: u32) -> Outgoing {
    Outgoing { topic: topic.into(), message: Message::event("test", "tested.v1", key, &Encoded::of(&n).unwrap()) }
}

fn subscription(topic: &str) -> Subscription {
    Subscription { group: "readers".into(), topics: vec![topic.into()], batch: 10 }
}

fn start(topic: &str) -> (EmbeddedBroker, KafkaTransport) {
    let topics = [TopicSpec::new(topic).read_by("readers")];
    let broker = EmbeddedBroker::start(&topics).unwrap();
    let kafka = EmbeddedBroker::settings(broker.brokers(), &topics).build().unwrap();
    (broker, kafka)
}

#[tokio::test]
async fn what_is_published_arrives() {
    let (_broker, kafka) = start("t");
    let sent: Vec<Outgoing> = (0..100).map(|n| event("t", &format!("k{}", n % 7), n)).collect();
    assert_eq!(kafka.publish(&sent).await, vec![Ok(()); 100]);
    let (into, mut received) = mpsc::unbounded_channel();
    let consumer = kafka.subscribe(subscription("t"), Arc::new(Into(into))).await.unwrap();
    let mut messages = vec![];
    for _ in 0..100 {
        messages.push(timeout(PATIENCE, received.recv()).await.unwrap().unwrap());
    }
    for key in 0..7 {
        let of_key = |message: &&Message| message.key == format!("k{key}");
        let expected: Vec<&Message> = sent.iter().map(|outgoing| &outgoing.message).filter(of_key).collect();
        assert_eq!(messages.iter().filter(of_key).collect::<Vec<_>>(), expected);
    }
    consumer.stop().await;
}
