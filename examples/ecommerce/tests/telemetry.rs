//! What the shop tells while it works: spans to a collector, log lines, figures for Prometheus.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends there")]

use axum::{Router, body::Bytes, extract::State, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as AnyValue},
    trace::v1::Span,
};
use prost::Message;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
    time::sleep,
};

const PATIENCE: Duration = Duration::from_secs(60);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// A span, and whose it is.
#[derive(Clone, Debug)]
struct Told {
    service: String,
    span: Span,
}

impl Told {
    fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    fn attribute(&self, key: &str) -> Option<String> {
        attribute(&self.span.attributes, key)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        AnyValue::StringValue(text) => Some(text.clone()),
        AnyValue::IntValue(number) => Some(number.to_string()),
        other => panic!("{key}: {other:?}"),
    }
}

/// Takes spans by OTLP over HTTP.
#[derive(Clone, Default)]
struct Collector {
    told: Arc<Mutex<Vec<Told>>>,
}

impl Collector {
    /// And where it is.
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let router = Router::new().route("/v1/traces", post(take)).with_state(collector.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (collector, url)
    }

    /// When all of these are there: what is known of the trace.
    async fn trace(&self, trace: &str, awaited: &[(&str, &str)]) -> Vec<Told> {
        let patience = Instant::now() + PATIENCE;
        loop {
            let known: Vec<Told> =
                self.told.lock().unwrap().iter().filter(|told| told.trace() == trace).cloned().collect();
            let is_there = |&(service, name): &(&str, &str)| {
                known.iter().any(|told| told.service == service && told.span.name == name)
            };
            if awaited.iter().all(is_there) {
                return known;
            }
            assert!(Instant::now() < patience, "{awaited:?} are not all among {known:#?}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn take(State(collector): State<Collector>, body: Bytes) {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let mut told = collector.told.lock().unwrap();
    for of_service in request.resource_spans {
        let service = attribute(&of_service.resource.unwrap().attributes, "service.name").unwrap();
        let spans = of_service.scope_spans.into_iter().flat_map(|scope| scope.spans);
        told.extend(spans.map(|span| Told { service: service.clone(), span }));
    }
}

/// `ecommerce serve`, on free ports.
struct Shop {
    _process: Child,
    http: Client,
    urls: HashMap<String, String>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Shop {
    async fn open(arguments: &[&str]) -> Self {
        let mut serve = Command::new(env!("CARGO_BIN_EXE_ecommerce"));
        serve.env_remove("DATABASE_URL").env_remove("KAFKA_BROKERS").kill_on_drop(true);
        serve.args(["serve", "--port-base", "0"]).args(arguments);
        serve.env("RUST_LOG", "ecommerce=info").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = serve.spawn().unwrap();
        let log = Arc::new(Mutex::new(vec![]));
        let mut complaints = BufReader::new(process.stderr.take().unwrap()).lines();
        let kept = log.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = complaints.next_line().await {
                kept.lock().unwrap().push(line);
            }
        });
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut urls = HashMap::new();
        while !["order", "inventory", "payment", "delivery", "notification"].iter().all(|name| urls.contains_key(*name))
        {
            let line = lines.next_line().await.unwrap().expect("the shop opens");
            if let [name, url, ..] = *line.split_whitespace().collect::<Vec<_>>()
                && url.starts_with("http://")
            {
                urls.insert(name.to_owned(), url.to_owned());
            }
        }
        // Somebody has to read what it says.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { _process: process, http: Client::new(), urls, log }
    }

    /// Until its saga has ended.
    async fn order(&self, user: u32, quantity: u32, headers: &[(&str, &str)]) -> Value {
        let wanted = json!({ "userId": user, "productId": 1, "quantity": quantity });
        let mut request = self.http.post(format!("{}/orders", self.urls["order"])).json(&wanted);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        let placed: Value = answer.json().await.unwrap();
        let url = format!("{}/orders/{}", self.urls["order"], placed["id"].as_str().unwrap());
        let patience = Instant::now() + PATIENCE;
        loop {
            let order: Value = self.http.get(&url).send().await.unwrap().json().await.unwrap();
            if order["saga"] == "Completed" || order["saga"] == "RolledBack" {
                return order;
            }
            assert!(Instant::now() < patience, "the order has not ended: {order}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// What a service tells Prometheus, by name and labels.
    async fn figures(&self, service: &str) -> BTreeMap<String, f64> {
        let answer = self.http.get(format!("{}/metrics", self.urls[service])).send().await.unwrap();
        assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
        parsed(&answer.text().await.unwrap())
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

    /// When there is a line like this in the log.
    async fn line(&self, is_it: impl Fn(&str) -> bool) -> String {
        let patience = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = self.log.lock().unwrap().iter().find(|line| is_it(line)) {
                return found.clone();
            }
            assert!(Instant::now() < patience, "there is no such line in {:#?}", self.log.lock().unwrap());
            sleep(Duration::from_millis(20)).await;
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
        ("outbox_delay_seconds_count", 4.0),
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
    shop.assert_figures("notification", &[("kafka_consumed_total", 4.0)]).await;
}

#[tokio::test]
async fn a_request_and_what_handles_it_are_in_the_callers_trace() {
    let (collector, otlp) = Collector::start().await;
    let shop = Shop::open(&["--transport", "http", "--otlp", &otlp]).await;
    shop.order(1, 1, &[("traceparent", &format!("00-{TRACE}-{CALLER}-01"))]).await;
    let spans = collector.trace(TRACE, &[("order", "POST /orders")]).await;
    let placed = &spans.iter().find(|told| told.span.name == "POST /orders").unwrap();
    assert_eq!(hex(&placed.span.parent_span_id), CALLER);
    assert_eq!(placed.attribute("http.route").as_deref(), Some("/orders"));
    assert_eq!(placed.attribute("http.response.status_code").as_deref(), Some("202"));
}

#[tokio::test]
async fn b3_headers_are_understood_and_sent() {
    for propagation in ["b3", "b3multi"] {
        let (collector, otlp) = Collector::start().await;
        let shop = Shop::open(&["--transport", "http", "--otlp", &otlp, "--propagation", propagation]).await;
        let caller = match propagation {
            "b3" => vec![("b3", format!("{TRACE}-{CALLER}-1"))],
            _ => vec![("X-B3-TraceId", TRACE.to_owned()), ("X-B3-SpanId", CALLER.to_owned())],
        };
        let caller: Vec<(&str, &str)> = caller.iter().map(|(name, value)| (*name, value.as_str())).collect();
        shop.order(1, 1, &caller).await;
        let spans = collector.trace(TRACE, &[("order", "POST /orders")]).await;
        assert_eq!(
            hex(&spans.iter().find(|told| told.span.name == "POST /orders").unwrap().span.parent_span_id),
            CALLER
        );
    }
}

#[tokio::test]
async fn a_log_line_says_which_trace_it_belongs_to() {
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    let pretty = Shop::open(&[]).await;
    pretty.order(1, 1, &[("traceparent", &traceparent)]).await;
    let line = pretty.line(|line| line.contains("POST /orders")).await;
    assert!(line.contains(&format!(" service=order trace_id={TRACE} span_id=")), "{line}");

    let json = Shop::open(&["--log", "json"]).await;
    json.order(1, 1, &[("traceparent", &traceparent)]).await;
    let line = json.line(|line| line.contains("POST /orders")).await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["service"], &line["trace_id"]), (&json!("order"), &json!(TRACE)), "{line}");
    assert_eq!((&line["message"], &line["status"]), (&json!("POST /orders"), &json!(202)), "{line}");
}

#[tokio::test]
async fn without_a_collector_a_shop_works_and_closes_in_time() {
    // It is there, and never answers.
    let collector = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", collector.local_addr().unwrap());
    let mut tour = Command::new(env!("CARGO_BIN_EXE_ecommerce"));
    tour.env_remove("DATABASE_URL").env_remove("KAFKA_BROKERS").kill_on_drop(true).env("RUST_LOG", "off");
    let began = Instant::now();
    let told = tour.args(["tour", "--otlp", &url]).output().await.unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stdout));
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}
