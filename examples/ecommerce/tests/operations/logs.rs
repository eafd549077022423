//! What the shop writes down.

use crate::{CALLER, TRACE, opened::Shop};
use serde_json::{Value, json};

#[tokio::test]
async fn a_log_line_says_which_trace_it_belongs_to() {
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    let pretty = Shop::open(&[]).await;
    pretty.order(1, 1, &[("traceparent", &traceparent)]).await;
    for service in ["gateway", "order"] {
        let of_service = format!(" service={service} trace_id={TRACE} span_id=");
        pretty.line(|line| line.contains("POST /orders") && line.contains(&of_service)).await;
    }

    let json = Shop::open(&["--log", "json"]).await;
    json.order(1, 1, &[("traceparent", &traceparent)]).await;
    let line = json.line(|line| line.contains("POST /orders") && line.contains(r#""service":"order""#)).await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["service"], &line["trace_id"]), (&json!("order"), &json!(TRACE)), "{line}");
    assert_eq!((&line["message"], &line["status"]), (&json!("POST /orders"), &json!(202)), "{line}");
}
