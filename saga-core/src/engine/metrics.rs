//! What there is to measure, by OpenTelemetry's API; without an SDK nothing is.
//!
//! The guide's page on traces and metrics says what each is. Those of all processes are looked up every 15 seconds.

use super::{Shared, worker::SELDOM};
use crate::{
    machine::Status,
    message::Op,
    store::{Census, DefinitionId},
    trace::scope,
};
use opentelemetry::{
    KeyValue, StringValue, global,
    metrics::{Counter, Gauge, Histogram},
};
use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep};

const BETWEEN_LOOKS: Duration = Duration::from_secs(15);
/// And if they take long.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// Seconds: from what a step takes in memory to what a saga takes that waits for a person.
const BOUNDARIES: [f64; 17] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0, 3600.0];

pub(crate) struct Metrics {
    started: Counter<u64>,
    ended: Counter<u64>,
    duration: Histogram<f64>,
    attempts: Histogram<f64>,
    active: Gauge<u64>,
    parked: Gauge<u64>,
    oldest: Gauge<f64>,
    unclaimable: Gauge<u64>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let meter = global::meter_with_scope(scope());
        let seconds = |name| meter.f64_histogram(name).with_unit("s").with_boundaries(BOUNDARIES.into()).build();
        Self {
            started: meter.u64_counter("saga.started").build(),
            ended: meter.u64_counter("saga.ended").build(),
            duration: seconds("saga.duration"),
            attempts: seconds("saga.step.duration"),
            active: meter.u64_gauge("saga.active").build(),
            parked: meter.u64_gauge("saga.parked").build(),
            oldest: meter.f64_gauge("saga.oldest").with_unit("s").build(),
            unclaimable: meter.u64_gauge("saga.unclaimable").build(),
        }
    }

    pub(crate) fn started(&self, name: &'static str) {
        self.started.add(1, &[KeyValue::new("saga.name", name)]);
    }

    pub(crate) fn ended(&self, name: &StringValue, status: Status, age: Duration) {
        let outcome = match status {
            Status::Completed => "completed",
            Status::RolledBack => "rolled_back",
            Status::Parked => "parked",
            Status::Running | Status::Compensating => return,
        };
        let attributes = [KeyValue::new("saga.name", name.clone()), KeyValue::new("saga.outcome", outcome)];
        self.ended.add(1, &attributes);
        self.duration.record(age.as_secs_f64(), &attributes);
    }

    pub(crate) fn attempt(
        &self,
        name: &StringValue,
        step: &StringValue,
        op: Op,
        outcome: &'static str,
        took: Duration,
    ) {
        let op = if op == Op::Do { "do" } else { "undo" };
        let attributes = [
            KeyValue::new("saga.name", name.clone()),
            KeyValue::new("saga.step", step.clone()),
            KeyValue::new("saga.op", op),
            KeyValue::new("saga.outcome", outcome),
        ];
        self.attempts.record(took.as_secs_f64(), &attributes);
    }
}

/// Looks from time to time how all sagas stand.
pub(crate) async fn take_census(shared: Arc<Shared>) {
    let names: BTreeSet<String> = shared.definitions.iter().map(|definition| definition.name.clone()).collect();
    let names: Vec<String> = names.into_iter().collect();
    let mut unclaimable = HashSet::new();
    loop {
        let (began, active) = (Instant::now(), shared.in_memory().len());
        shared.metrics.active.record(active.try_into().unwrap_or(u64::MAX), &[]);
        match shared.store.census(&names).await {
            Ok(census) => {
                for (name, Census { parked, oldest }) in names.iter().zip(census) {
                    let attributes = [KeyValue::new("saga.name", name.clone())];
                    shared.metrics.parked.record(parked, &attributes);
                    shared.metrics.oldest.record(oldest.unwrap_or_default().as_secs_f64(), &attributes);
                }
            }
            Err(error) => tracing::warn!(%error, "cannot look how sagas stand"),
        }
        match shared.store.unclaimable().await {
            Ok(definitions) => tell_of_the_unclaimable(&shared.metrics, definitions, &mut unclaimable),
            Err(error) => tracing::warn!(%error, "cannot look for sagas that nobody can run"),
        }
        // Workers that started together spread out.
        let pause = (SELDOM * began.elapsed()).clamp(BETWEEN_LOOKS, LONGEST_PAUSE);
        sleep(pause.mul_f64(0.75 + 0.5 * fastrand::f64())).await;
    }
}

/// Says which due sagas nobody can run, once each time that it comes to that.
fn tell_of_the_unclaimable(metrics: &Metrics, now: Vec<DefinitionId>, before: &mut HashSet<DefinitionId>) {
    let now: HashSet<DefinitionId> = now.into_iter().collect();
    for definition in now.union(before) {
        let DefinitionId { name, version } = definition;
        let attributes = [KeyValue::new("saga.name", name.clone()), KeyValue::new("saga.version", i64::from(*version))];
        metrics.unclaimable.record(now.contains(definition).into(), &attributes);
        if !before.contains(definition) {
            tracing::warn!(
                name,
                version,
                "sagas are due that no living worker has registered: keep the code of a version until its last saga has ended"
            );
        }
    }
    *before = now;
}
