use crate::{SetupError, error::told};
use saga_core::CodecError;

/// Something that the outbox does not do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// The event is larger than any that the broker is to get.
    #[error(
        "`{kind}` for key `{key}` has {bytes} bytes in all, the limit is {limit}: put the bulk elsewhere and send a reference to it, or raise the limit here \
         and at the broker"
    )]
    TooLarge {
        /// Its type.
        kind: String,
        /// Its key.
        key: String,
        /// How large it is.
        bytes: usize,
        /// How large it may be.
        limit: usize,
    },
    /// The key or the topic is too long to be looked up.
    #[error(
        "topic `{topic}` and key `{key}` have {bytes} bytes in all, the limit is {limit}: send the hash of a key that long"
    )]
    KeyTooLong {
        /// The topic.
        topic: String,
        /// The key.
        key: String,
        /// How long they are.
        bytes: usize,
        /// How long they may be.
        limit: usize,
    },
    /// The outbox lets events through that the transport does not take.
    #[error(
        "the outbox takes events of up to {outbox} bytes, but the transport of up to {transport}: lower `PgOutboxOptions::max_message_bytes`, or raise \
         the transport's limit"
    )]
    Limits {
        /// The outbox's limit.
        outbox: usize,
        /// The transport's limit.
        transport: usize,
    },
    /// The message's id is no UUID.
    #[error("`{0}` cannot be the id of a message in the outbox: it has to be a UUID")]
    Id(String),
    /// The event cannot be written as JSON.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The outbox cannot be used as it is set up.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// Postgres said no, or nothing.
    #[error("Postgres: {reason}")]
    Postgres {
        /// What it said, with the code of the error.
        reason: String,
        /// The error as it came.
        source: sqlx::Error,
    },
}

impl From<sqlx::Error> for OutboxError {
    fn from(error: sqlx::Error) -> Self {
        Self::Postgres { reason: told(&error), source: error }
    }
}
