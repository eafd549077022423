//! How fast one relay is, when the broker is not what it waits for.

use async_trait::async_trait;
use saga_core::{
    Encoded,
    message::Message,
    transport::{Consumer, Outgoing, PublishError, Receiver, Subscription, Transport, TransportError},
};
use saga_postgres::PgOutbox;
use serde::Serialize;
use sqlx::{PgPool, postgres::PgPoolOptions};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// How many bytes of data an event has, more or less.
const DATA: usize = 200;
/// How many transactions of one event are written at a steady pace, and how many a second.
const PACED: u64 = 5_000;
const PACE: u64 = 1_000;

#[derive(Serialize)]
pub(crate) struct Speed {
    pub(crate) backlog: u64,
    pub(crate) drained_per_s: f64,
    pub(crate) paced_per_s: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

pub(crate) async fn measure(url: &str, backlog: u64, lanes: u16) -> Speed {
    let pool = PgPoolOptions::new().max_connections(8).connect(url).await.unwrap();
    let outbox = PgOutbox::options(pool.clone(), "speed").schema("speed").build().unwrap();
    outbox.migrate().await.unwrap();
    let (paced_per_s, p50_ms, p99_ms) = pace(&outbox, &pool, lanes).await;
    let drained_per_s = drain(&outbox, &pool, backlog, lanes).await;
    Speed { backlog, drained_per_s, paced_per_s, p50_ms, p99_ms }
}

fn event(number: u64) -> Message {
    let mut event = Message::event("speed", "speed.v1", format!("key-{}", number % 1_000), &Encoded::null());
    // Blanks around a number are JSON.
    event.data = format!("{number:>DATA$}").into_bytes();
    event
}

/// A broker that has everything as soon as it is told.
struct Quick;

#[async_trait]
impl Transport for Quick {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        vec![Ok(()); batch.len()]
    }

    async fn subscribe(&self, _: Subscription, _: Arc<dyn Receiver>) -> Result<Box<dyn Consumer>, TransportError> {
        Err(TransportError("it keeps nothing".into()))
    }

    fn system(&self) -> &'static str {
        "local"
    }

    fn max_message_bytes(&self) -> usize {
        1_000_000
    }
}

async fn drain(outbox: &PgOutbox, pool: &PgPool, backlog: u64, lanes: u16) -> f64 {
    let write = |writer: u64| async move {
        let mut tx = pool.begin().await.unwrap();
        for number in (writer..backlog).step_by(4) {
            outbox.publish_message(&mut tx, "speed", &event(number)).await.unwrap();
        }
        tx.commit().await.unwrap();
    };
    futures::future::join_all((0..4).map(write)).await;
    let began = Instant::now();
    let relay = outbox.relay(Arc::new(Quick)).lanes(lanes).start().await.unwrap();
    while relay.numbers().published < backlog {
        sleep(Duration::from_millis(1)).await;
    }
    let took = began.elapsed();
    relay.stop().await;
    backlog as f64 / took.as_secs_f64()
}

async fn pace(outbox: &PgOutbox, pool: &PgPool, lanes: u16) -> (f64, f64, f64) {
    let relay = outbox.relay(Arc::new(Quick)).lanes(lanes).start().await.unwrap();
    let began = Instant::now();
    let mut ticks = interval(Duration::from_micros(1_000_000 / PACE));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 0..PACED {
        ticks.tick().await;
        let mut tx = pool.begin().await.unwrap();
        outbox.publish_message(&mut tx, "speed", &event(number)).await.unwrap();
        outbox.commit(tx).await.unwrap();
    }
    let paced = PACED as f64 / began.elapsed().as_secs_f64();
    while relay.numbers().published < PACED {
        sleep(Duration::from_millis(1)).await;
    }
    let latency = relay.numbers().latency;
    relay.stop().await;
    let at = |share: f64| latency.at(share).map_or(f64::INFINITY, |latency| latency.as_secs_f64() * 1000.0);
    (paced, at(0.5), at(0.99))
}
