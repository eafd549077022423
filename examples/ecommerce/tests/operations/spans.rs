//! What the shop tells a collector.

use crate::{
    CALLER, TRACE,
    collector::{Collector, Told, hex},
    opened::Shop,
};
use std::{collections::BTreeSet, time::Duration};
use tokio::net::TcpListener;

/// Spans as a tree, each below its parent: whose it is, and its name, with the kind of message in the place of its topic. From the caller's request to the saga:
const PLACED: &str = "
caller
  gateway: POST /orders
    gateway: POST
      order: POST /orders
        order: GET
          user: GET /users/{id}
          product: GET /products/{id}
        order: create order.created.v1
          order: send order.created.v1
          notification: process order.created.v1
        order: saga start order
          order: saga step place-order
";
const RESERVED_OVER_KAFKA: &str = "
          order: saga step reserve-stock
            order: send inventory.reserve.v1
              inventory: process inventory.reserve.v1
                inventory: send inventory.reserve.v1.reply
                  order: process inventory.reserve.v1.reply
";
const CHARGING_OVER_KAFKA: &str = "
          order: saga step charge-payment
            order: send payment.charge.v1
";
const CHARGED_OVER_KAFKA: &str = "
              payment: process payment.charge.v1
                payment: send payment.charge.v1.reply
                  order: process payment.charge.v1.reply
";
const DELIVERED_OVER_KAFKA: &str = "
          order: saga step start-delivery
            order: send delivery.start.v1
              delivery: process delivery.start.v1
                delivery: send delivery.start.v1.reply
                  order: process delivery.start.v1.reply
                delivery: create delivery.started.v1
                  delivery: send delivery.started.v1
                  notification: process delivery.started.v1
                delivery: create delivery.completed.v1
                  delivery: send delivery.completed.v1
                  notification: process delivery.completed.v1
";
const RELEASED_OVER_KAFKA: &str = "
          order: saga compensate reserve-stock
            order: send inventory.release.v1
              inventory: process inventory.release.v1
                inventory: send inventory.release.v1.reply
                  order: process inventory.release.v1.reply
";
const RESERVED_OVER_HTTP: &str = "
          order: saga step reserve-stock
            order: POST
              inventory: POST /reservations
";
const CHARGED_OVER_HTTP: &str = "
          order: saga step charge-payment
            order: POST
              payment: POST /payments
";
const DELIVERED_OVER_HTTP: &str = "
          order: saga step start-delivery
            order: POST
              delivery: POST /deliveries
                delivery: create delivery.started.v1
                  delivery: send delivery.started.v1
                  notification: process delivery.started.v1
                delivery: create delivery.completed.v1
                  delivery: send delivery.completed.v1
                  notification: process delivery.completed.v1
";
const RELEASED_OVER_HTTP: &str = "
          order: saga compensate reserve-stock
            order: POST
              inventory: POST /reservations/release
";
const CONFIRMED: &str = "
          order: saga step confirm-order
";
const CANCELLED: &str = "
          order: saga compensate place-order
            order: create order.cancelled.v1
              order: send order.cancelled.v1
              notification: process order.cancelled.v1
";

/// Where each line of a tree stands.
fn places(tree: &str) -> BTreeSet<String> {
    let mut above: Vec<&str> = vec![];
    tree.lines()
        .filter(|line| !line.is_empty())
        .map(|line| {
            let name = line.trim_start();
            above.truncate((line.len() - name.len()) / 2);
            above.push(name);
            above.join(" > ")
        })
        .collect()
}

/// Whether all of a tree is there, and of others only what stands in it at another place: a command that came twice is answered from memory, without being dealt with.
fn grown(spans: &[Told], tree: &str) -> bool {
    let (here, awaited) = (places_of(spans), places(tree));
    let label = |place: &str| place.rsplit(" > ").next().map(ToOwned::to_owned);
    let known: BTreeSet<_> = awaited.iter().map(|place| label(place)).collect();
    let is_known = |place: &String| place.starts_with("caller") && known.contains(&label(place));
    awaited.is_subset(&here) && here.iter().all(is_known)
}

/// Where each span stands; what is done twice stands there once. An orphan stands below nobody.
pub fn places_of(spans: &[Told]) -> BTreeSet<String> {
    let place = |told: &Told| {
        let (mut place, mut parent) = (told.label(), &told.span.parent_span_id);
        while let Some(above) = spans.iter().find(|other| other.span.span_id == *parent) {
            place = format!("{} > {place}", above.label());
            parent = &above.span.parent_span_id;
        }
        let root = if hex(parent) == CALLER { "caller" } else { "nobody" };
        format!("{root} > {place}")
    };
    spans.iter().map(place).chain(["caller".to_owned()]).collect()
}

impl Told {
    fn label(&self) -> String {
        let (service, name) = (&self.service, &self.span.name);
        match (name.split_once(' '), self.attribute("cloudevents.event_type")) {
            (Some((doing, _)), Some(kind)) => format!("{service}: {doing} {kind}"),
            _ => format!("{service}: {name}"),
        }
    }
}

/// An order's caller began a trace for it: what W3C's header says.
pub fn traceparent(trace: &str) -> String {
    format!("00-{trace}-{CALLER}-01")
}

/// Whoever deals with a message says by a link which one it is.
fn assert_linked(spans: &[Told]) {
    for told in spans.iter().filter(|told| told.span.name.starts_with("process ")) {
        let links: Vec<_> = told.span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect();
        assert_eq!(links, [(told.trace(), hex(&told.span.parent_span_id))], "{told:#?}");
    }
}

const CONFIRMED_ORDER: &str = "0af7651916cd43dd8448eb211c80319c";
const DECLINED_ORDER: &str = "1af7651916cd43dd8448eb211c80319c";
const KILLED_ORDER: &str = "2af7651916cd43dd8448eb211c80319c";

#[tokio::test]
async fn an_order_is_one_trace_over_kafka_also_if_its_service_is_killed() {
    let (collector, otlp) = Collector::start().await;
    let shop = Shop::open(&["--processes", "--otlp", &otlp]).await;
    let confirmed =
        [PLACED, RESERVED_OVER_KAFKA, CHARGING_OVER_KAFKA, CHARGED_OVER_KAFKA, DELIVERED_OVER_KAFKA, CONFIRMED]
            .concat();
    let declined =
        [PLACED, RESERVED_OVER_KAFKA, CHARGING_OVER_KAFKA, CHARGED_OVER_KAFKA, RELEASED_OVER_KAFKA, CANCELLED].concat();
    assert_traces(&collector, &shop, &confirmed, &declined).await;

    // Somebody else has the account in use, so the charge waits: the order service has sent it, and nothing to do.
    let mut payments = shop.database("payment").await;
    sqlx::raw_sql("BEGIN; SELECT FROM account WHERE user_id = 3 FOR UPDATE").execute(&mut payments).await.unwrap();
    let placed = shop.place(3, 1, &[("traceparent", &traceparent(KILLED_ORDER))]).await;
    // What is open in a process that is killed is never told. The saga goes on below the request, which has ended and was told; so was what it did before.
    let before = [PLACED, RESERVED_OVER_KAFKA, CHARGING_OVER_KAFKA].concat();
    collector.trace(KILLED_ORDER, |spans| grown(spans, &before)).await;
    shop.kill("order").await;
    sqlx::raw_sql("ROLLBACK").execute(&mut payments).await.unwrap();
    assert_eq!(shop.ended(&placed).await["state"], "CONFIRMED");
    assert_linked(&collector.trace(KILLED_ORDER, |spans| grown(spans, &confirmed)).await);
}

#[tokio::test]
async fn an_order_is_one_trace_over_http() {
    let (collector, otlp) = Collector::start().await;
    let shop = Shop::open(&["--transport", "http", "--otlp", &otlp]).await;
    let confirmed = [PLACED, RESERVED_OVER_HTTP, CHARGED_OVER_HTTP, DELIVERED_OVER_HTTP, CONFIRMED].concat();
    let declined = [PLACED, RESERVED_OVER_HTTP, CHARGED_OVER_HTTP, RELEASED_OVER_HTTP, CANCELLED].concat();
    assert_traces(&collector, &shop, &confirmed, &declined).await;
}

/// Of one order that is confirmed, and one that nobody can pay for.
async fn assert_traces(collector: &Collector, shop: &Shop, confirmed: &str, declined: &str) {
    for (user, trace, state, tree) in
        [(1, CONFIRMED_ORDER, "CONFIRMED", confirmed), (2, DECLINED_ORDER, "CANCELLED", declined)]
    {
        assert_eq!(shop.order(user, 1, &[("traceparent", &traceparent(trace))]).await["state"], state);
        let spans = collector.trace(trace, |spans| grown(spans, tree)).await;
        assert_linked(&spans);
        for service in ["gateway", "order"] {
            let of = |told: &&Told| told.label() == format!("{service}: POST /orders");
            let placed = spans.iter().find(of).unwrap();
            assert_eq!(placed.attribute("http.route").as_deref(), Some("/orders"));
            assert_eq!(placed.attribute("http.response.status_code").as_deref(), Some("202"));
        }
    }
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
        let awaited = places(&[PLACED, RESERVED_OVER_HTTP].concat());
        collector.trace(TRACE, |spans| awaited.is_subset(&places_of(spans))).await;
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
