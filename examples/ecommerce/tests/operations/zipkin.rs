//! What the shop tells a real Zipkin.

use crate::{PATIENCE, TRACE, opened::Shop, spans::traceparent};
use reqwest::Client;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, Command},
    time::{sleep, timeout},
};

/// It is fetched once, and the machine may be busy.
const STARTING: Duration = Duration::from_secs(300);

struct Zipkin {
    url: String,
    process: Child,
    /// It ends when this is closed.
    stdin: ChildStdin,
}

impl Zipkin {
    async fn start() -> Self {
        let mut process = Command::new("bash")
            .args([concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/zipkin"), "run", "--"])
            .args(["bash", "-c", "echo $ZIPKIN_URL; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdin = process.stdin.take().unwrap();
        let mut said = BufReader::new(process.stdout.take().unwrap()).lines();
        let url = timeout(STARTING, said.next_line()).await.unwrap().unwrap().expect("Zipkin starts");
        Self { url, process, stdin }
    }

    /// All that it knows of a trace; nothing if it does not know it.
    async fn trace(&self, http: &Client, id: &str) -> Vec<Value> {
        let answer = http.get(format!("{}/api/v2/trace/{id}", self.url)).send().await.unwrap();
        if answer.status().is_success() { answer.json().await.unwrap() } else { vec![] }
    }

    async fn stop(mut self) {
        drop(self.stdin);
        timeout(PATIENCE, self.process.wait()).await.expect("it stops").unwrap();
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn service(span: &Value) -> &str {
    text(&span["localEndpoint"], "serviceName")
}

#[tokio::test]
async fn an_order_is_one_trace_of_all_eight_services_at_a_real_zipkin() {
    let zipkin = Zipkin::start().await;
    let shop = Shop::open(&["--zipkin", &zipkin.url]).await;
    assert_eq!(shop.order(1, 1, &[("traceparent", &traceparent(TRACE))]).await["state"], "CONFIRMED");
    let patience = Instant::now() + PATIENCE;
    let spans = loop {
        let spans = zipkin.trace(&shop.http, TRACE).await;
        let of_arrival = |span: &Value| {
            service(span) == "notification" && text(&span["tags"], "cloudevents.event_type") == "delivery.completed.v1"
        };
        // The last thing that happens; others may come a moment later.
        if spans.iter().any(of_arrival) && orphans(&spans).is_empty() {
            break spans;
        }
        assert!(Instant::now() < patience, "{:#?} are orphans of {spans:#?}", orphans(&spans));
        sleep(Duration::from_millis(100)).await;
    };
    let services: BTreeSet<&str> = spans.iter().map(service).collect();
    let all = ["delivery", "gateway", "inventory", "notification", "order", "payment", "product", "user"];
    assert_eq!(services, all.into());
    let placed: Vec<&Value> = spans.iter().filter(|span| text(span, "name") == "post /orders").collect();
    let kinds: BTreeMap<&str, &str> = placed.iter().map(|span| (service(span), text(span, "kind"))).collect();
    assert_eq!(kinds, [("gateway", "SERVER"), ("order", "SERVER")].into());
    assert!(placed.iter().all(|span| text(&span["tags"], "http.response.status_code") == "202"), "{placed:#?}");
    zipkin.stop().await;
}

/// Those without a parent here, but the gateway's, whose parent is the caller's.
fn orphans(spans: &[Value]) -> Vec<&Value> {
    let ids: BTreeSet<&str> = spans.iter().map(|span| text(span, "id")).collect();
    let is_root = |span: &&Value| text(span, "parentId") == crate::CALLER && service(span) == "gateway";
    spans.iter().filter(|span| !is_root(span) && !ids.contains(text(span, "parentId"))).collect()
}
