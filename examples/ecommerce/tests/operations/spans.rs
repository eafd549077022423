//! What the shop tells a collector.

use crate::{
    CALLER, PATIENCE, TRACE,
    collector::{Collector, hex},
    opened::{Shop, ecommerce},
};
use std::time::Instant;
use tokio::net::TcpListener;

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
async fn without_a_collector_a_shop_works_and_closes_in_time() {
    // It is there, and never answers.
    let collector = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", collector.local_addr().unwrap());
    let mut tour = ecommerce();
    tour.env("RUST_LOG", "off");
    let began = Instant::now();
    let told = tour.args(["tour", "--otlp", &url]).output().await.unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stdout));
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}
