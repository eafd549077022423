//! The gateway's part in a trace, and what it tells Prometheus.

use crate::door::{Door, assert_problem};
use reqwest::{
    Method, StatusCode,
    header::{HeaderMap, HeaderName, HeaderValue},
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// What a service gets to see of headers that a client sends.
async fn seen(door: &Door, headers: &[(&str, &[u8])]) -> HeaderMap {
    let before = door.upstream.heard().len();
    let mut request = door.request(Method::GET, "/products");
    for (name, value) in headers {
        request = request.header(*name, HeaderValue::from_bytes(value).unwrap());
    }
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK, "{headers:?}");
    let heard = door.upstream.heard();
    assert_eq!(heard.len(), before + 1);
    heard[before].headers.clone()
}

/// Trace and parent, from a header like `00-<trace>-<parent>-01`.
fn parts(traceparent: &HeaderValue) -> (String, String) {
    let parts: Vec<&str> = traceparent.to_str().unwrap().split('-').collect();
    let ["00", trace, parent, _] = parts[..] else { panic!("{traceparent:?}") };
    (trace.to_owned(), parent.to_owned())
}

#[tokio::test]
async fn a_trace_goes_on_below_the_gateways_own_span() {
    let door = Door::open().await;
    let w3c = format!("00-{TRACE}-{CALLER}-01");
    let single = format!("{TRACE}-{CALLER}-1");
    let ways: [&[(&str, &[u8])]; 3] = [
        &[("traceparent", w3c.as_bytes()), ("tracestate", b"vendor=1")],
        &[("b3", single.as_bytes())],
        &[("x-b3-traceid", TRACE.as_bytes()), ("x-b3-spanid", CALLER.as_bytes()), ("x-b3-sampled", b"1")],
    ];
    for way in ways {
        let headers = seen(&door, &[way, &[("baggage", b"tour=1")]].concat()).await;
        let (trace, parent) = parts(&headers["traceparent"]);
        assert_eq!(trace, TRACE, "{way:?}");
        assert!(parent != CALLER && parent != "0000000000000000", "{way:?}: {parent}");
        assert_eq!(headers["baggage"], "tour=1");
        if way.len() == 2 {
            assert_eq!(headers["tracestate"], "vendor=1");
        }
        // One who was told twice could believe the other one.
        let other = |name: &HeaderName| name == "b3" || name.as_str().starts_with("x-b3-");
        assert!(!headers.keys().any(other), "{headers:?}");
    }
}

#[tokio::test]
async fn b3_is_sent_if_it_is_asked_for() {
    let door = Door::open_with(&["--propagation", "b3"]).await;
    let w3c = format!("00-{TRACE}-{CALLER}-01");
    let headers = seen(&door, &[("traceparent", w3c.as_bytes())]).await;
    let b3 = headers["b3"].to_str().unwrap();
    assert!(b3.starts_with(&format!("{TRACE}-")) && b3.ends_with("-1") && !b3.contains(CALLER), "{b3}");
    assert!(!headers.contains_key("traceparent"));
}

#[tokio::test]
async fn a_trace_that_is_none_harms_no_request_and_reaches_no_service() {
    let door = Door::open().await;
    let long = "a=b,".repeat(2_000);
    let zeros = format!("00-{}-{}-01", "0".repeat(32), "0".repeat(16));
    let later = format!("01-{TRACE}-{CALLER}-01-more");
    let doubtful: [&[u8]; 8] =
        [b"", b"00", b"' OR 1=1", b"\xff\xfe", "日本".as_bytes(), zeros.as_bytes(), later.as_bytes(), long.as_bytes()];
    let names =
        ["traceparent", "tracestate", "baggage", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "x-b3-flags"];
    let mut traces = vec![];
    for value in doubtful {
        let headers = seen(&door, &names.map(|name| (name, value))).await;
        let (trace, parent) = parts(&headers["traceparent"]);
        assert!(trace != "0".repeat(32) && parent != CALLER, "{value:?}: {headers:?}");
        traces.push(trace);
        for name in &names[3..] {
            assert!(!headers.contains_key(*name), "{name}: {headers:?}");
        }
    }
    traces.sort();
    let began = traces.len();
    traces.dedup();
    assert_eq!(traces.len(), began, "each is a trace of its own");
}

#[tokio::test]
async fn a_request_without_a_trace_begins_one() {
    let door = Door::open().await;
    let (one, other) = (seen(&door, &[]).await, seen(&door, &[]).await);
    assert_ne!(parts(&one["traceparent"]).0, parts(&other["traceparent"]).0);
}

#[tokio::test]
async fn figures_are_for_operators() {
    let door = Door::open().await;
    let answered = door.get_with(&door.buyer(), "/products/1").await;
    assert_eq!(answered.status(), StatusCode::OK);
    assert_problem(door.get("/metrics").await, StatusCode::UNAUTHORIZED, "a token is needed").await;
    assert_problem(door.get_with(&door.buyer(), "/metrics").await, StatusCode::FORBIDDEN, "only operators").await;
    let told = door.get_with(&door.operator(), "/metrics").await;
    assert!(told.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
    let told = told.text().await.unwrap();
    assert!(told.contains(r#"http_route="/products/{id}""#), "{told}");
    assert_eq!(door.upstream.heard().len(), 1);
}

#[tokio::test]
async fn without_authentication_figures_are_everybodys() {
    let door = Door::open_with(&["--no-auth"]).await;
    assert_eq!(door.get("/metrics").await.status(), StatusCode::OK);
}
