//! What the books say when all is over.

use crate::{
    Result,
    arena::Arena,
    purchase::{COMMANDS, PARTICIPANTS, REPLIES, SHOP},
};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use std::{collections::BTreeMap, time::Duration};
use uuid::Uuid;

/// Each saga's end against the effects in the ledger.
#[derive(Debug, Default)]
pub struct Verdict {
    pub sagas: usize,
    pub completed: usize,
    pub rolled_back: usize,
    pub parked: usize,
    pub unfinished: usize,
    /// What is wrong, in words.
    pub wrong: Vec<String>,
}

/// As the store numbers them.
const STATUSES: [&str; 5] = ["running", "compensating", "parked", "completed", "rolled back"];

impl Verdict {
    pub async fn of(arena: &Arena) -> Result<Self> {
        let statuses: Vec<(Uuid, i16)> =
            sqlx::query_as("SELECT id, status FROM saga.saga").fetch_all(&arena.sagas).await?;
        let effects: Vec<(Uuid, String, String, i64)> =
            sqlx::query_as("SELECT saga, step, op, count(*) FROM ledger GROUP BY 1, 2, 3")
                .fetch_all(&arena.ledger)
                .await?;
        let mut books: BTreeMap<Uuid, BTreeMap<String, i64>> = BTreeMap::new();
        for (saga, step, op, count) in effects {
            books.entry(saga).or_default().insert(format!("{op} {step}"), count);
        }
        let mut verdict = Self { sagas: statuses.len(), ..Self::default() };
        for (saga, status) in statuses {
            let book = books.remove(&saga).unwrap_or_default();
            let effect = |name: &str| book.get(name).copied().unwrap_or(0);
            let (reserved, released) = (effect("do reserve"), effect("undo reserve"));
            let (charged, delivered) = (effect("do charge"), effect("do deliver"));
            let status = usize::try_from(status).ok().and_then(|status| STATUSES.get(status)).copied();
            let balances = match status {
                Some("completed") => {
                    verdict.completed += 1;
                    (reserved, released, charged, delivered) == (1, 0, 1, 1)
                }
                Some("rolled back") => {
                    verdict.rolled_back += 1;
                    reserved == released && reserved <= 1 && (charged, delivered) == (0, 0)
                }
                Some("parked") => {
                    verdict.parked += 1;
                    false
                }
                _ => {
                    verdict.unfinished += 1;
                    false
                }
            };
            if !balances {
                verdict.wrong.push(format!("saga {saga} is {status:?}, and its effects are {book:?}"));
            }
        }
        verdict
            .wrong
            .extend(books.into_iter().map(|(saga, book)| format!("no saga {saga}, but its effects are {book:?}")));
        Ok(verdict)
    }
}

/// How many records a group has still to handle, in each topic.
pub fn lag(brokers: &str) -> Result<BTreeMap<String, i64>> {
    let groups = PARTICIPANTS.iter().zip(COMMANDS).chain([(&SHOP, REPLIES)]);
    groups.map(|(group, topic)| Ok((topic.to_owned(), lag_of(brokers, group, topic)?))).collect()
}

fn lag_of(brokers: &str, group: &str, topic: &str) -> Result<i64> {
    const PATIENCE: Duration = Duration::from_secs(20);
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", brokers).set("group.id", group).create()?;
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition_range(topic, 0, crate::faults::PARTITIONS - 1);
    let committed = consumer.committed_offsets(partitions, PATIENCE)?;
    let mut lag = 0;
    for partition in committed.elements() {
        let (low, high) = consumer.fetch_watermarks(topic, partition.partition(), PATIENCE)?;
        lag += high - if let Offset::Offset(offset) = partition.offset() { offset } else { low };
    }
    Ok(lag)
}

/// How many records a topic has.
pub fn records(brokers: &str, topic: &str) -> Result<i64> {
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let (low, high) = consumer.fetch_watermarks(topic, 0, Duration::from_secs(20))?;
    Ok(high - low)
}
