//! An event as a row, there and back.

use super::OutboxError;
use saga_core::{Encoded, message::Message, transport::Outgoing};
use sqlx::{Row as _, postgres::PgRow};
use std::{collections::BTreeMap, time::Duration};
use uuid::Uuid;

const TRACE_PARENT: &str = "traceparent";
/// What a transport needs for a header around its name and its value, and for the message around all: no less than any known one.
const AROUND_A_HEADER: usize = 16;
const AROUND_A_MESSAGE: usize = 128;

/// An event that was read.
pub(super) struct Row {
    pub(super) shard: i16,
    pub(super) seq: i64,
    /// How old it was when it was read, by the database's clock.
    pub(super) age: Duration,
    /// Whether it comes behind a parked one.
    pub(super) behind: bool,
    /// Whether it was parked itself, and others wait behind it.
    pub(super) followed: bool,
    /// Or why it makes no message.
    pub(super) outgoing: Result<Outgoing, String>,
    pub(super) topic: String,
    pub(super) key: String,
}

impl Row {
    pub(super) fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let (topic, key): (String, String) = (row.try_get("aggregatetype")?, row.try_get("aggregateid")?);
        let mut headers = map(row.try_get("headers")?);
        let traceparent: Option<String> = row.try_get("traceparent")?;
        if let (Ok(headers), Some(traceparent)) = (&mut headers, traceparent) {
            headers.insert(TRACE_PARENT.into(), traceparent);
        }
        let outgoing = match (headers, map(row.try_get("extensions")?)) {
            (Ok(headers), Ok(extensions)) => {
                let message = Message {
                    id: row.try_get::<Uuid, _>("id")?.to_string(),
                    kind: row.try_get("type")?,
                    source: row.try_get("source")?,
                    subject: row.try_get("subject")?,
                    time: row.try_get("time")?,
                    key: key.clone(),
                    extensions,
                    headers,
                    content_type: row.try_get("content_type")?,
                    data: row.try_get("payload")?,
                };
                Ok(Outgoing { topic: topic.clone(), message })
            }
            (Err(error), _) => Err(format!("its headers cannot be read: {error}")),
            (_, Err(error)) => Err(format!("its extensions cannot be read: {error}")),
        };
        let seq: i64 = row.try_get("seq")?;
        let parked_from: Option<i64> = row.try_get("parked_from")?;
        Ok(Self {
            shard: row.try_get("shard")?,
            seq,
            age: Duration::try_from_secs_f64(row.try_get("age")?).unwrap_or_default(),
            behind: parked_from.is_some_and(|from| from < seq),
            followed: parked_from.is_some_and(|from| from > seq),
            outgoing,
            topic,
            key,
        })
    }
}

#[cfg(test)]
impl Row {
    /// An event of shard 0.
    pub(super) fn of_test(topic: &str, seq: i64, message: Message) -> Self {
        let key = message.key.clone();
        let outgoing = Ok(Outgoing { topic: topic.into(), message });
        let (shard, age, topic) = (0, Duration::ZERO, topic.into());
        Self { shard, seq, age, behind: false, followed: false, outgoing, topic, key }
    }
}

fn map(text: Option<&str>) -> Result<BTreeMap<String, String>, serde_json::Error> {
    text.map_or_else(|| Ok(BTreeMap::new()), serde_json::from_str)
}

/// What is stored otherwise than it stands in a message: its headers but `traceparent` and its extensions as text, and neither if there are none.
pub(super) struct Columns {
    pub(super) id: Uuid,
    pub(super) traceparent: Option<String>,
    pub(super) headers: Option<String>,
    pub(super) extensions: Option<String>,
}

impl Columns {
    pub(super) fn of(id: Uuid, message: &Message) -> Result<Self, OutboxError> {
        let written = |map: &BTreeMap<&String, &String>| match map.is_empty() {
            true => Ok(None),
            false => Encoded::of(map).map(|text| Some(text.as_str().to_owned())),
        };
        let traceparent = message.headers.get(TRACE_PARENT).cloned();
        let headers = message.headers.iter().filter(|(name, _)| *name != TRACE_PARENT).collect();
        let (headers, extensions) = (written(&headers)?, written(&message.extensions.iter().collect())?);
        Ok(Self { id, traceparent, headers, extensions })
    }
}

/// How many bytes a message has at the broker, at most.
pub(super) fn bytes(message: &Message) -> usize {
    let Message { id, kind, source, subject, key, extensions, headers, content_type, data, .. } = message;
    let attributes = [id, kind, source, content_type].map(|value| value.len() + AROUND_A_HEADER).iter().sum::<usize>()
        + subject.as_ref().map_or(0, |subject| subject.len() + AROUND_A_HEADER);
    let maps = extensions.iter().chain(headers).map(|(name, value)| name.len() + value.len() + AROUND_A_HEADER);
    AROUND_A_MESSAGE + attributes + maps.sum::<usize>() + key.len() + data.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_of_a_message_counts() {
        let mut message = Message::event("orders", "order.confirmed.v1", "order-1", &Encoded::null());
        let before = bytes(&message);
        message.data.extend([0; 1000]);
        message.headers.insert("baggage".into(), "b".repeat(500));
        assert_eq!(bytes(&message), before + 1000 + 507 + AROUND_A_HEADER);
    }
}
