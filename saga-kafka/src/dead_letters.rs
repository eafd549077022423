//! Records that cannot be handled, as they came, with the reason.

use crate::{binding, publisher::Publisher, topics};
use chrono::{SecondsFormat, Utc};
use rdkafka::{
    Message as _,
    message::{Header, OwnedHeaders, OwnedMessage},
};
use std::time::Duration;
use tokio::time::sleep;

const PAUSE: Duration = Duration::from_secs(1);
/// A reason is read by people.
const LONGEST_REASON: usize = 1000;
/// What is left of `message.max.bytes` for everything besides headers and value.
const MARGIN: usize = 1024;

/// Publishes a record to its topic's dead letters, and does not return before the broker has it.
pub(crate) async fn bury(publisher: &Publisher, record: &OwnedMessage, reason: &str) {
    let topic = topics::dead_letters(record.topic());
    tracing::error!(
        topic = record.topic(),
        partition = record.partition(),
        offset = record.offset(),
        reason,
        "a dead letter"
    );
    let largest = publisher.max_message_bytes();
    let mut cut = false;
    loop {
        let (headers, room) = headers(record, reason, largest, cut);
        let value = record.payload().map(|value| &value[..value.len().min(if cut { room.min(MARGIN) } else { room })]);
        match publisher.publish_raw(&topic, key(record, largest, cut), value, headers).await {
            Ok(()) => return,
            Err(error) => {
                tracing::error!(topic, %error, "a dead letter could not be published yet, and its partition waits");
                // A broker that takes less than the client's limit.
                cut |= matches!(error, saga_core::transport::PublishError::Refused(_));
            }
        }
        sleep(PAUSE).await;
    }
}

/// The record's key, unless it fills a message by itself.
fn key(record: &OwnedMessage, largest: usize, cut: bool) -> Option<&[u8]> {
    record.key().filter(|key| key.len() <= if cut { MARGIN } else { largest / 2 })
}

/// The record's headers and ours, and how many bytes that leaves for the value. Headers that fill a message by themselves are left out.
fn headers(record: &OwnedMessage, reason: &str, largest: usize, cut: bool) -> (OwnedHeaders, usize) {
    let end = reason.floor_char_boundary(LONGEST_REASON);
    let (partition, offset) = (record.partition().to_string(), record.offset().to_string());
    let time = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
    let ours = [
        ("saga-dead-letter-reason", &reason[..end]),
        ("saga-dead-letter-topic", record.topic()),
        ("saga-dead-letter-partition", partition.as_str()),
        ("saga-dead-letter-offset", offset.as_str()),
        ("saga-dead-letter-time", time.as_str()),
    ];
    let taken = MARGIN + LONGEST_REASON + record.topic().len() + key(record, largest, cut).map_or(0, <[u8]>::len);
    let mut room = largest.saturating_sub(taken);
    let mut all = OwnedHeaders::new();
    for header in binding::record_headers(record) {
        let size = header.key.len() + header.value.map_or(0, <[u8]>::len) + 10;
        if size <= if cut { MARGIN.min(room) } else { room } {
            room -= size;
            all = all.insert(header);
        }
    }
    for (key, value) in ours {
        all = all.insert(Header { key, value: Some(value) });
    }
    (all, room)
}
