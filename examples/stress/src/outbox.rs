//! What the outbox costs, against a bare producer of the same events.

use crate::{Result, arena::Arena};
use saga_core::{
    Encoded,
    message::Message,
    transport::{Outgoing, Transport},
};
use saga_kafka::{KafkaTransport, TopicSpec};
use saga_postgres::PgOutbox;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{MissedTickBehavior, interval, sleep};

const TOPIC: &str = "outbox";
/// How many events are published as fast as it goes, and how many at a pace.
const BACKLOG: u64 = 100_000;
const PACED: u64 = 5_000;
/// One transaction of one event every other millisecond.
const PACE: Duration = Duration::from_millis(2);

pub struct Figures {
    /// Events a second that a producer publishes by itself, 500 a call.
    pub producer: f64,
    /// The same through the outbox: read, published, deleted.
    pub relay: f64,
    /// From the insert to the broker's acknowledgement, at the pace.
    pub lag_p50: Duration,
    pub lag_p99: Duration,
}

pub async fn measure(arena: &Arena, transport: &Arc<dyn Transport>, partitions: i32) -> Result<Figures> {
    let topic = TopicSpec::new(TOPIC).partitions(partitions);
    KafkaTransport::new(&arena.places.brokers)?.ensure_topics(&[topic]).await?;
    let outbox = PgOutbox::new(arena.ledger.clone(), "figures");
    outbox.migrate().await?;
    bare(transport, 20_000).await?; // until the broker is warm
    let producer = bare(transport, BACKLOG).await?;

    let relay = outbox.relay(transport.clone()).start().await?;
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for number in 0..PACED {
        ticks.tick().await;
        let mut tx = arena.ledger.begin().await?;
        outbox.publish_message(&mut tx, TOPIC, &event(number)).await?;
        outbox.commit(tx).await?;
    }
    until_published(&relay, PACED).await;
    let latency = relay.numbers().latency;
    relay.stop().await;

    let mut tx = arena.ledger.begin().await?;
    for number in 0..BACKLOG {
        outbox.publish_message(&mut tx, TOPIC, &event(number)).await?;
    }
    tx.commit().await?;
    let began = Instant::now();
    let relay = outbox.relay(transport.clone()).start().await?;
    until_published(&relay, BACKLOG).await;
    let relayed = BACKLOG as f64 / began.elapsed().as_secs_f64();
    relay.stop().await;
    let at = |share| latency.at(share).ok_or("nothing was measured");
    Ok(Figures { producer, relay: relayed, lag_p50: at(0.5)?, lag_p99: at(0.99)? })
}

async fn bare(transport: &Arc<dyn Transport>, events: u64) -> Result<f64> {
    let outgoing = |number| Outgoing { topic: TOPIC.into(), message: event(number) };
    let events: Vec<Outgoing> = (0..events).map(outgoing).collect();
    let began = Instant::now();
    for part in events.chunks(500) {
        transport.publish(part).await.into_iter().collect::<Result<Vec<()>, _>>()?;
    }
    Ok(events.len() as f64 / began.elapsed().as_secs_f64())
}

fn event(number: u64) -> Message {
    let mut event = Message::event("figures", "counted.v1", format!("key-{}", number % 1_000), &Encoded::null());
    // Blanks around a number are JSON.
    event.data = format!("{number:>200}").into_bytes();
    event
}

async fn until_published(relay: &saga_postgres::outbox::Relay, events: u64) {
    while relay.numbers().published < events {
        sleep(Duration::from_millis(1)).await;
    }
}
