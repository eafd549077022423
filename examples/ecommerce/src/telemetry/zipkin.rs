//! Spans for Zipkin, in its own JSON (version 2), because its server takes no OTLP. There is no kept crate for that. See <https://zipkin.io/zipkin-api>.
//!
//! Zipkin knows no links: a consumer is below what it consumes, and that is all.

use crate::Result;
use opentelemetry::{
    KeyValue,
    trace::{SpanId, SpanKind, Status},
};
use opentelemetry_sdk::{
    error::{OTelSdkError, OTelSdkResult},
    trace::{SpanData, SpanExporter},
};
use reqwest::{Client, Url};
use serde_json::{Map, Value, json};
use std::time::{Duration, UNIX_EPOCH};
use tokio::runtime::Handle;

/// How long it may take to send some.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Zipkin {
    spans: Url,
    service: &'static str,
    http: Client,
    runtime: Handle,
}

impl Zipkin {
    /// Of a service.
    pub(super) fn at(url: &str, service: &'static str) -> Result<Self> {
        let spans = format!("{}/api/v2/spans", url.trim_end_matches('/'));
        let spans = spans.parse().map_err(|error| format!("spans cannot be sent to {url} (--zipkin): {error}"))?;
        let http = Client::builder().no_proxy().timeout(PATIENCE).build()?;
        Ok(Self { spans, service, http, runtime: Handle::try_current()? })
    }
}

impl SpanExporter for Zipkin {
    /// Whoever calls this has a thread of their own, without a runtime: all of the sending is done in ours.
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans: Vec<Value> = batch.iter().map(|span| told(self.service, span)).collect();
        let request = self.http.post(self.spans.clone()).json(&spans);
        let sending = self.runtime.spawn(async { request.send().await });
        let failed = |error: &dyn std::error::Error| OTelSdkError::InternalFailure(error.to_string());
        let answer = sending.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        answer.error_for_status().map(drop).map_err(|error| failed(&error))
    }
}

fn told(service: &str, span: &SpanData) -> Value {
    let mut tags: Map<String, Value> =
        span.attributes.iter().map(|KeyValue { key, value, .. }| (key.to_string(), value.to_string().into())).collect();
    if let Status::Error { description } = &span.status {
        tags.insert("error".into(), description.as_ref().into());
    }
    let kind = match span.span_kind {
        SpanKind::Client => Some("CLIENT"),
        SpanKind::Server => Some("SERVER"),
        SpanKind::Producer => Some("PRODUCER"),
        SpanKind::Consumer => Some("CONSUMER"),
        SpanKind::Internal => None,
    };
    let took = span.end_time.duration_since(span.start_time).unwrap_or_default();
    let mut told = json!({
        "traceId": span.span_context.trace_id().to_string(),
        "id": span.span_context.span_id().to_string(),
        "name": span.name,
        "timestamp": micros(span.start_time.duration_since(UNIX_EPOCH).unwrap_or_default()),
        "duration": micros(took),
        "localEndpoint": { "serviceName": service },
        "tags": tags,
    });
    if span.parent_span_id != SpanId::INVALID {
        told["parentId"] = span.parent_span_id.to_string().into();
    }
    if let Some(kind) = kind {
        told["kind"] = kind.into();
    }
    told
}

/// Zipkin takes 0 for not known.
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1)
}
