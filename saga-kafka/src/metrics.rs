//! What a transport counts.

use rdkafka::Statistics;
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// A transport's figures at one moment: counters since its start, and what librdkafka's statistics said last (every `statistics.interval.ms`, by default 5 seconds).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KafkaMetrics {
    /// Messages that the broker acknowledged.
    pub published: u64,
    /// Messages that it did not take, or not in time.
    pub not_published: u64,
    /// Requests that the producer made again.
    pub retries: u64,
    /// Messages that wait in the producer or are on their way, without an acknowledgement.
    pub in_flight: u64,
    /// Records that consumers of this transport have dealt with.
    pub consumed: u64,
    /// Of these, how many went to the dead letters.
    pub dead_letters: u64,
    /// Of each partition that a consumer of this transport has: how many records its group has not committed.
    pub lag: BTreeMap<TopicPartition, u64>,
}

/// A partition as a group sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// The partition's number.
    pub partition: i32,
}

#[derive(Default)]
pub(crate) struct Metrics {
    published: AtomicU64,
    not_published: AtomicU64,
    retries: AtomicU64,
    in_flight: AtomicU64,
    consumed: AtomicU64,
    dead_letters: AtomicU64,
    lag: Mutex<BTreeMap<TopicPartition, u64>>,
}

impl Metrics {
    pub(crate) fn published(&self) {
        self.published.fetch_add(1, Relaxed);
    }

    pub(crate) fn not_published(&self) {
        self.not_published.fetch_add(1, Relaxed);
    }

    pub(crate) fn consumed(&self, records: u64, dead_letters: u64) {
        self.consumed.fetch_add(records, Relaxed);
        self.dead_letters.fetch_add(dead_letters, Relaxed);
    }

    pub(crate) fn producer(&self, statistics: &Statistics) {
        let retries: u64 = statistics.brokers.values().map(|broker| broker.txretries).sum();
        self.retries.store(retries, Relaxed);
        self.in_flight.store(statistics.msg_cnt, Relaxed);
    }

    pub(crate) fn consumer(&self, group: &str, statistics: &Statistics) {
        let mut lag = self.lag.lock().unwrap_or_else(PoisonError::into_inner);
        lag.retain(|partition, _| partition.group != group);
        for topic in statistics.topics.values() {
            for (&partition, figures) in &topic.partitions {
                // Below zero: not known, or not ours.
                if let Ok(behind) = u64::try_from(figures.consumer_lag) {
                    lag.insert(TopicPartition { group: group.into(), topic: topic.topic.clone(), partition }, behind);
                }
            }
        }
    }

    pub(crate) fn gone(&self, group: &str) {
        self.lag.lock().unwrap_or_else(PoisonError::into_inner).retain(|partition, _| partition.group != group);
    }

    pub(crate) fn snapshot(&self) -> KafkaMetrics {
        KafkaMetrics {
            published: self.published.load(Relaxed),
            not_published: self.not_published.load(Relaxed),
            retries: self.retries.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            consumed: self.consumed.load(Relaxed),
            dead_letters: self.dead_letters.load(Relaxed),
            lag: self.lag.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
