//! Commands, replies and events of `saga-core` over Apache Kafka.
//!
//! ```no_run
//! use saga_core::Engine;
//! use saga_kafka::{KafkaTransport, TopicSpec};
//! use std::sync::Arc;
//! # async fn run<OrderSaga: saga_core::Saga<Deps = ()>>(store: saga_core::MemoryStore) -> Result<(), Box<dyn std::error::Error>> {
//! let kafka = KafkaTransport::new("kafka-1:9092,kafka-2:9092")?;
//! kafka.ensure_topics(&[TopicSpec::new("shop.replies")]).await?; // in development; in production `check_topics`
//! let engine = Engine::builder(store).transport("shop", Arc::new(kafka)).register::<OrderSaga>(())?.start().await?;
//! # Ok(()) }
//! ```
//!
//! Messages are [CloudEvents 1.0](https://github.com/cloudevents/spec) in the binary mode of their Kafka binding, so that a participant can be written in any language.
//!
//! # What it promises
//!
//! What every [transport](saga_core::transport) does:
//!
//! - **Out**: an idempotent producer with `acks=all`. A message counts as published when all in-sync replicas have it. Nothing times out inside the client, so messages of one key keep
//!   their order through every outage, however long.
//! - **In**: an offset is committed after its message was dealt with, so after the database transaction and the reply. Offsets only save work; it is the inbox that makes a repeat harmless.
//! - **Rebalances** are cooperative: the batch under way ends, its offset is committed, and then the partition goes to its next owner.
//! - **Back-pressure**: at most some thousand records of a partition wait in a process; then it is paused at the broker.
//! - **Dead letters**: a record that cannot be handled goes to `<topic>.dlt`, with its key, its headers, its value (cut if it must be), and the reason. The broker has it before the offset passes.
//!
//! # Settings
//!
//! Every property of [librdkafka](https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md) can be [set](KafkaTransportBuilder::set), save those that a promise stands on. TLS and SASL:
//!
//! ```no_run
//! # use saga_kafka::KafkaTransport;
//! let kafka = KafkaTransport::builder("kafka.example:9093")
//!     .set("security.protocol", "SASL_SSL")
//!     .set("ssl.ca.location", "/etc/kafka/ca.pem")
//!     .set("sasl.mechanism", "SCRAM-SHA-512")
//!     .set("sasl.username", "shop")
//!     .set("sasl.password", std::env::var("KAFKA_PASSWORD").unwrap_or_default())
//!     .build();
//! ```
//!
//! They need a librdkafka with OpenSSL: add `rdkafka = { version = "0.39", features = ["ssl"] }` to your own dependencies (`gssapi` for Kerberos, `zstd` for that compression). Cargo builds one
//! librdkafka with the features of all.
//!
//! For fewer and larger requests under load, set `linger.ms` (0 here, so that a saga alone is fast) to something between 1 and 20, and `compression.type`.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod binding;
mod consumer;
mod dead_letters;
mod embedded;
mod guard;
mod lane;
mod metrics;
mod producer;
mod publisher;
mod room;
mod settings;
mod topics;
mod transport;

pub use embedded::{Cluster, EmbeddedBroker};
pub use metrics::{KafkaMetrics, TopicPartition};
pub use settings::SettingError;
pub use topics::TopicSpec;
pub use transport::{KafkaTransport, KafkaTransportBuilder};
