//! Messages out, by an idempotent producer.
//!
//! - *Order.* A call hands its messages over one after the other, and the idempotent producer keeps that order within a partition through its own retries. Nothing times
//!   out inside the client, so none is given up while a later one still goes out. If the client breaks for good (a *fatal* error), everything that it holds
//!   fails, and a new one takes its place.
//! - *A caller that goes away* leaves its messages with the client: they may still be published, which [`PublishError::Unavailable`] says, and a dropped
//!   call is no different.
//! - *Room.* A topic that is away fills a [part](crate::room) of the client's queue, and is then unavailable: what callers
//!   gave up stays in the client.
//! - *Topics.* Before the first message to a topic the broker is asked whether there is one, for some seconds, because it may have come into being just now.
//!   About one that did not exist within the last minute it is asked once: others are not to wait for seconds each time.

use crate::{
    binding,
    guard::{Admission, Guard},
    metrics::Metrics,
    producer::{Delivered, Fate, NotSent, Producer, Record},
    settings::Settings,
    topics,
};
use futures::{StreamExt, future::try_join, stream::FuturesUnordered};
use rdkafka::{
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::OwnedHeaders,
};
use saga_core::{
    message::Message,
    transport::{Outgoing, PublishError},
};
use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// For how long it is remembered that a topic does not exist, and of how many topics.
const REMEMBERED: Duration = Duration::from_secs(60);
const MOST_REMEMBERED: usize = 1_000;

pub(crate) struct Publisher {
    settings: Arc<Settings>,
    metrics: Arc<Metrics>,
    client: Mutex<Arc<Producer>>,
    known: Mutex<HashSet<String>>,
    /// Topics that did not exist when the broker was asked for some seconds, and when that was.
    absent: Mutex<HashMap<String, Instant>>,
    largest: usize,
    guard: Option<Guard>,
}

/// A record that the client has.
struct HandedOver<'r> {
    fate: oneshot::Receiver<Fate>,
    admission: Option<Admission<'r>>,
}

impl Publisher {
    pub(crate) fn new(settings: Arc<Settings>, metrics: Arc<Metrics>, guard: Option<Guard>) -> KafkaResult<Self> {
        let client = Mutex::new(Arc::new(Producer::new(&settings, &metrics)?));
        let largest = settings.max_message_bytes();
        let (known, absent) = (Mutex::default(), Mutex::default());
        Ok(Self { settings, metrics, client, known, absent, largest, guard })
    }

    pub(crate) fn max_message_bytes(&self) -> usize {
        self.largest
    }

    pub(crate) async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        let topics =
            batch.iter().map(|outgoing| outgoing.topic.as_str()).filter(|topic| topics::is_possible(topic)).collect();
        let absent = match self.absent(topics).await {
            Ok(absent) => absent,
            Err(error) => return vec![Err(PublishError::Unavailable(error)); batch.len()],
        };
        let client = self.client();
        // Once a message of a key could not be handed over, no later one may get ahead of it. Nor does it help to try it
        // with others of its topic.
        let mut held_up: HashSet<&str> = HashSet::new();
        let mut answers = vec![Err(PublishError::Unavailable("the client gave no answer".into())); batch.len()];
        let mut deliveries = FuturesUnordered::new();
        for (answer, Outgoing { topic, message }) in batch.iter().enumerate() {
            let handed_over = if !topics::is_possible(topic) {
                Err(PublishError::Refused("its topic has a name that no topic can have".into()))
            } else if absent.contains(topic) {
                Err(PublishError::Refused(format!("there is no topic `{topic}`: create it")))
            } else if binding::size(message) > self.largest {
                Err(self.too_large(message))
            } else if held_up.contains(topic.as_str()) {
                Err(PublishError::Unavailable("one before it, to the same topic, was not accepted".into()))
            } else {
                let record = Record {
                    topic,
                    key: Some(message.key.as_bytes()).filter(|key| !key.is_empty()),
                    value: Some(&message.data),
                    headers: binding::headers(message),
                };
                let mut handing_over =
                    pin!(self.hand_over(&client, self.guard.as_ref(), record, binding::size(message)));
                // What is ahead gets on meanwhile: this one may have to wait until it has.
                loop {
                    tokio::select! {
                        biased;
                        handed_over = &mut handing_over => break handed_over,
                        Some((answer, delivered)) = deliveries.next(), if !deliveries.is_empty() => answers[answer] = delivered,
                    }
                }
            };
            if let Err(PublishError::Unavailable(_)) = handed_over {
                held_up.insert(topic);
            }
            let delivered = self.delivered(&client, topic, handed_over);
            deliveries.push(async move { (answer, delivered.await) });
        }
        while let Some((answer, delivered)) = deliveries.next().await {
            answers[answer] = delivered;
        }
        answers
    }

    /// Publishes a record as it is, for dead letters. No guard holds them back: nobody may ever read them, and their partition would wait for that.
    pub(crate) async fn publish_raw(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: OwnedHeaders,
    ) -> Result<(), PublishError> {
        let client = self.client();
        let size = value.map_or(0, <[u8]>::len) + binding::RECORD_OVERHEAD;
        let handed_over = self.hand_over(&client, None, Record { topic, key, value, headers }, size).await;
        self.delivered(&client, topic, handed_over).await
    }

    async fn hand_over<'r>(
        &'r self,
        client: &Producer,
        guard: Option<&'r Guard>,
        record: Record<'r>,
        size: usize,
    ) -> Result<HandedOver<'r>, PublishError> {
        let admission = match guard {
            Some(guard) => Some(guard.admit(record.topic, size).await),
            None => None,
        };
        let topic = record.topic;
        match client.send(record, size).await {
            Ok(fate) => Ok(HandedOver { fate, admission }),
            Err(NotSent::Client(error)) => Err(self.failed(client, topic, &error)),
            Err(NotSent::NoRoom) => {
                self.metrics.not_published();
                Err(PublishError::Unavailable(format!("as much for topic `{topic}` waits for the broker as may")))
            }
        }
    }

    async fn delivered(
        &self,
        client: &Producer,
        topic: &str,
        handed_over: Result<HandedOver<'_>, PublishError>,
    ) -> Result<(), PublishError> {
        let HandedOver { fate, admission } = handed_over?;
        match fate.await {
            Ok(Ok(Delivered { partition, offset })) => {
                self.metrics.published();
                if let Some(admission) = admission {
                    admission.published(partition, offset);
                }
                Ok(())
            }
            Ok(Err(error)) => Err(self.failed(client, topic, &error)),
            Err(_) => Err(PublishError::Unavailable("the client was shut down".into())),
        }
    }

    fn failed(&self, client: &Producer, topic: &str, error: &KafkaError) -> PublishError {
        use RDKafkaErrorCode::{
            InvalidMessage, InvalidRecord, MessageSizeTooLarge, UnknownTopic, UnknownTopicOrPartition,
        };
        self.metrics.not_published();
        if let Some((code, reason)) = client.broken() {
            tracing::error!(%code, reason, "the producer broke, and is replaced");
            self.replace(client);
            return PublishError::Unavailable(format!("the producer broke: {reason}"));
        }
        match error.rdkafka_error_code() {
            // Not "invalid message": that is what the broker says of one that came damaged over the wire, too.
            Some(MessageSizeTooLarge | InvalidRecord) => PublishError::Refused(error.to_string()),
            Some(InvalidMessage) => PublishError::Unavailable(error.to_string()),
            Some(UnknownTopic | UnknownTopicOrPartition) => {
                // Gone, or the broker has just begun: the next call asks thoroughly.
                self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(topic);
                PublishError::Unavailable(error.to_string())
            }
            _ => PublishError::Unavailable(error.to_string()),
        }
    }

    fn too_large(&self, message: &Message) -> PublishError {
        let (size, largest) = (binding::size(message), self.largest);
        PublishError::Refused(format!(
            "message {} of type {} takes {size} bytes, and `message.max.bytes` is {largest}",
            message.id, message.kind
        ))
    }

    fn client(&self) -> Arc<Producer> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts a new client in the place of one that broke, unless somebody else has.
    fn replace(&self, broken: &Producer) {
        let mut current = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if current.broken().is_none() || !std::ptr::eq(&**current, broken) {
            return;
        }
        match Producer::new(&self.settings, &self.metrics) {
            Ok(client) => *current = Arc::new(client),
            Err(error) => tracing::error!(%error, "there is no new producer yet"),
        }
    }

    /// Which of these topics do not exist.
    async fn absent(&self, topics: HashSet<&str>) -> Result<HashSet<String>, String> {
        let unknown: Vec<String> = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            topics.into_iter().filter(|topic| !known.contains(*topic)).map(str::to_owned).collect()
        };
        if unknown.is_empty() {
            return Ok(HashSet::new());
        }
        let (again, new): (Vec<String>, Vec<String>) = {
            let mut absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
            absent.retain(|_, since| since.elapsed() < REMEMBERED);
            unknown.into_iter().partition(|topic| absent.contains_key(topic))
        };
        let (again, new) = try_join(topics::ask_again(&self.settings, again), topics::ask(&self.settings, new)).await?;
        {
            let mut absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
            absent.retain(|topic, _| !again.present.contains_key(topic));
            let room = MOST_REMEMBERED.saturating_sub(absent.len());
            absent.extend(new.absent.iter().take(room).map(|topic| (topic.clone(), Instant::now())));
        }
        let present = again.present.into_keys().chain(new.present.into_keys());
        self.known.lock().unwrap_or_else(PoisonError::into_inner).extend(present);
        Ok(again.absent.into_iter().chain(new.absent).collect())
    }
}
