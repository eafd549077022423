//! What every client is set up with: our defaults, then the user's properties, save those that a promise stands on.

use rdkafka::ClientConfig;
use std::collections::BTreeMap;

/// A property that would break a promise, or that librdkafka does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// The promises of the transport stand on its value.
    #[error("`{name}` cannot be `{value}`: {why}")]
    Promised {
        /// The property.
        name: String,
        /// What it was to be.
        value: String,
        /// What would break.
        why: &'static str,
    },
    /// librdkafka does not take it.
    #[error("librdkafka does not take these settings: {0}")]
    Refused(String),
}

/// Properties that may only be set to what they are anyway.
const FIXED: &[(&str, &[&str], &str)] = &[
    ("acks", &["all", "-1"], "a message counts as published when all in-sync replicas have it"),
    ("request.required.acks", &["all", "-1"], "a message counts as published when all in-sync replicas have it"),
    ("enable.idempotence", &["true"], "without it a retry inside the client reorders messages of one key"),
    ("message.timeout.ms", &["0"], "a message that times out could be overtaken by the next one of its key"),
    ("delivery.timeout.ms", &["0"], "a message that times out could be overtaken by the next one of its key"),
    ("transactional.id", &[], "the databases' transactions are what counts here; Kafka's are not used"),
    ("enable.auto.commit", &["false"], "an offset is committed when its message is dealt with, and not before"),
    ("enable.auto.offset.store", &["false"], "an offset is committed when its message is dealt with, and not before"),
    ("auto.offset.reset", &["earliest", "smallest", "beginning"], "messages would be passed over unread"),
    ("group.id", &[], "the group is the name of the participant, the listener or the service"),
];

const COMMON: &[(&str, &str)] = &[
    ("statistics.interval.ms", "5000"),
    ("socket.nagle.disable", "true"),
    // How long a broker that does not answer holds up a commit.
    ("socket.timeout.ms", "15000"),
    // A broker that is back is found soon.
    ("reconnect.backoff.ms", "50"),
    ("reconnect.backoff.max.ms", "1000"),
];

const PRODUCER: &[(&str, &str)] = &[
    ("acks", "all"),
    ("enable.idempotence", "true"),
    ("message.timeout.ms", "0"),
    ("linger.ms", "0"),
    // As the Java client has it, so that all services agree which partition a key is in.
    ("partitioner", "murmur2_random"),
    ("queue.buffering.max.messages", "20000"),
    ("queue.buffering.max.kbytes", "65536"),
];

const CONSUMER: &[(&str, &str)] = &[
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("auto.offset.reset", "earliest"),
    ("partition.assignment.strategy", "cooperative-sticky"),
    ("fetch.wait.max.ms", "50"),
    // What waits here has been read and cannot be given to another consumer.
    ("queued.min.messages", "1000"),
    ("queued.max.messages.kbytes", "16384"),
    // Half of the default: a node that died is noticed sooner. Twenty times the heartbeat still.
    ("session.timeout.ms", "20000"),
    ("heartbeat.interval.ms", "1000"),
];

/// The properties of the clients of a transport.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    common: BTreeMap<String, String>,
    producer: BTreeMap<String, String>,
    consumer: BTreeMap<String, String>,
}

impl Settings {
    pub(crate) fn new(brokers: &str) -> Self {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let mut settings = Self { common: map(COMMON), producer: map(PRODUCER), consumer: map(CONSUMER) };
        settings.common.insert("bootstrap.servers".into(), brokers.into());
        settings
    }

    pub(crate) fn set(&mut self, name: String, value: String) {
        self.producer.remove(&name);
        self.consumer.remove(&name);
        self.common.insert(name, value);
    }

    pub(crate) fn set_producer(&mut self, name: String, value: String) {
        self.producer.insert(name, value);
    }

    pub(crate) fn set_consumer(&mut self, name: String, value: String) {
        self.consumer.insert(name, value);
    }

    /// Whether nothing is set that breaks a promise.
    pub(crate) fn check(&self) -> Result<(), SettingError> {
        for (name, value) in self.common.iter().chain(&self.producer).chain(&self.consumer) {
            let fixed = FIXED.iter().find(|(fixed, ..)| fixed == name);
            if let Some((_, _, why)) = fixed.filter(|(_, allowed, _)| !allowed.contains(&value.as_str())) {
                return Err(SettingError::Promised { name: name.clone(), value: value.clone(), why });
            }
        }
        Ok(())
    }

    pub(crate) fn producer(&self) -> ClientConfig {
        self.client(&self.producer)
    }

    pub(crate) fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.client(&self.consumer);
        config.set("group.id", group);
        config
    }

    /// For a client that only asks questions.
    pub(crate) fn probe(&self) -> ClientConfig {
        self.client(&BTreeMap::new())
    }

    fn client(&self, special: &BTreeMap<String, String>) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (name, value) in self.common.iter().chain(special) {
            config.set(name, value);
        }
        config
    }

    /// How large a message may be in all.
    pub(crate) fn max_message_bytes(&self) -> usize {
        self.of_producer("message.max.bytes").unwrap_or(1_000_000)
    }

    /// How many records a producer's queue holds, and how many kibibytes.
    pub(crate) fn queue(&self) -> (u32, u32) {
        let of_producer = |name: &str| self.of_producer(name).unwrap_or(u32::MAX);
        (of_producer("queue.buffering.max.messages"), of_producer("queue.buffering.max.kbytes"))
    }

    fn of_producer<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.producer.get(name).or_else(|| self.common.get(name))?.parse().ok()
    }
}
