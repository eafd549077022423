use super::{Consumer, Outgoing, PublishError, Receiver, Subscription, Transport, TransportError, Verdict, deliver};
use crate::message::Message;
use async_trait::async_trait;
use chrono::{SecondsFormat, Utc};
use std::{
    collections::HashMap,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{
    sync::{Mutex as AsyncMutex, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// A transport within one process, for tests and for services that are all in one. A clone is another node's end of the same one.
///
/// It does what [the contract](super) says, save that it forgets everything when its last clone is dropped, and keeps every message until then. Topics come into being when
/// they are first used.
#[derive(Clone)]
pub struct LocalTransport {
    inner: Arc<Inner>,
}

struct Inner {
    partitions: usize,
    largest: usize,
    topics: Mutex<HashMap<String, Arc<Vec<Partition>>>>,
    /// How far each group has got in each partition. Whoever holds the lock is the partition's owner, for one batch.
    progress: Mutex<HashMap<Place, Arc<AsyncMutex<usize>>>>,
}

/// Group, topic and partition.
type Place = (String, String, usize);

/// Messages in their order. Whoever waits for more watches their number.
struct Partition {
    messages: Mutex<Vec<Message>>,
    count: watch::Sender<usize>,
}

impl Default for LocalTransport {
    fn default() -> Self {
        Self::new(4)
    }
}

impl LocalTransport {
    /// With so many partitions a topic. The default has 4.
    pub fn new(partitions: usize) -> Self {
        Self::limited(partitions, 1 << 20)
    }

    /// With so many partitions a topic, and so many bytes a message. The default is a mebibyte.
    pub fn limited(partitions: usize, max_message_bytes: usize) -> Self {
        let (topics, progress) = (Mutex::default(), Mutex::default());
        let (partitions, largest) = (partitions.max(1), max_message_bytes);
        Self { inner: Arc::new(Inner { partitions, largest, topics, progress }) }
    }
}

impl Inner {
    fn topic(&self, name: &str) -> Arc<Vec<Partition>> {
        let mut topics = lock(&self.topics);
        let topic = topics.entry(name.to_owned()).or_insert_with(|| {
            let partition = || Partition { messages: Mutex::default(), count: watch::Sender::new(0) };
            Arc::new(std::iter::repeat_with(partition).take(self.partitions).collect())
        });
        topic.clone()
    }

    fn publish(&self, topic: &str, message: Message) {
        let topic = self.topic(topic);
        let mut hash = DefaultHasher::new();
        message.key.hash(&mut hash);
        let place = usize::try_from(hash.finish()).unwrap_or_default() % topic.len();
        let mut messages = lock(&topic[place].messages);
        messages.push(message);
        topic[place].count.send_replace(messages.len());
    }

    fn progress(&self, place: Place) -> Arc<AsyncMutex<usize>> {
        lock(&self.progress).entry(place).or_default().clone()
    }

    fn bury(&self, topic: &str, partition: usize, offset: usize, mut message: Message, reason: &str) {
        let time = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
        let (partition, offset) = (partition.to_string(), offset.to_string());
        for (name, value) in
            [("reason", reason), ("topic", topic), ("partition", &partition), ("offset", &offset), ("time", &time)]
        {
            message.headers.insert(format!("saga-dead-letter-{name}"), value.to_owned());
        }
        self.publish(&format!("{topic}.dlt"), message);
    }
}

#[async_trait]
impl Transport for LocalTransport {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        let publish = |Outgoing { topic, message }: &Outgoing| {
            let (size, largest) = (size(message), self.inner.largest);
            if size > largest {
                let id = &message.id;
                return Err(PublishError::Refused(format!(
                    "message {id} takes {size} bytes, and {largest} is the most"
                )));
            }
            self.inner.publish(topic, message.clone());
            Ok(())
        };
        batch.iter().map(publish).collect()
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
        receiver: Arc<dyn Receiver>,
    ) -> Result<Box<dyn Consumer>, TransportError> {
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        for topic in &subscription.topics {
            for partition in 0..self.inner.partitions {
                let reader = Reader {
                    inner: self.inner.clone(),
                    topic: topic.clone(),
                    partition,
                    progress: self.inner.progress((subscription.group.clone(), topic.clone(), partition)),
                    batch: subscription.batch.max(1),
                    receiver: receiver.clone(),
                    stop: stop.clone(),
                };
                tasks.spawn(reader.run());
            }
        }
        Ok(Box::new(Running { stop, tasks }))
    }

    async fn takes_dead_letters(&self, _: &str) -> bool {
        true
    }

    fn system(&self) -> &'static str {
        "local"
    }

    fn max_message_bytes(&self) -> usize {
        self.inner.largest
    }
}

pub(super) fn size(message: &Message) -> usize {
    let text = |texts: &std::collections::BTreeMap<String, String>| -> usize {
        texts.iter().map(|(name, value)| name.len() + value.len()).sum()
    };
    let subject = message.subject.as_ref().map_or(0, String::len);
    let attributes =
        message.id.len() + message.kind.len() + message.source.len() + subject + message.content_type.len();
    message.data.len() + message.key.len() + attributes + text(&message.headers) + text(&message.extensions)
}

struct Running {
    stop: CancellationToken,
    /// Dropping them ends them.
    tasks: JoinSet<()>,
}

#[async_trait]
impl Consumer for Running {
    async fn stop(mut self: Box<Self>) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Reads one partition for one consumer, in turn with the group's other ones.
struct Reader {
    inner: Arc<Inner>,
    topic: String,
    partition: usize,
    progress: Arc<AsyncMutex<usize>>,
    batch: usize,
    receiver: Arc<dyn Receiver>,
    stop: CancellationToken,
}

impl Reader {
    async fn run(self) {
        let topic = self.inner.topic(&self.topic);
        let mut count = topic[self.partition].count.subscribe();
        loop {
            let mut done = tokio::select! {
                done = self.progress.lock() => done,
                () = self.stop.cancelled() => return,
            };
            let batch: Vec<Message> = {
                let messages = lock(&topic[self.partition].messages);
                count.mark_unchanged();
                messages.iter().skip(*done).take(self.batch).cloned().collect()
            };
            if batch.is_empty() {
                drop(done);
                tokio::select! {
                    // The sender lives as long as the topic.
                    _ = count.changed() => continue,
                    () = self.stop.cancelled() => return,
                }
            }
            let Some(verdicts) = deliver(&*self.receiver, &batch, self.stop.cancelled()).await else { return };
            for (offset, (message, verdict)) in (*done..).zip(batch.into_iter().zip(verdicts)) {
                if let Verdict::DeadLetter(reason) = verdict {
                    self.inner.bury(&self.topic, self.partition, offset, message, &reason);
                }
                *done = offset + 1;
            }
            drop(done);
            if self.stop.is_cancelled() {
                return;
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for LocalTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalTransport").field("partitions", &self.inner.partitions).finish_non_exhaustive()
    }
}
