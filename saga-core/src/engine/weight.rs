//! What is in memory, and what is under way to the store, is bounded by its weight as well as by its number.
//!
//! Sagas in memory weigh what was read of them, and the outputs and commands that they have made since. While they weigh
//! more than [`Config::memory`](super::Config::memory), none is claimed and none begins here; those that are here go on,
//! and become lighter only by leaving. What is written passes a narrow gate if it is heavy, so that what is light is never
//! behind more than a little.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Weighs what is in memory.
#[derive(Debug)]
pub(crate) struct Scales {
    most: usize,
    used: AtomicUsize,
    lighter: Notify,
}

impl Scales {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, used: AtomicUsize::new(0), lighter: Notify::new() }
    }

    /// How many bytes there is room for.
    pub(crate) fn left(&self) -> usize {
        self.most.saturating_sub(self.used.load(Ordering::Acquire))
    }

    /// Waits for room. For one caller at a time.
    pub(crate) async fn room(&self) {
        while self.left() == 0 {
            self.lighter.notified().await;
        }
    }
}

/// One saga on the scales, until it is dropped.
#[derive(Debug)]
pub(crate) struct Weight {
    scales: Arc<Scales>,
    bytes: usize,
}

impl Weight {
    pub(crate) const fn none(scales: Arc<Scales>) -> Self {
        Self { scales, bytes: 0 }
    }

    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.scales.used.fetch_add(bytes, Ordering::AcqRel);
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.scales.used.fetch_sub(self.bytes, Ordering::AcqRel);
        self.scales.lighter.notify_one();
    }
}

/// What has so many bytes, or more, is heavy.
pub(crate) const HEAVY: usize = 4 << 10;
/// So many bytes of heavy things are under way at once, or one thing alone.
const UNDER_WAY: usize = 4 << 20;
/// What one permit stands for.
const UNIT: usize = 1 << 10;

/// The turn of something heavy, for as long as it is kept.
pub(crate) type Turn = Option<OwnedSemaphorePermit>;

/// Lets so much pass at a time; what is light passes at once.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<Semaphore>);

impl Gate {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(UNDER_WAY / UNIT)))
    }

    /// Waits for its turn, which lasts until what is returned is dropped.
    pub(crate) async fn pass(&self, bytes: usize) -> Turn {
        if bytes < HEAVY {
            return None;
        }
        let permits = u32::try_from(bytes.min(UNDER_WAY) / UNIT).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        self.0.clone().acquire_many_owned(permits).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn there_is_room_again_when_a_saga_has_gone() {
        let scales = Arc::new(Scales::new(10));
        let mut one = Weight::none(scales.clone());
        one.add(4);
        assert_eq!((scales.left(), scales.room().now_or_never()), (6, Some(())));
        let mut other = Weight::none(scales.clone());
        other.add(20);
        assert_eq!(scales.room().now_or_never(), None, "what is here may weigh more");
        drop(one);
        assert_eq!(scales.room().now_or_never(), None);
        drop(other);
        assert_eq!((scales.left(), scales.room().now_or_never()), (10, Some(())));
    }

    #[tokio::test]
    async fn what_is_light_passes_what_is_heavy() {
        let gate = Gate::new();
        let whole = gate.pass(100 * UNDER_WAY).await;
        assert!(whole.is_some());
        assert!(gate.pass(HEAVY).now_or_never().is_none(), "nothing heavy beside it");
        assert!(gate.pass(HEAVY - 1).now_or_never().is_some());
        drop(whole);
        assert!(gate.pass(HEAVY).now_or_never().is_some());
    }
}
