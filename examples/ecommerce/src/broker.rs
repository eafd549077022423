//! Kafka: the topics, the broker that the shop opens with, and how a service connects to it.

use crate::{
    Result,
    delivery::{self, DeliveryStarted, StartDelivery},
    figures,
    inventory::{self, ReserveStock},
    notification,
    order::{self, OrderCreated},
    payment::{self, ChargePayment},
};
use saga_core::{
    participant::{Command, Event},
    transport::Transport,
};
use saga_kafka::{EmbeddedBroker, KafkaTransport, KafkaTransportBuilder, TopicSpec};
use std::sync::Arc;

/// How many nodes of a service can share its work over a real broker. Each partition is a lane of its own with transactions of its own: more of them than needed make more and smaller ones.
const NODES: i32 = 2;
/// How long a record waits for others to the same partition.
const LINGER_MS: &str = "20";
/// How long the embedded broker has to answer who finds nothing. It answers no sooner when something comes.
const FETCH_MS: &str = "50";
/// What the shop starts by itself, the embedded broker included, is one node a service.
const ONE: i32 = 1;

/// All topics, and who reads them.
fn topics(nodes: i32) -> [TopicSpec; 6] {
    [
        (ReserveStock::TOPIC, inventory::NAME),
        (ChargePayment::TOPIC, payment::NAME),
        (StartDelivery::TOPIC, delivery::NAME),
        ("order.replies", order::NAME),
        (OrderCreated::TOPIC, notification::NAME),
        (DeliveryStarted::TOPIC, notification::NAME),
    ]
    .map(|(topic, reader)| TopicSpec::new(topic).partitions(nodes).read_by(reader))
}

/// What the shop opens with.
pub enum Broker {
    /// In this process; it ends, and forgets everything, with us.
    Embedded(EmbeddedBroker),
    /// The one in `KAFKA_BROKERS`.
    Real(String),
}

impl Broker {
    pub async fn start() -> Result<Self> {
        Ok(match std::env::var("KAFKA_BROKERS") {
            Ok(brokers) => {
                ensure_topics(&KafkaTransport::new(&brokers)?, &brokers).await?;
                Self::Real(brokers)
            }
            Err(_) => Self::Embedded(EmbeddedBroker::start(&topics(ONE))?),
        })
    }

    /// Which broker is in use.
    pub fn in_use(&self) -> String {
        match self {
            Self::Embedded(broker) => format!("Kafka at {} (embedded, a mock in this process)", broker.brokers()),
            Self::Real(brokers) => format!("Kafka at {brokers} (the one in KAFKA_BROKERS)"),
        }
    }

    /// How a service in this process finds it.
    pub fn connection(&self) -> Connection {
        match self {
            Self::Embedded(broker) => Connection { brokers: broker.brokers().into(), embedded_broker: true },
            Self::Real(brokers) => Connection { brokers: brokers.clone(), embedded_broker: false },
        }
    }

    /// How a process of its own is told, see [`Connection`].
    pub fn arguments(&self) -> Vec<String> {
        match self {
            Self::Embedded(broker) => vec![format!("--brokers={}", broker.brokers()), "--embedded-broker".into()],
            Self::Real(brokers) => vec![format!("--brokers={brokers}")],
        }
    }
}

/// Whoever comes first creates them.
async fn ensure_topics(kafka: &KafkaTransport, brokers: &str) -> Result<()> {
    let ensured = kafka.ensure_topics(&topics(NODES)).await;
    Ok(ensured.map_err(|error| format!("the topics cannot be created at {brokers} (KAFKA_BROKERS): {error}"))?)
}

/// Where a service finds the broker.
#[derive(Debug, Clone, clap::Args)]
pub struct Connection {
    /// Kafka's addresses.
    #[arg(long, env = "KAFKA_BROKERS")]
    brokers: String,
    /// The broker is the one in the parent.
    #[arg(long, hide = true)]
    embedded_broker: bool,
}

impl Connection {
    /// For a service: it is in its figures, and so connected until the process ends.
    pub async fn transport(&self) -> Result<Arc<dyn Transport>> {
        let kafka = Arc::new(self.connect().await?);
        figures::of_kafka(&kafka);
        Ok(kafka)
    }

    pub async fn connect(&self) -> Result<KafkaTransport> {
        // Records that are written within the same moment travel together, and are dealt with together: at 200 orders a second that is a sixth less work for the shop than with 5 ms. An order takes
        // a third of a second for it instead of a tenth; it is taken as soon as before.
        let together = |builder: KafkaTransportBuilder| builder.set_producer("linger.ms", LINGER_MS);
        if self.embedded_broker {
            let builder = EmbeddedBroker::settings(&self.brokers, &topics(ONE));
            return Ok(together(builder).set_consumer("fetch.wait.max.ms", FETCH_MS).build()?);
        }
        // A process that was killed is missed after six seconds, the least that a broker allows.
        let builder = KafkaTransport::builder(&self.brokers).set_consumer("session.timeout.ms", "6000");
        let kafka = together(builder).build()?;
        ensure_topics(&kafka, &self.brokers).await?;
        Ok(kafka)
    }
}
