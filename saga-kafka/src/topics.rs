//! Topics: created for development, checked for production.

use crate::settings::Settings;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    metadata::MetadataPartition,
    types::RDKafkaErrorCode,
};
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};
use tokio::time::sleep;

/// How long the broker may take to answer a question.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked about a topic that it does not know: the topic may have come into being just now.
const QUESTIONS: u32 = 4;
const BETWEEN_QUESTIONS: Duration = Duration::from_secs(1);

/// What the broker says about topics.
pub(crate) struct Asked {
    /// Those that exist.
    pub(crate) present: HashMap<String, Shape>,
    /// Those that do not.
    pub(crate) absent: HashSet<String>,
}

/// A topic as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) partitions: i32,
    pub(crate) replication: i32,
}

/// Asks the broker about topics, for some seconds if it does not know one of them.
pub(crate) async fn ask(settings: &Settings, topics: Vec<String>) -> Result<Asked, String> {
    ask_up_to(QUESTIONS, settings, topics).await
}

/// Asks it once, about topics that it did not know a while ago.
pub(crate) async fn ask_again(settings: &Settings, topics: Vec<String>) -> Result<Asked, String> {
    ask_up_to(1, settings, topics).await
}

async fn ask_up_to(times: u32, settings: &Settings, topics: Vec<String>) -> Result<Asked, String> {
    let mut asked = Asked { present: HashMap::new(), absent: topics.into_iter().collect() };
    for question in 0..times {
        if asked.absent.is_empty() {
            break;
        }
        if question > 0 {
            sleep(BETWEEN_QUESTIONS).await;
        }
        let shapes = shapes(settings, asked.absent.clone()).await?;
        asked.absent.retain(|topic| !shapes.contains_key(topic));
        asked.present.extend(shapes);
    }
    Ok(asked)
}

/// Whether a topic can be published to at present: the broker answers, and each partition has a leader and most of its
/// replicas.
pub(crate) async fn is_writable(settings: &Settings, topic: String) -> bool {
    let config = settings.probe();
    let asking = tokio::task::spawn_blocking(move || {
        let probe: BaseConsumer = config.create().ok()?;
        let metadata = probe.fetch_metadata(Some(&topic), PATIENCE).ok()?;
        let found = metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none())?;
        let is_writable = |partition: &MetadataPartition| {
            partition.leader() >= 0 && 2 * partition.isr().len() > partition.replicas().len()
        };
        Some(!found.partitions().is_empty() && found.partitions().iter().all(is_writable))
    });
    asking.await.ok().flatten().unwrap_or(false)
}

async fn shapes(settings: &Settings, topics: HashSet<String>) -> Result<HashMap<String, Shape>, String> {
    let config = settings.probe();
    let asking = tokio::task::spawn_blocking(move || ask_once(&config, &topics));
    asking.await.map_err(|error| error.to_string())?
}

fn ask_once(config: &ClientConfig, topics: &HashSet<String>) -> Result<HashMap<String, Shape>, String> {
    // A consumer's question, unlike a producer's, does not make a broker create what it is asked about.
    let probe: BaseConsumer = config.create().map_err(|error| error.to_string())?;
    let mut shapes = HashMap::new();
    for topic in topics {
        let metadata = probe.fetch_metadata(Some(topic), PATIENCE).map_err(|error| error.to_string())?;
        let found = metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none());
        if let Some(partitions) = found.map(|found| found.partitions()).filter(|partitions| !partitions.is_empty()) {
            let replication = partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
            let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
            shapes
                .insert(topic.clone(), Shape { partitions: count(partitions.len()), replication: count(replication) });
        }
    }
    Ok(shapes)
}

/// How a topic is to be: [created](crate::KafkaTransport::ensure_topics) like this, and [checked](crate::KafkaTransport::check_topics) against it.
///
/// A topic `<name>.dlt` for its dead letters, of one partition, belongs to it unless it is said to have none.
///
/// ```
/// use saga_kafka::TopicSpec;
/// use std::time::Duration;
/// let commands = TopicSpec::new("inventory.commands")
///     .partitions(12) // as many nodes as you will ever have
///     .replication(3)
///     .retention(Duration::from_secs(7 * 24 * 3600));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    pub(crate) name: String,
    pub(crate) partitions: i32,
    pub(crate) replication: i32,
    pub(crate) retention: Option<Duration>,
    pub(crate) dead_letters: bool,
    pub(crate) readers: Vec<String>,
}

impl TopicSpec {
    /// A topic of 4 partitions, kept once, for as long as is the broker's default, with a topic for its dead letters.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), partitions: 4, replication: 1, retention: None, dead_letters: true, readers: vec![] }
    }

    /// How many partitions it has; at least that many in a check.
    pub fn partitions(mut self, partitions: i32) -> Self {
        self.partitions = partitions;
        self
    }

    /// How many brokers keep it; at least that many in a check. In production 3, with `min.insync.replicas` of 2.
    pub fn replication(mut self, replication: i32) -> Self {
        self.replication = replication;
        self
    }

    /// How long a record is kept; at least that long in a check. An inbox has to remember for longer.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = Some(retention);
        self
    }

    /// It needs no topic for dead letters: nobody consumes it with this crate.
    pub fn without_dead_letters(mut self) -> Self {
        self.dead_letters = false;
        self
    }

    /// A group that reads it, besides those named before. What a reader has not read, the [embedded broker](crate::EmbeddedBroker) keeps.
    pub fn read_by(mut self, group: impl Into<String>) -> Self {
        self.readers.push(group.into());
        self
    }

    /// This topic, and the one for its dead letters.
    pub(crate) fn with_dead_letters(&self) -> Vec<Self> {
        let dead_letters = self.dead_letters.then(|| Self {
            partitions: 1,
            ..Self::new(dead_letters(&self.name)).replication(self.replication).without_dead_letters()
        });
        std::iter::once(self.clone()).chain(dead_letters).collect()
    }
}

/// Whether a topic can have that name. One that cannot be is not to be asked for: the client breaks on some of them.
pub(crate) fn is_possible(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=249).contains(&name.len()) && name.bytes().all(allowed) && !matches!(name, "." | "..")
}

/// The topic for the dead letters of a topic.
pub(crate) fn dead_letters(topic: &str) -> String {
    format!("{topic}.dlt")
}

fn all(topics: &[TopicSpec]) -> Vec<TopicSpec> {
    topics.iter().flat_map(TopicSpec::with_dead_letters).collect()
}

/// Creates the topics that do not exist.
pub(crate) async fn ensure(settings: &Settings, topics: &[TopicSpec]) -> Result<(), String> {
    let mut all = all(topics);
    let present = shapes(settings, all.iter().map(|topic| topic.name.clone()).collect()).await?;
    all.retain(|topic| !present.contains_key(&topic.name));
    if all.is_empty() {
        return Ok(());
    }
    let retentions: Vec<Option<String>> =
        all.iter().map(|topic| topic.retention.map(|retention| retention.as_millis().to_string())).collect();
    let new: Vec<NewTopic<'_>> = all
        .iter()
        .zip(&retentions)
        .map(|(topic, retention)| {
            let new = NewTopic::new(&topic.name, topic.partitions, TopicReplication::Fixed(topic.replication));
            match retention {
                Some(retention) => new.set("retention.ms", retention),
                None => new,
            }
        })
        .collect();
    let admin: AdminClient<DefaultClientContext> = settings.probe().create().map_err(|error| error.to_string())?;
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE));
    let answers = admin.create_topics(&new, &options).await.map_err(|error| error.to_string())?;
    for answer in answers {
        match answer {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(format!("the broker does not create topic `{topic}`: {code}")),
        }
    }
    // Created is not yet known everywhere.
    let asked = ask(settings, all.into_iter().map(|topic| topic.name).collect()).await?;
    match asked.absent.iter().next() {
        None => Ok(()),
        Some(topic) => Err(format!("topic `{topic}` was created, but the broker does not know it")),
    }
}

/// What is not as it should be, one line a fault.
pub(crate) async fn check(settings: &Settings, topics: &[TopicSpec]) -> Result<Vec<String>, String> {
    let all = all(topics);
    let asked = ask(settings, all.iter().map(|topic| topic.name.clone()).collect()).await?;
    let mut faults = vec![];
    for topic in &all {
        let name = &topic.name;
        let Some(shape) = asked.present.get(name) else {
            faults.push(format!("there is no topic `{name}`: create it"));
            continue;
        };
        if shape.partitions < topic.partitions {
            faults.push(format!("topic `{name}` has {} partitions, not {}", shape.partitions, topic.partitions));
        }
        if shape.replication < topic.replication {
            faults.push(format!("topic `{name}` is kept {} times, not {}", shape.replication, topic.replication));
        }
    }
    let kept: Vec<&TopicSpec> =
        all.iter().filter(|topic| topic.retention.is_some() && asked.present.contains_key(&topic.name)).collect();
    if !kept.is_empty() {
        faults.extend(check_retention(settings, &kept).await?);
    }
    Ok(faults)
}

async fn check_retention(settings: &Settings, topics: &[&TopicSpec]) -> Result<Vec<String>, String> {
    let names: Vec<&str> = topics.iter().map(|topic| topic.name.as_str()).collect();
    let mut faults = vec![];
    for (topic, found) in topics.iter().zip(retentions(settings, &names).await?) {
        if let (Some(wanted), Some(found)) = (topic.retention, found)
            && found < wanted
        {
            faults.push(format!("topic `{}` keeps its records for {found:?}, not {wanted:?}", topic.name));
        }
    }
    Ok(faults)
}

/// How long each topic keeps its records; `None` is for ever.
pub(crate) async fn retentions(settings: &Settings, topics: &[&str]) -> Result<Vec<Option<Duration>>, String> {
    let admin: AdminClient<DefaultClientContext> = settings.probe().create().map_err(|error| error.to_string())?;
    let resources: Vec<ResourceSpecifier<'_>> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let options = AdminOptions::new().request_timeout(Some(PATIENCE));
    let answers = admin.describe_configs(&resources, &options).await.map_err(|error| error.to_string())?;
    let retention = |(topic, answer): (&&str, Result<ConfigResource, RDKafkaErrorCode>)| {
        let config = answer.map_err(|code| format!("the broker does not say how topic `{topic}` is set up: {code}"))?;
        let millis = config.get("retention.ms").and_then(|entry| entry.value.as_deref()?.parse::<i64>().ok());
        // -1 is for ever.
        Ok(millis.and_then(|millis| u64::try_from(millis).ok()).map(Duration::from_millis))
    };
    topics.iter().zip(answers).map(retention).collect()
}
