//! What a relay counts.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The upper bounds of the buckets, in microseconds; what is above the last has a bucket of its own.
const BOUNDS: [u64; 21] = [
    500,
    1_000,
    2_000,
    3_000,
    5_000,
    7_500,
    10_000,
    15_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    600_000_000,
    3_600_000_000,
];

/// What a relay has done since its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// How many events the broker acknowledged to it. A repeat counts again.
    pub published: u64,
    /// How many it parked because the broker refused them.
    pub refused: u64,
    /// How often the broker was not available for some or all events of a topic that were sent to it.
    pub unavailable: u64,
    /// How long events took from the insert to the broker's answer: the rest of their transaction is a part of it.
    pub latency: Latency,
}

/// A histogram of durations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latency {
    counts: [u64; BOUNDS.len() + 1],
}

impl Latency {
    /// The buckets: the upper bound of each, and how many durations are in it. The last has no bound.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        let bounds = BOUNDS.iter().map(|bound| Some(Duration::from_micros(*bound)));
        bounds.chain([None]).zip(self.counts)
    }

    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// A duration that so large a share of them did not exceed, as precisely as the buckets tell: `at(0.99)`. `None` if there are none, or if it
    /// is beyond an hour.
    pub fn at(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        let mut below = 0;
        let bucket = |(_, in_bucket): &(Option<Duration>, u64)| {
            below += in_bucket;
            below as f64 >= count as f64 * share
        };
        self.buckets().find(bucket).filter(|_| count > 0).and_then(|(bound, _)| bound)
    }
}

#[derive(Debug)]
pub(super) struct Counters {
    published: AtomicU64,
    refused: AtomicU64,
    unavailable: AtomicU64,
    latency: [AtomicU64; BOUNDS.len() + 1],
}

impl Default for Counters {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self { published: zero(), refused: zero(), unavailable: zero(), latency: array::from_fn(|_| zero()) }
    }
}

impl Counters {
    pub(super) fn published(&self, latency: Duration) {
        let bucket = BOUNDS.partition_point(|bound| Duration::from_micros(*bound) < latency);
        self.latency[bucket].fetch_add(1, Ordering::Relaxed);
        self.published.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn unavailable(&self) {
        self.unavailable.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Numbers {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Numbers {
            published: read(&self.published),
            refused: read(&self.refused),
            unavailable: read(&self.unavailable),
            latency: Latency { counts: array::from_fn(|bucket| read(&self.latency[bucket])) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_durations_is_found_in_its_bucket() {
        let counters = Counters::default();
        assert_eq!(counters.read().latency.at(0.5), None);
        (0..99).for_each(|_| counters.published(Duration::from_micros(1_500)));
        counters.published(Duration::from_secs(7200));
        let latency = counters.read().latency;
        assert_eq!(latency.count(), 100);
        assert_eq!(latency.at(0.5), Some(Duration::from_millis(2)));
        assert_eq!(latency.at(0.99), Some(Duration::from_millis(2)));
        assert_eq!(latency.at(1.0), None);
        assert_eq!(latency.buckets().last(), Some((None, 1)));
    }
}
