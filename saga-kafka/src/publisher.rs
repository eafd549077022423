//! Messages out, by an idempotent producer.
//!
//! - *Order.* A call hands its messages over one after the other, and the idempotent producer keeps that order within a partition through its own retries. Nothing times
//!   out inside the client, so none is given up while a later one still goes out. If the client breaks for good (a *fatal* error), everything that it holds
//!   fails, and a new one takes its place.
//! - *A caller that goes away* leaves its messages with the client: they may still be published, which [`PublishError::Unavailable`] says, and a dropped
//!   call is no different.
//! - *Topics.* Before the first message to a topic the broker is asked whether there is one, for some seconds, because it may have come into being just now.

use crate::{
    binding,
    guard::{Admission, Guard},
    metrics::Metrics,
    settings::Settings,
    topics::{self, Asked},
};
use futures::{StreamExt, stream::FuturesUnordered};
use rdkafka::{
    ClientContext, Statistics,
    config::FromClientConfigAndContext,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::OwnedHeaders,
    producer::{
        FutureProducer, FutureRecord, Producer,
        future_producer::{Delivery, DeliveryFuture},
    },
};
use saga_core::{
    message::Message,
    transport::{Outgoing, PublishError},
};
use std::{
    collections::HashSet,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::sleep;

/// How long to wait for room in the client's queue before looking again.
const QUEUE_FULL: Duration = Duration::from_millis(10);

pub(crate) struct Context {
    metrics: Arc<Metrics>,
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        self.metrics.producer(&statistics);
    }
}

type Client = FutureProducer<Context>;

pub(crate) struct Publisher {
    settings: Arc<Settings>,
    metrics: Arc<Metrics>,
    client: Mutex<Arc<Client>>,
    known: Mutex<HashSet<String>>,
    largest: usize,
    guard: Option<Guard>,
}

/// One record for the broker.
struct Record<'m> {
    topic: &'m str,
    key: Option<&'m [u8]>,
    value: Option<&'m [u8]>,
    headers: OwnedHeaders,
}

/// A record that the client has.
struct HandedOver<'r> {
    delivery: DeliveryFuture,
    admission: Option<Admission<'r>>,
}

impl Publisher {
    pub(crate) fn new(settings: Arc<Settings>, metrics: Arc<Metrics>, guard: Option<Guard>) -> KafkaResult<Self> {
        let client = Mutex::new(Arc::new(new_client(&settings, &metrics)?));
        let largest = settings.max_message_bytes();
        Ok(Self { settings, metrics, client, known: Mutex::default(), largest, guard })
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
        // Once a message of a key could not be handed over, no later one may get ahead of it.
        let mut held_up: HashSet<(&str, &str)> = HashSet::new();
        let mut answers = vec![Err(PublishError::Unavailable("the client gave no answer".into())); batch.len()];
        let mut deliveries = FuturesUnordered::new();
        for (answer, Outgoing { topic, message }) in batch.iter().enumerate() {
            let place = (topic.as_str(), message.key.as_str());
            let handed_over = if !topics::is_possible(topic) {
                Err(PublishError::Refused("its topic has a name that no topic can have".into()))
            } else if absent.contains(topic) {
                Err(PublishError::Refused(format!("there is no topic `{topic}`: create it")))
            } else if binding::size(message) > self.largest {
                Err(self.too_large(message))
            } else if held_up.contains(&place) {
                Err(PublishError::Unavailable("a message of the same key before it was not accepted".into()))
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
                held_up.insert(place);
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
        client: &Client,
        guard: Option<&'r Guard>,
        record: Record<'r>,
        size: usize,
    ) -> Result<HandedOver<'r>, PublishError> {
        let admission = match guard {
            Some(guard) => Some(guard.admit(record.topic, size).await),
            None => None,
        };
        let mut next = FutureRecord::<[u8], [u8]>::to(record.topic).headers(record.headers);
        next.key = record.key;
        next.payload = record.value;
        loop {
            match client.send_result(next) {
                Ok(delivery) => return Ok(HandedOver { delivery, admission }),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), same)) => next = same,
                Err((error, _)) => return Err(self.failed(client, record.topic, &error)),
            }
            sleep(QUEUE_FULL).await;
        }
    }

    async fn delivered(
        &self,
        client: &Client,
        topic: &str,
        handed_over: Result<HandedOver<'_>, PublishError>,
    ) -> Result<(), PublishError> {
        let HandedOver { delivery, admission } = handed_over?;
        match delivery.await {
            Ok(Ok(Delivery { partition, offset, .. })) => {
                self.metrics.published();
                if let Some(admission) = admission {
                    admission.published(partition, offset);
                }
                Ok(())
            }
            Ok(Err((error, _))) => Err(self.failed(client, topic, &error)),
            Err(_) => Err(PublishError::Unavailable("the client was shut down".into())),
        }
    }

    fn failed(&self, client: &Client, topic: &str, error: &KafkaError) -> PublishError {
        use RDKafkaErrorCode::{
            InvalidMessage, InvalidRecord, MessageSizeTooLarge, UnknownTopic, UnknownTopicOrPartition,
        };
        self.metrics.not_published();
        if let Some((code, reason)) = client.client().fatal_error() {
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

    fn client(&self) -> Arc<Client> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts a new client in the place of one that broke, unless somebody else has.
    fn replace(&self, broken: &Client) {
        let mut current = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if current.client().fatal_error().is_none() || !std::ptr::eq(&**current, broken) {
            return;
        }
        match new_client(&self.settings, &self.metrics) {
            Ok(client) => {
                let broken = std::mem::replace(&mut *current, Arc::new(client));
                // Its end waits for its threads.
                std::thread::spawn(move || drop(broken));
            }
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
        let Asked { absent, present } = topics::ask(&self.settings, unknown).await?;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).extend(present.into_keys());
        Ok(absent)
    }
}

fn new_client(settings: &Settings, metrics: &Arc<Metrics>) -> KafkaResult<Client> {
    Client::from_config_and_context(&settings.producer(), Context { metrics: metrics.clone() })
}
