//! What the shop tells a collector.

use crate::{
    CALLER, TRACE,
    collector::{Collector, Told, hex},
    opened::Shop,
};
use std::time::Duration;
use tokio::net::TcpListener;

/// From the caller's request to the last consumer: whose span, of which name, below which other.
const ANYWAY: [(&str, &str, &str); 16] = [
    ("order", "POST /orders", "caller"),
    ("order", "GET", "POST /orders"),
    ("user", "GET /users/{id}", "GET"),
    ("product", "GET /products/{id}", "GET"),
    ("order", "create order.events", "POST /orders"),
    ("order", "send order.events", "create order.events"),
    ("notification", "process order.events", "create order.events"),
    ("order", "saga start order", "POST /orders"),
    ("order", "saga step place-order", "saga start order"),
    ("order", "saga step reserve-stock", "saga start order"),
    ("order", "saga step charge-payment", "saga start order"),
    ("order", "saga step start-delivery", "saga start order"),
    ("order", "saga step confirm-order", "saga start order"),
    ("order", "create order.events", "saga step confirm-order"),
    ("order", "send order.events", "create order.events"),
    ("notification", "process order.events", "create order.events"),
];
const OVER_HTTP: [(&str, &str, &str); 6] = [
    ("order", "POST", "saga step reserve-stock"),
    ("inventory", "POST /reservations", "POST"),
    ("order", "POST", "saga step charge-payment"),
    ("payment", "POST /payments", "POST"),
    ("order", "POST", "saga step start-delivery"),
    ("delivery", "POST /deliveries", "POST"),
];
const OVER_KAFKA: [(&str, &str, &str); 12] = [
    ("order", "send inventory.commands", "saga step reserve-stock"),
    ("inventory", "process inventory.commands", "send inventory.commands"),
    ("inventory", "send order.replies", "process inventory.commands"),
    ("order", "process order.replies", "send order.replies"),
    ("order", "send payment.commands", "saga step charge-payment"),
    ("payment", "process payment.commands", "send payment.commands"),
    ("payment", "send order.replies", "process payment.commands"),
    ("order", "process order.replies", "send order.replies"),
    ("order", "send delivery.commands", "saga step start-delivery"),
    ("delivery", "process delivery.commands", "send delivery.commands"),
    ("delivery", "send order.replies", "process delivery.commands"),
    ("order", "process order.replies", "send order.replies"),
];

#[tokio::test]
async fn an_order_is_one_trace_over_http() {
    assert_one_trace("http", &OVER_HTTP).await;
}

#[tokio::test]
async fn an_order_is_one_trace_over_kafka() {
    assert_one_trace("kafka", &OVER_KAFKA).await;
}

async fn assert_one_trace(transport: &str, of_transport: &[(&str, &str, &str)]) {
    let (collector, otlp) = Collector::start().await;
    let shop = Shop::open(&["--processes", "--transport", transport, "--otlp", &otlp]).await;
    shop.order(1, 1, &[("traceparent", &format!("00-{TRACE}-{CALLER}-01"))]).await;
    let awaited: Vec<(&str, &str, &str)> = ANYWAY.iter().chain(of_transport).copied().collect();
    let spans = collector.trace(TRACE, |spans| awaited.iter().all(|line| is_there(spans, *line))).await;
    for told in &spans {
        let parent = hex(&told.span.parent_span_id);
        assert!(
            parent == CALLER || spans.iter().any(|other| hex(&other.span.span_id) == parent),
            "an orphan: {told:#?}"
        );
        if told.span.name.starts_with("process ") {
            assert_eq!(
                told.span.links.iter().map(|link| hex(&link.span_id)).collect::<Vec<_>>(),
                [parent],
                "{told:#?}"
            );
        }
    }
    let placed = spans.iter().find(|told| told.span.name == "POST /orders").unwrap();
    assert_eq!(placed.attribute("http.route").as_deref(), Some("/orders"));
    assert_eq!(placed.attribute("http.response.status_code").as_deref(), Some("202"));
}

/// Whether there is a span of this service and name, below one of that name.
fn is_there(spans: &[Told], (service, name, parent): (&str, &str, &str)) -> bool {
    let name_of = |id: &[u8]| match hex(id) == CALLER {
        true => Some("caller"),
        false => spans.iter().find(|other| other.span.span_id == id).map(|other| other.span.name.as_str()),
    };
    let is_it = |told: &Told| told.service == service && told.span.name == name;
    spans.iter().any(|told| is_it(told) && name_of(&told.span.parent_span_id) == Some(parent))
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
        let awaited = [("order", "POST /orders", "caller"), ("inventory", "POST /reservations", "POST")];
        collector.trace(TRACE, |spans| awaited.iter().all(|line| is_there(spans, *line))).await;
    }
}

#[tokio::test]
async fn without_a_collector_a_shop_works_and_closes_in_time() {
    // It is there, and never answers.
    let collector = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", collector.local_addr().unwrap());
    let shop = Shop::open(&["--otlp", &url]).await;
    assert_eq!(shop.order(1, 1, &[]).await["state"], "CONFIRMED");
    let took = shop.close().await;
    assert!(took < Duration::from_secs(20), "{took:?}");
}
