//! A member of a group: a thread that polls, and a [`Lane`] for each partition that it has.
//!
//! - *Offsets* are committed behind what the lanes have dealt with, ten times a second, and at every change of hands. They only save work: what was dealt with and not committed comes again.
//! - *Back-pressure*: a partition with many records, or bytes, in its lane is paused at the broker until the lane has caught up.
//! - *Hand-over*: before a partition is given up, its lane ends the batch under way, and its offset is committed. A lane that takes too long is broken off,
//!   because the whole group waits; what it was doing comes again elsewhere. A partition that was *lost* (the group believes this member dead) is broken
//!   off at once, and nothing of it is committed.
//! - A member that breaks for good (a *fatal* error) is replaced by a new one.

use crate::{
    lane::{Lane, Works},
    metrics::Metrics,
    settings::Settings,
};
use async_trait::async_trait;
use rdkafka::{
    ClientContext, Message as _, Offset, Statistics, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance},
    error::{KafkaError, KafkaResult},
    message::BorrowedMessage,
};
use saga_core::transport::{Consumer, TransportError};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::oneshot, time::timeout};

/// How long a poll waits for a record: also the time between two looks at the lanes.
const POLL: Duration = Duration::from_millis(50);
/// The same while a partition is paused.
const POLL_PAUSED: Duration = Duration::from_millis(5);
const BETWEEN_COMMITS: Duration = Duration::from_millis(100);
/// How long a batch under way may hold up a change of hands.
const HAND_OVER: Duration = Duration::from_secs(30);
const LAST_COMMITS: u32 = 3;
/// How long the last commit, and the leaving, may hold up whoever stops a consumer.
const LAST_WORD: Duration = Duration::from_secs(5);
const BEFORE_REPLACING: Duration = Duration::from_secs(1);

pub(crate) struct Member {
    settings: Arc<Settings>,
    group: String,
    topics: Vec<String>,
    works: Arc<Works>,
    metrics: Arc<Metrics>,
    command: Arc<AtomicU8>,
}

const RUN: u8 = 0;
const STOP: u8 = 1;
const DIE: u8 = 2;

/// Lets go of its thread when it is dropped, as if the process had died.
struct Running {
    command: Arc<AtomicU8>,
    works: Arc<Works>,
    ended: Option<oneshot::Receiver<()>>,
}

#[async_trait]
impl Consumer for Running {
    async fn stop(mut self: Box<Self>) {
        self.command.store(STOP, Ordering::Release);
        // The thread may be held up by a broker that does not answer: the lanes end all the same.
        self.works.stop.cancel();
        self.works.lanes.close();
        if timeout(HAND_OVER, self.works.lanes.wait()).await.is_err() {
            tracing::warn!("a batch did not end in time: it is broken off, and comes again elsewhere");
            self.works.dead.cancel();
        }
        if let Some(ended) = self.ended.take()
            && timeout(LAST_WORD, ended).await.is_err()
        {
            tracing::warn!("the broker does not answer: partitions are given up without their last offset");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.command.compare_exchange(RUN, DIE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.works.dead.cancel();
        }
    }
}

impl Member {
    pub(crate) fn new(
        settings: Arc<Settings>,
        group: String,
        topics: Vec<String>,
        works: Works,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { settings, group, topics, works: Arc::new(works), metrics, command: Arc::new(AtomicU8::new(RUN)) }
    }

    /// Joins the group.
    pub(crate) fn start(self) -> Result<Box<dyn Consumer>, TransportError> {
        let consumer = self.join().map_err(|error| TransportError(error.to_string()))?;
        let (end, ended) = oneshot::channel();
        let (command, works) = (self.command.clone(), self.works.clone());
        let thread = std::thread::Builder::new().name(format!("kafka {}", self.group));
        thread
            .spawn(move || {
                self.run(consumer);
                let _ = end.send(());
            })
            .map_err(|error| TransportError(error.to_string()))?;
        Ok(Box::new(Running { command, works, ended: Some(ended) }))
    }

    fn join(&self) -> KafkaResult<BaseConsumer<Hands>> {
        let hands = Hands {
            group: self.group.clone(),
            works: self.works.clone(),
            metrics: self.metrics.clone(),
            command: self.command.clone(),
            lanes: Mutex::default(),
        };
        let consumer = BaseConsumer::from_config_and_context(&self.settings.consumer(&self.group), hands)?;
        consumer.subscribe(&self.topics.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(consumer)
    }

    fn run(&self, mut consumer: BaseConsumer<Hands>) {
        loop {
            match self.poll(&consumer) {
                None => break,
                Some(reason) => tracing::error!(self.group, reason, "a consumer broke, and is replaced"),
            }
            consumer.context().end(true);
            drop(consumer);
            consumer = loop {
                std::thread::sleep(BEFORE_REPLACING);
                if self.command.load(Ordering::Acquire) != RUN {
                    return;
                }
                match self.join() {
                    Ok(consumer) => break consumer,
                    Err(error) => tracing::error!(self.group, %error, "there is no new consumer yet"),
                }
            };
        }
        let stopped = self.command.load(Ordering::Acquire) == STOP;
        consumer.context().end(!stopped);
        let lanes = std::mem::take(&mut *consumer.context().lanes());
        if stopped {
            consumer.context().commit_last(&consumer, &lanes);
        }
        // Leaves the group.
        drop(consumer);
        self.metrics.gone(&self.group);
    }

    /// Polls until told to end, or, with a reason, until the client broke.
    fn poll(&self, consumer: &BaseConsumer<Hands>) -> Option<String> {
        let hands = consumer.context();
        let mut committed = Instant::now();
        while self.command.load(Ordering::Acquire) == RUN {
            let paused = hands.lanes().values().any(|lane| lane.paused);
            match consumer.poll(if paused { POLL_PAUSED } else { POLL }) {
                Some(Ok(record)) => hands.take(consumer, &record),
                Some(Err(KafkaError::MessageConsumptionFatal(code))) => return Some(code.to_string()),
                // The client goes on by itself.
                Some(Err(error)) => tracing::warn!(self.group, %error, "the consumer met an error"),
                None => {}
            }
            if let Some((_, reason)) = consumer.client().fatal_error() {
                return Some(reason);
            }
            if paused {
                hands.go_on(consumer);
            }
            if committed.elapsed() >= BETWEEN_COMMITS && self.works.progress.swap(false, Ordering::AcqRel) {
                let done = hands.commit(consumer, hands.lanes().iter());
                self.works.progress.fetch_or(!done, Ordering::AcqRel);
                committed = Instant::now();
            }
        }
        None
    }
}

/// Topic and partition.
type Place = (String, i32);
type Lanes = HashMap<Place, Lane>;

/// The partitions that a member has.
struct Hands {
    group: String,
    works: Arc<Works>,
    metrics: Arc<Metrics>,
    command: Arc<AtomicU8>,
    /// Only the polling thread takes this lock.
    lanes: Mutex<Lanes>,
}

impl Hands {
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, consumer: &BaseConsumer<Self>, record: &BorrowedMessage<'_>) {
        let place = (record.topic().to_owned(), record.partition());
        let mut lanes = self.lanes();
        let lane = lanes.entry(place).or_insert_with(|| Lane::start(self.works.clone()));
        lane.push(record.detach());
        if !lane.paused && lane.has_much() {
            match consumer.pause(&list([(record.topic(), record.partition())])) {
                Ok(()) => lane.paused = true,
                Err(error) => tracing::warn!(self.group, %error, "a partition could not be paused"),
            }
        }
    }

    /// Resumes what has caught up.
    fn go_on(&self, consumer: &BaseConsumer<Self>) {
        for ((topic, partition), lane) in self.lanes().iter_mut().filter(|(_, lane)| lane.paused && lane.has_little()) {
            match consumer.resume(&list([(topic.as_str(), *partition)])) {
                Ok(()) => lane.paused = false,
                Err(error) => tracing::warn!(self.group, %error, "a partition could not be resumed"),
            }
        }
    }

    /// Commits what these lanes have dealt with. It waits for the answer, a moment as a rule: of two commits under way at once the older might come second.
    fn commit<'l>(&self, consumer: &BaseConsumer<Self>, lanes: impl Iterator<Item = (&'l Place, &'l Lane)>) -> bool {
        let offsets = offsets(lanes);
        let committed = if offsets.count() == 0 { Ok(()) } else { consumer.commit(&offsets, CommitMode::Sync) };
        if let Err(error) = &committed {
            tracing::warn!(self.group, %error, "offsets were not committed");
        }
        committed.is_ok()
    }

    /// The same for lanes that nobody will commit again.
    fn commit_last(&self, consumer: &BaseConsumer<Self>, lanes: &Lanes) {
        for _ in 0..LAST_COMMITS {
            if self.commit(consumer, lanes.iter()) {
                return;
            }
        }
    }

    /// Ends all lanes, softly or hard.
    fn end(&self, hard: bool) {
        let lanes = self.lanes();
        end(lanes.values(), hard);
    }

    fn give_up(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let mut lanes = self.lanes();
        let places = partitions.elements().into_iter().map(|each| (each.topic().to_owned(), each.partition()));
        let given_up: Lanes = places.filter_map(|place| lanes.remove_entry(&place)).collect();
        drop(lanes);
        let lost = consumer.assignment_lost() || self.command.load(Ordering::Acquire) == DIE;
        end(given_up.values(), lost);
        if !lost {
            self.commit_last(consumer, &given_up);
        }
    }
}

fn end<'l>(lanes: impl Iterator<Item = &'l Lane> + Clone, hard: bool) {
    lanes.clone().for_each(Lane::stop);
    let until = Instant::now() + HAND_OVER;
    for lane in lanes {
        if hard {
            lane.abort();
        } else {
            lane.join(until);
        }
    }
}

fn offsets<'l>(lanes: impl Iterator<Item = (&'l Place, &'l Lane)>) -> TopicPartitionList {
    let mut offsets = TopicPartitionList::new();
    for ((topic, partition), lane) in lanes {
        if let Some(next) = lane.next()
            && let Err(error) = offsets.add_partition_offset(topic, *partition, Offset::Offset(next))
        {
            tracing::error!(%error, "an offset cannot be committed");
        }
    }
    offsets
}

fn list<'p>(partitions: impl IntoIterator<Item = (&'p str, i32)>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (topic, partition) in partitions {
        list.add_partition(topic, partition);
    }
    list
}

impl ClientContext for Hands {
    fn stats(&self, statistics: Statistics) {
        self.metrics.consumer(&self.group, &statistics);
    }
}

impl ConsumerContext for Hands {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Revoke(partitions) => self.give_up(consumer, partitions),
            Rebalance::Assign(_) => {}
            Rebalance::Error(error) => tracing::warn!(self.group, %error, "a rebalance failed"),
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        // A pause outlives a change of hands, and its lane does not.
        if let Rebalance::Assign(partitions) = rebalance
            && let Err(error) = consumer.resume(partitions)
        {
            tracing::warn!(self.group, %error, "new partitions could not be resumed");
        }
    }
}
