use crate::{KafkaTransport, KafkaTransportBuilder, topics::TopicSpec};
use rdkafka::{mocking::MockCluster, producer::DefaultProducerContext};
use saga_core::transport::TransportError;
use std::{fmt, sync::mpsc, thread::JoinHandle};

/// librdkafka's own mock cluster.
pub type Cluster = MockCluster<'static, DefaultProducerContext>;

type Order = Box<dyn FnOnce(&Cluster) + Send>;

/// A broker in this process, for tests and for trying things out: librdkafka's mock cluster. Other processes can connect to it.
///
/// It speaks Kafka's protocol over TCP, and forgets everything when it is dropped. It has no transactions, does not create topics when it is asked to over the network (they are
/// created [here](Self::create_topics)), takes some seconds until the first member of a group has its partitions, and **keeps 5 MiB or 100,000 records of a partition and drops the older ones, read or
/// not**. So publish to it with what [`settings`](Self::settings) gives, here or in another process: that stops before unread records would be dropped, and says so.
///
/// ```no_run
/// # use saga_kafka::{EmbeddedBroker, TopicSpec};
/// # fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let topics = [TopicSpec::new("inventory.commands").read_by("inventory"), TopicSpec::new("shop.replies").read_by("shop")];
/// let broker = EmbeddedBroker::start(&topics)?;
/// let kafka = EmbeddedBroker::settings(broker.brokers(), &topics).build()?;
/// # Ok(()) }
/// ```
pub struct EmbeddedBroker {
    brokers: String,
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl EmbeddedBroker {
    /// Starts it on a free port, with these topics.
    ///
    /// # Errors
    /// When librdkafka cannot start it, or a topic cannot be created.
    pub fn start(topics: &[TopicSpec]) -> Result<Self, TransportError> {
        let (orders, inbox) = mpsc::channel::<Order>();
        let (started, start) = mpsc::channel();
        // The cluster cannot leave the thread that it was made on.
        let thread = std::thread::Builder::new().name("kafka broker".into()).spawn(move || match Cluster::new(1) {
            Ok(cluster) => {
                let _ = started.send(Ok(cluster.bootstrap_servers()));
                inbox.into_iter().for_each(|order| order(&cluster));
            }
            Err(error) => {
                let _ = started.send(Err(error.to_string()));
            }
        });
        let thread = Some(thread.map_err(|error| TransportError(error.to_string()))?);
        let brokers = start.recv().unwrap_or_else(|error| Err(error.to_string()));
        let brokers =
            brokers.map_err(|error| TransportError(format!("the embedded broker does not start: {error}")))?;
        let broker = Self { brokers, orders: Some(orders), thread };
        broker.create_topics(topics)?;
        Ok(broker)
    }

    /// Its address, for clients in any process of this machine.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Creates topics that do not exist, with their topics for dead letters.
    ///
    /// # Errors
    /// When librdkafka refuses, because a topic exists.
    pub fn create_topics(&self, topics: &[TopicSpec]) -> Result<(), TransportError> {
        let all: Vec<TopicSpec> = topics.iter().flat_map(TopicSpec::with_dead_letters).collect();
        self.with(move |cluster| {
            for topic in all {
                let created = cluster.create_topic(&topic.name, topic.partitions, 1);
                created.map_err(|error| TransportError(format!("topic `{}`: {error}", topic.name)))?;
            }
            Ok(())
        })?
    }

    /// Does something with the cluster itself, on its own thread: takes it down, delays it, makes requests fail.
    ///
    /// # Errors
    /// When its thread has died, because something that it was given panicked.
    pub fn with<R: Send + 'static>(
        &self,
        order: impl FnOnce(&Cluster) -> R + Send + 'static,
    ) -> Result<R, TransportError> {
        let (answer, result) = mpsc::channel();
        let order: Order = Box::new(move |cluster| {
            let _ = answer.send(order(cluster));
        });
        let sent = self.orders.as_ref().map(|orders| orders.send(order));
        match sent {
            Some(Ok(())) => result.recv().map_err(|_| gone()),
            _ => Err(gone()),
        }
    }

    /// What a transport on such a broker is set up with, in this process or in another; `topics` are all that it publishes to.
    pub fn settings(brokers: &str, topics: &[TopicSpec]) -> KafkaTransportBuilder {
        KafkaTransport::builder(brokers)
            // Its fetches do not wake up when a record comes.
            .set_consumer("fetch.wait.max.ms", "5")
            // Its rebalances take a second less than a session may, and cooperative ones twice that.
            .set_consumer("session.timeout.ms", "4000")
            .set_consumer("heartbeat.interval.ms", "500")
            .set_consumer("partition.assignment.strategy", "range")
            .guarded(topics)
    }
}

fn gone() -> TransportError {
    TransportError("the embedded broker has died".into())
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // It only fails if an order panicked, and then it is gone just as well.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for EmbeddedBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedBroker").field("brokers", &self.brokers).finish_non_exhaustive()
    }
}
