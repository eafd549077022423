//! Keeps the embedded broker from dropping what nobody has read.
//!
//! The mock cluster keeps 5 MiB or 100,000 records of a partition. Each transport keeps account of what it has published itself, and holds back what would bring
//! its own unread share of a topic beyond 512 KiB, or what everybody has unread there beyond 50,000 records, until the topic's readers have committed more. So
//! eight services can publish to one topic. The worst that a wrong guess here can do is to wait.
//! Dead letters do not wait, or they would stick the partition that they come from: of those, the broker keeps the youngest.

use crate::{settings::Settings, topics::TopicSpec};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::sleep;

/// What one transport may have unread in a topic, in bytes.
const OWN_BYTES: usize = 512 * 1024;
/// What all may have unread in a topic, in records.
const ALL_RECORDS: i64 = 50_000;
/// After how many records of its own a transport asks what all have.
const BETWEEN_QUESTIONS: usize = 5_000;
const PAUSE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Guard {
    probe: ClientConfig,
    /// The groups that read a topic.
    readers: HashMap<String, Vec<String>>,
    shares: Mutex<HashMap<String, Share>>,
}

/// What this transport has in a topic.
#[derive(Default)]
struct Share {
    /// Partition, offset and size of records that may be unread.
    unread: Vec<(i32, i64, usize)>,
    bytes: usize,
    /// Bytes that were let through and have not been acknowledged.
    under_way: usize,
    since_asked: usize,
    /// Whose turn it is to ask.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// How far each partition of a topic has been written and read.
type Marks = BTreeMap<i32, Mark>;

#[derive(Clone, Copy)]
struct Mark {
    end: i64,
    read: i64,
}

impl Guard {
    pub(crate) fn new(settings: &Settings, topics: &[TopicSpec]) -> Self {
        let readers = topics.iter().map(|topic| (topic.name.clone(), topic.readers.clone())).collect();
        Self { probe: settings.probe(), readers, shares: Mutex::default() }
    }

    /// Waits until a record of that size may be published.
    pub(crate) async fn admit<'g>(&'g self, topic: &'g str, bytes: usize) -> Admission<'g> {
        if !self.try_admit(topic, bytes) {
            self.wait(topic, bytes).await;
        }
        Admission { guard: self, topic, bytes, place: None }
    }

    /// Of all that wait for a topic one asks, and tells of it; the others, in their order, find what it heard.
    async fn wait(&self, topic: &str, bytes: usize) {
        let turn = self.with(topic, |share| share.turn.clone());
        let _turn = turn.lock().await;
        let mut said = false;
        while !self.try_admit(topic, bytes) {
            if self.ask(topic).await && self.try_admit(topic, bytes) {
                return;
            }
            if !said {
                said = true;
                tracing::warn!(
                    topic,
                    "the embedded broker would drop unread records: nothing more is published to this topic until its readers have caught up"
                );
            }
            sleep(PAUSE).await;
        }
    }

    fn try_admit(&self, topic: &str, bytes: usize) -> bool {
        self.with(topic, |share| {
            let taken = share.bytes + share.under_way;
            // A record alone always may: it cannot drive itself out.
            let admitted = share.since_asked < BETWEEN_QUESTIONS && (taken == 0 || taken + bytes <= OWN_BYTES);
            if admitted {
                share.under_way += bytes;
                share.since_asked += 1;
            }
            admitted
        })
    }

    /// Brings the account of a topic up to date. False if the broker does not answer.
    async fn ask(&self, topic: &str) -> bool {
        let readers = self.readers.get(topic).cloned().unwrap_or_default();
        let (config, name) = (self.probe.clone(), topic.to_owned());
        let marks = tokio::task::spawn_blocking(move || marks(&config, &name, &readers)).await;
        match marks.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(marks) => {
                self.with(topic, |share| share.update(&marks));
                true
            }
            Err(error) => {
                tracing::debug!(topic, error, "the embedded broker did not say what was read");
                false
            }
        }
    }

    fn with<R>(&self, topic: &str, look: impl FnOnce(&mut Share) -> R) -> R {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        look(shares.entry(topic.to_owned()).or_default())
    }
}

/// One record that was let through. Dropped when it is known what became of it, or when nobody waits for that any more.
pub(crate) struct Admission<'g> {
    guard: &'g Guard,
    topic: &'g str,
    bytes: usize,
    place: Option<(i32, i64)>,
}

impl Admission<'_> {
    /// It is in that partition, at that offset.
    pub(crate) fn published(mut self, partition: i32, offset: i64) {
        self.place = Some((partition, offset));
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        self.guard.with(self.topic, |share| {
            share.under_way = share.under_way.saturating_sub(self.bytes);
            if let Some((partition, offset)) = self.place {
                share.unread.push((partition, offset, self.bytes));
                share.bytes += self.bytes;
            }
        });
    }
}

impl Share {
    fn update(&mut self, marks: &Marks) {
        let read = |partition: i32| marks.get(&partition).map_or(0, |mark| mark.read);
        self.unread.retain(|&(partition, offset, _)| offset >= read(partition));
        self.bytes = self.unread.iter().map(|(.., bytes)| bytes).sum();
        if marks.values().all(|mark| mark.end - mark.read < ALL_RECORDS) {
            self.since_asked = 0;
        }
    }
}

/// Asks the broker. What has no readers counts as unread.
fn marks(config: &ClientConfig, topic: &str, readers: &[String]) -> Result<Marks, String> {
    let words = |error: rdkafka::error::KafkaError| error.to_string();
    let probe: BaseConsumer = config.create().map_err(words)?;
    let metadata = probe.fetch_metadata(Some(topic), PATIENCE).map_err(words)?;
    let mut marks = Marks::new();
    let mut list = TopicPartitionList::new();
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        let (_, end) = probe.fetch_watermarks(topic, partition.id(), PATIENCE).map_err(words)?;
        marks.insert(partition.id(), Mark { end, read: if readers.is_empty() { 0 } else { end } });
        list.add_partition(topic, partition.id());
    }
    for group in readers {
        let member: BaseConsumer = config.clone().set("group.id", group).create().map_err(words)?;
        let committed = member.committed_offsets(list.clone(), PATIENCE).map_err(words)?;
        for partition in committed.elements() {
            let read = if let Offset::Offset(read) = partition.offset() { read } else { 0 };
            if let Some(mark) = marks.get_mut(&partition.partition()) {
                mark.read = mark.read.min(read);
            }
        }
    }
    Ok(marks)
}
