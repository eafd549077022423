//! How messages travel between services: what the engine, participants and the outbox's relay stand on.
//!
//! # The contract
//!
//! A transport has *topics*; a topic has partitions, and messages of one key go to one partition. Consumers of one *group* share the partitions of a
//! topic. An implementer guarantees:
//!
//! - **Durable publication.** [`publish`](Transport::publish) answers `Ok` for a message once it survives the death of every process, and never before. After
//!   [`PublishError::Unavailable`], or when the call is dropped, it may be there or not, now or later: publishing it again, under the same id, is right. After
//!   [`PublishError::Refused`] it is not there and never will be.
//! - **Order per key.** Messages of one key are delivered for the first time in the order in which they were handed over, within one call and between calls of which
//!   the second began after the first had ended. When one message of a call is not accepted, no later one of the same key in that call is delivered before a repeat of it; a refused message is skipped.
//! - **At least once.** A message is delivered until a receiver has answered for it, also after the death of the consumer. What was published before a group's first
//!   consumer came is delivered to it.
//! - **Batches in order.** A [`Receiver`] gets batches of one partition, in its order, one batch at a time; partitions do not wait for each other.
//! - **Back-pressure.** What a receiver has not taken yet waits at the broker, save a bounded number.
//! - **A failing receiver** ([`Unavailable`]) is given the same messages again, after a pause, for as long as it takes. Other partitions go on, and a consumer that
//!   is to stop does not wait for it.
//! - **A receiver that panics**, or gives a wrong number of verdicts, is unavailable at first. When it does so again, its messages are given to it one by one, and the culprit
//!   counts as rejected, with what the panic said as the reason.
//! - **A rejected message** ([`Verdict::DeadLetter`]) goes to the topic's dead letters with its headers, its payload (cut to fit if it must be) and the reason, and only
//!   then counts as dealt with. So does a record that is no message at all. Nothing in a record stops its partition.
//! - **Hand-over.** [`Consumer::stop`] lets the batch under way end, keeps its progress, and gives the partitions to the group's other consumers. Their messages
//!   are never handled by two consumers in the same order of events; a repeat at a change of hands is allowed.
//!
//! The module `testing::transport`, behind the feature `testing`, checks all of this for any implementation.

mod delivery;
mod local;

pub use delivery::deliver;
pub use local::LocalTransport;

use crate::message::Message;
use async_trait::async_trait;
use std::sync::Arc;

/// The way to other services. What an implementer guarantees is said in [the module's docs](self).
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Publishes messages, each to a topic. Answers one by one, in the batch's order.
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>>;

    /// Begins to consume topics, as one of the consumers of a group.
    ///
    /// # Errors
    /// When the topics do not exist, or nobody can be asked.
    async fn subscribe(
        &self,
        subscription: Subscription,
        receiver: Arc<dyn Receiver>,
    ) -> Result<Box<dyn Consumer>, TransportError>;

    /// Whether the dead letters of a topic can be published at present, as far as the broker says. A receiver that cannot
    /// publish what it is to publish asks before it rejects messages because of that: if it is the whole broker that is
    /// away, they wait. The default does not know, and says no.
    async fn takes_dead_letters(&self, _topic: &str) -> bool {
        false
    }

    /// What it is, as OpenTelemetry's `messaging.system` has it: `kafka`.
    fn system(&self) -> &'static str;

    /// How many bytes a message may have in all. What is larger is refused.
    fn max_message_bytes(&self) -> usize;
}

/// A message and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The topic.
    pub topic: String,
    /// The message.
    pub message: Message,
}

/// What to consume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The consumers that share the topics.
    pub group: String,
    /// The topics.
    pub topics: Vec<String>,
    /// How many messages a batch has at most. Heavy ones come in [smaller ones](deliver).
    pub batch: usize,
}

/// Handles what a consumer gets.
#[async_trait]
pub trait Receiver: Send + Sync + 'static {
    /// Handles messages of one partition, in their order. Answers one by one, in the batch's order, once what they caused is durable.
    ///
    /// # Errors
    /// When nothing can be handled at present, because a database is down: the same batch comes again.
    async fn receive(&self, batch: &[Message]) -> Result<Vec<Verdict>, Unavailable>;
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is dealt with.
    Done,
    /// It cannot be handled, now or ever: this is why.
    DeadLetter(String),
}

/// A receiver cannot handle anything at present.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing can be handled at present: {0}")]
pub struct Unavailable(pub String);

/// A running consumer. Dropped without [`stop`](Self::stop) it ends as if its process had died.
#[async_trait]
pub trait Consumer: Send + Sync {
    /// Lets what is under way end, keeps its progress, and hands over.
    async fn stop(self: Box<Self>);
}

/// Why a message was not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The broker could not be reached or did not answer: *it may have been published*.
    #[error("the broker is unavailable, and whether the message was published is not known: {0}")]
    Unavailable(String),
    /// The broker will never take it: it was not published.
    #[error("the broker refused the message: {0}")]
    Refused(String),
}

/// Why a transport cannot be used as it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TransportError(pub String);
