use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// The identity of one saga: a UUIDv7 (RFC 9562), so that ids sort by the time of their start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SagaId(Uuid);

impl SagaId {
    /// A new id that sorts after those made before it in this process.
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id as a plain UUID, as stores keep it.
    pub const fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl From<Uuid> for SagaId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl FromStr for SagaId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl fmt::Display for SagaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The identity of one worker between two losses of its lease.
///
/// A worker that was declared dead never comes back under the same id: it joins again under a new one, so
/// that nothing it had sent before can be taken for something it sends now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(Uuid);

impl WorkerId {
    /// A new id.
    pub fn generate() -> Self {
        Self(Uuid::new_v4())
    }

    /// The id as a plain UUID, as stores keep it.
    pub const fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl From<Uuid> for WorkerId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
