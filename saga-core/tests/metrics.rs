//! What the engine counts.

use opentelemetry::{KeyValue, global};
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, PeriodicReader, SdkMeterProvider,
    data::{AggregatedMetrics, MetricData},
};
use saga_core::{Cx, Engine, MemoryStore, Out, Outcome, Retry, Saga, SagaBuilder, StepError};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::sleep;

struct Order;

impl Saga for Order {
    const NAME: &'static str = "order";
    const VERSION: u32 = 1;
    type Input = u32;
    type Output = ();
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        saga.pivot("pay").retry(Retry::fixed(Duration::from_secs(1)).attempts(2)).run(pay)
    }
}

async fn pay(cx: Cx<()>, order: u32) -> Result<(), StepError> {
    match order {
        0 => Err(StepError::fail("declined")),
        1 => Err(StepError::unknown("who knows")),
        _ if cx.attempt() == 1 => Err(StepError::retry("busy")),
        _ => Ok(()),
    }
}

/// Each metric with its attributes, and what it says: a sum, a gauge, or how often a histogram was told something.
fn exported(exporter: &InMemoryMetricExporter) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    let metrics = exporter.get_finished_metrics().unwrap();
    for metric in metrics.last().unwrap().scope_metrics().flat_map(|scope| scope.metrics()) {
        let mut note = |attributes: &mut dyn Iterator<Item = &KeyValue>, value: f64| {
            let mut attributes: Vec<String> = attributes.map(|kv| format!("{}={}", kv.key, kv.value)).collect();
            attributes.sort();
            found.insert(format!("{} {}", metric.name(), attributes.join(" ")).trim().to_owned(), value);
        };
        match metric.data() {
            AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                sum.data_points().for_each(|point| note(&mut point.attributes(), point.value() as f64));
            }
            AggregatedMetrics::U64(MetricData::Gauge(gauge)) => {
                gauge.data_points().for_each(|point| note(&mut point.attributes(), point.value() as f64));
            }
            AggregatedMetrics::F64(MetricData::Gauge(gauge)) => {
                gauge.data_points().for_each(|point| note(&mut point.attributes(), point.value().floor()));
            }
            AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
                histogram.data_points().for_each(|point| note(&mut point.attributes(), point.count() as f64));
            }
            other => panic!("{}: {other:?}", metric.name()),
        }
    }
    found
}

#[tokio::test(start_paused = true)]
async fn the_engine_counts_its_sagas_and_their_attempts() {
    let exporter = InMemoryMetricExporter::default();
    let provider = SdkMeterProvider::builder().with_reader(PeriodicReader::builder(exporter.clone()).build()).build();
    global::set_meter_provider(provider.clone());
    let builder = Engine::builder(MemoryStore::default()).register::<Order>(()).unwrap();
    let engine = builder.start().await.unwrap();
    let orders = engine.sagas::<Order>();
    for order in 0..4 {
        let outcome = orders.submit(order.to_string(), order).await.unwrap().outcome().await.unwrap();
        match order {
            0 => assert!(matches!(outcome, Outcome::RolledBack(_))),
            1 => assert!(matches!(outcome, Outcome::Parked(_))),
            _ => assert_eq!(outcome, Outcome::Completed(())),
        }
    }
    // The same key again starts nothing.
    assert!(!orders.submit("3", 3).await.unwrap().is_new());
    // How all sagas stand is looked up at least every 19 seconds.
    sleep(Duration::from_secs(60)).await;
    provider.force_flush().unwrap();
    let expected = [
        ("saga.active", 0.0),
        ("saga.duration saga.name=order saga.outcome=completed", 2.0),
        ("saga.duration saga.name=order saga.outcome=parked", 1.0),
        ("saga.duration saga.name=order saga.outcome=rolled_back", 1.0),
        ("saga.ended saga.name=order saga.outcome=completed", 2.0),
        ("saga.ended saga.name=order saga.outcome=parked", 1.0),
        ("saga.ended saga.name=order saga.outcome=rolled_back", 1.0),
        ("saga.parked saga.name=order", 1.0),
        ("saga.started saga.name=order", 4.0),
        ("saga.step.duration saga.name=order saga.op=do saga.outcome=fail saga.step=pay", 1.0),
        ("saga.step.duration saga.name=order saga.op=do saga.outcome=retry saga.step=pay", 2.0),
        ("saga.step.duration saga.name=order saga.op=do saga.outcome=success saga.step=pay", 2.0),
        ("saga.step.duration saga.name=order saga.op=do saga.outcome=unknown saga.step=pay", 2.0),
    ];
    let mut found = exported(&exporter);
    let oldest = found.remove("saga.oldest saga.name=order").unwrap();
    assert!((40.0..70.0).contains(&oldest), "{oldest}");
    assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value)).into());
    engine.shutdown(Duration::from_secs(1)).await;
}
