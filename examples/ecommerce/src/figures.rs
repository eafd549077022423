//! What the shop counts, besides requests: orders and how long they take, reservations, payments, and what waits in the outbox and in Kafka.
//!
//! Figures are for watching. A process that dies forgets what it has not told yet, and a handler whose transaction was rolled back counts again; what must be right is in the books.

use crate::telemetry::DURATIONS;
use opentelemetry::{
    KeyValue, global,
    metrics::{Counter, Histogram, Meter},
};
use saga_core::{Class, SagaId, StepError};
use saga_kafka::{KafkaMetrics, KafkaTransport};
use saga_postgres::{PgOutbox, outbox::Relay};
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::time::sleep;

/// How often it is asked what waits.
const OFTEN: Duration = Duration::from_secs(1);
/// Stands for delays that are beyond the last bucket.
const TOO_LONG: Duration = Duration::from_secs(2 * 60 * 60);

fn meter() -> Meter {
    global::meter("ecommerce")
}

/// Is there from the start, as 0.
fn counter(name: &'static str, what: &'static str) -> Counter<u64> {
    let counter = meter().u64_counter(name).with_description(what).build();
    counter.add(0, &[]);
    counter
}

fn durations(name: &'static str, what: &'static str) -> Histogram<f64> {
    meter().f64_histogram(name).with_unit("s").with_description(what).with_boundaries(DURATIONS.into()).build()
}

/// Of the order service.
pub struct Orders {
    pub requests: Counter<u64>,
    confirmed: Counter<u64>,
    cancelled: Counter<u64>,
    latency: Histogram<f64>,
}

impl Orders {
    pub fn new() -> Self {
        Self {
            requests: counter("order_request", "orders taken, each once"),
            confirmed: counter("order_confirmed", "orders that were confirmed"),
            cancelled: counter("order_cancelled", "orders that were cancelled"),
            latency: durations("order_latency", "from an order's beginning to its final state"),
        }
    }

    /// An order has its final state. When it began is in the saga's id.
    pub fn ended(&self, order: SagaId, state: &str) {
        let counter = if state == "CONFIRMED" { &self.confirmed } else { &self.cancelled };
        counter.add(1, &[]);
        if let Some((seconds, nanos)) = order.as_uuid().get_timestamp().map(|began| began.to_unix())
            && let Ok(took) = SystemTime::now().duration_since(UNIX_EPOCH + Duration::new(seconds, nanos))
        {
            self.latency.record(took.as_secs_f64(), &[KeyValue::new("state", state.to_owned())]);
        }
    }
}

/// Of the inventory.
pub struct Reservations {
    held: Counter<u64>,
    conflicts: Counter<u64>,
    pub released: Counter<u64>,
}

impl Reservations {
    pub fn new() -> Self {
        Self {
            held: counter("reservation_hold_success", "reservations"),
            conflicts: counter("reservation_hold_conflict", "reservations refused: out of stock"),
            released: counter("reservation_release", "reservations given back"),
        }
    }

    pub fn count<T>(&self, reserved: &Result<T, StepError>) {
        count(reserved, &self.held, &self.conflicts);
    }
}

/// Of the payment service.
pub struct Payments {
    success: Counter<u64>,
    fail: Counter<u64>,
}

impl Payments {
    pub fn new() -> Self {
        Self {
            success: counter("payment_success", "payments taken"),
            fail: counter("payment_fail", "payments declined"),
        }
    }

    pub fn count<T>(&self, paid: &Result<T, StepError>) {
        count(paid, &self.success, &self.fail);
    }
}

/// A yes or a no; what is to be tried again is neither.
fn count<T>(answer: &Result<T, StepError>, yes: &Counter<u64>, no: &Counter<u64>) {
    match answer {
        Ok(_) => yes.add(1, &[]),
        Err(error) if error.class() == Some(Class::Fail) => no.add(1, &[]),
        Err(_) => {}
    }
}

/// What waits in an outbox, and how long events took from their creation to the broker's answer. Until it is dropped.
pub async fn watch(outbox: &PgOutbox, relay: &Relay) {
    let meter = meter();
    let gauge = |name, what| meter.u64_gauge(name).with_description(what).build();
    let waiting = gauge("outbox_waiting", "events that have not been published");
    let parked = gauge("outbox_parked", "events that the broker refused");
    let oldest = meter.f64_gauge("outbox_oldest").with_unit("s").with_description("the age of the oldest that waits");
    let oldest = oldest.build();
    let mut before = relay.numbers().latency;
    let bounds = before.buckets().filter_map(|(bound, _)| Some(bound?.as_secs_f64())).collect();
    let delay = meter.f64_histogram("outbox_delay").with_unit("s").with_boundaries(bounds);
    let delay = delay.with_description("from an event's creation to its publication").build();
    loop {
        match outbox.lag().await {
            Ok(lag) => {
                waiting.record(lag.waiting, &[]);
                parked.record(lag.parked, &[]);
                oldest.record(lag.oldest.unwrap_or_default().as_secs_f64(), &[]);
            }
            Err(error) => tracing::warn!("the outbox does not say what waits in it: {error}"),
        }
        let now = relay.numbers().latency;
        for ((bound, count), (_, earlier)) in now.buckets().zip(before.buckets()) {
            for _ in earlier..count {
                delay.record(bound.unwrap_or(TOO_LONG).as_secs_f64(), &[]);
            }
        }
        before = now;
        sleep(OFTEN).await;
    }
}

/// What goes over Kafka.
pub fn of_kafka(transport: &Arc<KafkaTransport>) {
    let meter = meter();
    let counted = |name, what, read: fn(KafkaMetrics) -> u64| {
        let transport = transport.clone();
        let counter = meter.u64_observable_counter(name).with_description(what);
        counter.with_callback(move |to| to.observe(read(transport.metrics()), &[])).build();
    };
    counted("kafka_published", "messages that the broker took", |kafka| kafka.published);
    counted("kafka_not_published", "messages that it did not take", |kafka| kafka.not_published);
    counted("kafka_consumed", "messages that were dealt with", |kafka| kafka.consumed);
    counted("kafka_dead_letters", "messages that nobody could deal with", |kafka| kafka.dead_letters);
    let transport = transport.clone();
    let lag = meter.u64_observable_gauge("kafka_consumer_lag").with_description("messages that wait for a group");
    let lag = lag.with_callback(move |to| {
        for (at, behind) in transport.metrics().lag {
            let partition = KeyValue::new("partition", i64::from(at.partition));
            to.observe(behind, &[KeyValue::new("group", at.group), KeyValue::new("topic", at.topic), partition]);
        }
    });
    lag.build();
}
