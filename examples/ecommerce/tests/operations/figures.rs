//! What the shop tells Prometheus.

use crate::{PATIENCE, opened::Shop};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use tokio::time::sleep;

impl Shop {
    /// What a service tells Prometheus, by name and labels.
    async fn figures(&self, service: &str) -> BTreeMap<String, f64> {
        let answer = self.http.get(format!("{}/metrics", self.urls[service])).send().await.unwrap();
        assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
        parsed(&answer.text().await.unwrap())
    }

    /// When each of these is told by some service.
    pub async fn assert_has_figures(&self, awaited: &BTreeSet<String>) {
        let patience = Instant::now() + PATIENCE;
        loop {
            let mut missing = awaited.clone();
            for service in self.urls.keys() {
                for series in self.figures(service).await.keys() {
                    missing.remove(series.split('{').next().unwrap());
                }
            }
            if missing.is_empty() {
                return;
            }
            assert!(Instant::now() < patience, "no service tells {missing:?}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// When a service tells all of these.
    async fn assert_figures(&self, service: &str, awaited: &[(&str, f64)]) {
        let patience = Instant::now() + PATIENCE;
        loop {
            let figures = self.figures(service).await;
            let differs = awaited.iter().find(|(name, value)| figures.get(*name) != Some(value));
            let Some((name, value)) = differs else { return };
            assert!(Instant::now() < patience, "{service}: {name} is not {value} in {figures:#?}");
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Prometheus' text format: `name{label="value",..} number`, below a `# TYPE` of that name.
fn parsed(text: &str) -> BTreeMap<String, f64> {
    let mut types = BTreeMap::new();
    let mut figures = BTreeMap::new();
    for line in text.lines() {
        if let Some(is) = line.strip_prefix("# TYPE ") {
            let (name, kind) = is.split_once(' ').unwrap();
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} is there twice");
        } else if !line.starts_with('#') {
            let (series, number) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let is_name = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':');
            assert!(is_name(name) && labels.ends_with('}'), "{line}");
            let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let histogram = of_histogram.is_some_and(|name| types.get(name).is_some_and(|kind| kind == "histogram"));
            assert!(histogram || types.contains_key(name), "{name} has no type");
            assert!(figures.insert(series.to_owned(), number.parse().unwrap()).is_none(), "{series} is there twice");
        }
    }
    figures
}

#[tokio::test]
async fn figures_are_right_after_known_orders() {
    let shop = Shop::open(&[]).await;
    let confirmed = shop.order(1, 1, &[("idempotency-key", "k")]).await;
    let again = shop.order(1, 1, &[("idempotency-key", "k")]).await;
    assert_eq!(confirmed, again);
    shop.order(3, 2, &[]).await;
    let declined = shop.order(2, 1, &[]).await;
    assert_eq!(declined["reason"], "payment declined");
    let too_large = shop.order(1, 999, &[]).await;
    assert_eq!(too_large["reason"], "out of stock");

    let posted = r#"http_server_request_duration_seconds_count{http_request_method="POST",http_response_status_code="202",http_route="/orders",url_scheme="http"}"#;
    let orders = [
        ("order_request_total", 4.0),
        ("order_confirmed_total", 2.0),
        ("order_cancelled_total", 2.0),
        (r#"order_latency_seconds_count{state="CONFIRMED"}"#, 2.0),
        (r#"order_latency_seconds_count{state="CANCELLED"}"#, 2.0),
        (r#"order_latency_seconds_bucket{state="CONFIRMED",le="+Inf"}"#, 2.0),
        (posted, 5.0),
        ("outbox_delay_seconds_count", 6.0),
        ("outbox_waiting", 0.0),
        ("outbox_parked", 0.0),
        ("outbox_oldest_seconds", 0.0),
        ("kafka_not_published_total", 0.0),
    ];
    shop.assert_figures("order", &orders).await;
    let held = [
        ("reservation_hold_success_total", 3.0),
        ("reservation_hold_conflict_total", 1.0),
        ("reservation_release_total", 1.0),
        ("kafka_dead_letters_total", 0.0),
    ];
    shop.assert_figures("inventory", &held).await;
    shop.assert_figures("payment", &[("payment_success_total", 2.0), ("payment_fail_total", 1.0)]).await;
    shop.assert_figures("notification", &[("kafka_consumed_total", 10.0)]).await;
}
