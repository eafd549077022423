use crate::{
    consumer::Member,
    guard::Guard,
    lane::Works,
    metrics::{KafkaMetrics, Metrics},
    publisher::Publisher,
    settings::{SettingError, Settings},
    topics::{self, TopicSpec},
};
use async_trait::async_trait;
use rdkafka::config::FromClientConfig;
use saga_core::transport::{Consumer, Outgoing, PublishError, Receiver, Subscription, Transport, TransportError};
use std::{fmt, sync::Arc, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The way over Kafka, see [the crate's docs](crate). A clone shares the producer.
#[derive(Clone)]
pub struct KafkaTransport {
    settings: Arc<Settings>,
    metrics: Arc<Metrics>,
    publisher: Arc<Publisher>,
}

/// Sets a [`KafkaTransport`] up.
#[derive(Clone, Debug)]
pub struct KafkaTransportBuilder {
    settings: Settings,
    guarded: Option<Vec<TopicSpec>>,
}

impl KafkaTransportBuilder {
    /// A property of librdkafka, for all clients.
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.set(name.into(), value.into());
        self
    }

    /// A property for the producer alone.
    pub fn set_producer(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.set_producer(name.into(), value.into());
        self
    }

    /// A property for the consumers alone.
    pub fn set_consumer(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.set_consumer(name.into(), value.into());
        self
    }

    /// Holds back what the embedded broker could not keep.
    pub(crate) fn guarded(mut self, topics: &[TopicSpec]) -> Self {
        self.guarded = Some(topics.iter().flat_map(TopicSpec::with_dead_letters).collect());
        self
    }

    /// Makes the transport. The brokers need not be up.
    ///
    /// # Errors
    /// When a property breaks a promise, or librdkafka does not take it.
    pub fn build(self) -> Result<KafkaTransport, SettingError> {
        self.settings.check()?;
        let refused = |error: rdkafka::error::KafkaError| SettingError::Refused(error.to_string());
        // Says now what is wrong with the consumers' properties.
        rdkafka::consumer::BaseConsumer::from_config(&self.settings.consumer("settings")).map_err(refused)?;
        let guard = self.guarded.map(|topics| Guard::new(&self.settings, &topics));
        let (settings, metrics) = (Arc::new(self.settings), Arc::new(Metrics::default()));
        let publisher = Publisher::new(settings.clone(), metrics.clone(), guard).map_err(refused)?;
        Ok(KafkaTransport { settings, metrics, publisher: Arc::new(publisher) })
    }
}

impl KafkaTransport {
    /// With our defaults, on these brokers (`host:port`, with commas between).
    ///
    /// # Errors
    /// When librdkafka does not take the addresses.
    pub fn new(brokers: impl AsRef<str>) -> Result<Self, SettingError> {
        Self::builder(brokers).build()
    }

    /// With properties of your own.
    pub fn builder(brokers: impl AsRef<str>) -> KafkaTransportBuilder {
        KafkaTransportBuilder { settings: Settings::new(brokers.as_ref()), guarded: None }
    }

    /// Creates those of the topics that do not exist, with their topics for dead letters. For development; what exists is left as it is.
    ///
    /// # Errors
    /// When the broker does not answer, or does not do it.
    pub async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<(), TransportError> {
        topics::ensure(&self.settings, topics).await.map_err(TransportError)
    }

    /// Checks that the topics exist, with at least the partitions, the replication and the retention that they are said to have, and their topics for dead
    /// letters. For the start of a service in production.
    ///
    /// # Errors
    /// Says everything that is missing, a line each.
    pub async fn check_topics(&self, topics: &[TopicSpec]) -> Result<(), TransportError> {
        let faults = topics::check(&self.settings, topics).await.map_err(TransportError)?;
        if faults.is_empty() { Ok(()) } else { Err(TransportError(faults.join("\n"))) }
    }

    /// How long a topic keeps its records; `None` is for ever. What an inbox remembers of it has to live longer.
    ///
    /// # Errors
    /// When the broker does not say.
    pub async fn retention(&self, topic: &str) -> Result<Option<Duration>, TransportError> {
        let found = topics::retentions(&self.settings, &[topic]).await.map_err(TransportError)?;
        Ok(found.into_iter().next().flatten())
    }

    /// What this transport and its clones count.
    pub fn metrics(&self) -> KafkaMetrics {
        self.metrics.snapshot()
    }
}

#[async_trait]
impl Transport for KafkaTransport {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        self.publisher.publish(batch).await
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
        receiver: Arc<dyn Receiver>,
    ) -> Result<Box<dyn Consumer>, TransportError> {
        let Subscription { group, topics, batch } = subscription;
        // Without a place for its dead letters, a topic would stand still at the first.
        let needed = topics.iter().cloned().chain(topics.iter().map(|topic| topics::dead_letters(topic))).collect();
        let asked = topics::ask(&self.settings, needed).await.map_err(TransportError)?;
        if !asked.absent.is_empty() {
            let absent = asked.absent.into_iter().collect::<Vec<_>>().join("`, `");
            return Err(TransportError(format!("there is no topic `{absent}`: create it")));
        }
        let works = Works {
            runtime: tokio::runtime::Handle::current(),
            receiver,
            publisher: self.publisher.clone(),
            metrics: self.metrics.clone(),
            batch: batch.max(1),
            progress: false.into(),
            stop: CancellationToken::new(),
            dead: CancellationToken::new(),
            lanes: TaskTracker::new(),
        };
        Member::new(self.settings.clone(), group, topics, works, self.metrics.clone()).start()
    }

    async fn takes_dead_letters(&self, topic: &str) -> bool {
        topics::is_writable(&self.settings, topics::dead_letters(topic)).await
    }

    fn system(&self) -> &'static str {
        "kafka"
    }

    fn max_message_bytes(&self) -> usize {
        self.publisher.max_message_bytes()
    }
}

impl fmt::Debug for KafkaTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaTransport").finish_non_exhaustive()
    }
}
