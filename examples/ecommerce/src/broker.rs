//! Kafka: the topics, the broker that the shop opens with, and how a service connects to it.

use crate::{
    Result, delivery, delivery::StartDelivery, inventory, inventory::ReserveStock, order, payment,
    payment::ChargePayment,
};
use saga_core::{participant::Command, transport::Transport};
use saga_kafka::{EmbeddedBroker, KafkaTransport, TopicSpec};
use std::sync::Arc;

/// How the order saga talks to the other services.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Way {
    Http,
    Kafka,
}

/// All topics, and who reads them.
pub fn topics() -> [TopicSpec; 4] {
    [
        TopicSpec::new(ReserveStock::TOPIC).read_by(inventory::NAME),
        TopicSpec::new(ChargePayment::TOPIC).read_by(payment::NAME),
        TopicSpec::new(StartDelivery::TOPIC).read_by(delivery::NAME),
        TopicSpec::new("order.replies").read_by(order::NAME),
    ]
}

/// What the shop opens with.
pub enum Broker {
    /// None: services talk over HTTP.
    None,
    /// In this process; it ends, and forgets everything, with us.
    Embedded(EmbeddedBroker),
    /// The one in `KAFKA_BROKERS`.
    Real(String),
}

impl Broker {
    pub async fn start(way: Way) -> Result<Self> {
        Ok(match (way, std::env::var("KAFKA_BROKERS")) {
            (Way::Http, _) => Self::None,
            (Way::Kafka, Ok(brokers)) => {
                KafkaTransport::new(&brokers)?.ensure_topics(&topics()).await?;
                Self::Real(brokers)
            }
            (Way::Kafka, Err(_)) => Self::Embedded(EmbeddedBroker::start(&topics())?),
        })
    }

    /// Which broker is in use.
    pub fn in_use(&self) -> String {
        match self {
            Self::None => "no broker: commands go over HTTP".into(),
            Self::Embedded(broker) => format!("Kafka at {} (embedded, a mock in this process)", broker.brokers()),
            Self::Real(brokers) => format!("Kafka at {brokers} (the one in KAFKA_BROKERS)"),
        }
    }

    /// What a service is told, see [`Connection`].
    pub fn arguments(&self) -> Vec<String> {
        match self {
            Self::None => vec![],
            Self::Embedded(broker) => vec![format!("--brokers={}", broker.brokers()), "--embedded-broker".into()],
            Self::Real(brokers) => vec![format!("--brokers={brokers}")],
        }
    }
}

/// Where a service finds the broker.
#[derive(Debug, clap::Args)]
pub struct Connection {
    /// Kafka's addresses; without them the service is there over HTTP alone.
    #[arg(long)]
    brokers: Option<String>,
    /// The broker is the one in the parent.
    #[arg(long, hide = true, requires = "brokers")]
    embedded_broker: bool,
}

impl Connection {
    pub fn transport(&self) -> Result<Option<Arc<dyn Transport>>> {
        let Some(brokers) = &self.brokers else { return Ok(None) };
        let kafka = match self.embedded_broker {
            true => EmbeddedBroker::settings(brokers, &topics()),
            // A process that was killed is missed after six seconds, the least that a broker allows.
            false => KafkaTransport::builder(brokers).set_consumer("session.timeout.ms", "6000"),
        };
        Ok(Some(Arc::new(kafka.build()?)))
    }
}
