//! Somebody who writes to our topics what nobody should: repeats, old records anew, and rubbish.

use crate::{
    Result,
    purchase::{COMMANDS, REPLIES},
};
use rdkafka::{
    ClientConfig, Message,
    consumer::{Consumer, StreamConsumer},
    message::{Header, Headers, OwnedHeaders, OwnedMessage},
    producer::{FutureProducer, FutureRecord},
};
use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// What was done so far.
#[derive(Debug, Default)]
pub struct Counts {
    pub repeated: AtomicU64,
    pub corrupted: AtomicU64,
}

/// Reads along, and for one record in ten writes one of the last thousand again; for one in fifty writes it broken. Never ends by itself.
pub async fn make(brokers: &str, counts: &Counts) -> Result<()> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    let producer: FutureProducer = config.create()?;
    let consumer: StreamConsumer = config.set("group.id", "mischief").set("auto.offset.reset", "earliest").create()?;
    let topics: Vec<&str> = COMMANDS.iter().copied().chain([REPLIES]).collect();
    consumer.subscribe(&topics)?;
    let mut seen: VecDeque<OwnedMessage> = VecDeque::new();
    loop {
        let Ok(record) = consumer.recv().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        seen.push_back(record.detach());
        if seen.len() > 1000 {
            seen.pop_front();
        }
        let Some(old) = seen.get(fastrand::usize(..seen.len())) else { continue };
        if fastrand::u8(..10) == 0 && again(&producer, old, None).await {
            counts.repeated.fetch_add(1, Ordering::Relaxed);
        }
        if fastrand::u8(..50) == 0 && again(&producer, old, Some(fastrand::u8(..4))).await {
            counts.corrupted.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes a record again, as it was or broken in one of four ways, each of which makes it a dead letter.
async fn again(producer: &FutureProducer, old: &OwnedMessage, broken: Option<u8>) -> bool {
    let mut headers = OwnedHeaders::new();
    for header in old.headers().into_iter().flat_map(Headers::iter) {
        let without = match broken {
            Some(0) => "ce_sagaid",
            Some(1) => "ce_specversion",
            Some(2) => "ce_sagaop",
            _ => "",
        };
        if header.key != without {
            headers = headers.insert(Header { key: header.key, value: header.value });
        }
    }
    if broken == Some(3) {
        headers = OwnedHeaders::new().insert(Header { key: "ce_id", value: Some(&[0xff, 0xfe]) });
    }
    let record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(old.topic())
        .key(old.key().unwrap_or_default())
        .payload(old.payload().unwrap_or_default())
        .headers(headers);
    producer.send(record, Duration::from_secs(60)).await.is_ok()
}
