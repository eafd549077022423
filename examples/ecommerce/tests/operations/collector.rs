//! A collector of spans: takes them by OTLP over HTTP.

use crate::{PATIENCE, spans::places_of};
use axum::{Router, body::Bytes, extract::State, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as AnyValue},
    trace::v1::Span,
};
use prost::Message;
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, time::sleep};

/// A span, and whose it is.
#[derive(Clone, Debug)]
pub struct Told {
    pub service: String,
    pub span: Span,
}

impl Told {
    pub fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    pub fn attribute(&self, key: &str) -> Option<String> {
        attribute(&self.span.attributes, key)
    }
}

pub fn hex(bytes: &[u8]) -> String {
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
pub struct Collector {
    told: Arc<Mutex<Vec<Told>>>,
}

impl Collector {
    /// And where it is.
    pub async fn start() -> (Self, String) {
        let collector = Self::default();
        let router = Router::new().route("/v1/traces", post(take)).with_state(collector.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (collector, url)
    }

    /// When it is all there: what is known of the trace.
    pub async fn trace(&self, trace: &str, is_all: impl Fn(&[Told]) -> bool) -> Vec<Told> {
        let patience = Instant::now() + PATIENCE;
        loop {
            let known: Vec<Told> =
                self.told.lock().unwrap().iter().filter(|told| told.trace() == trace).cloned().collect();
            if is_all(&known) {
                return known;
            }
            assert!(Instant::now() < patience, "not what was awaited: {:#?}", places_of(&known));
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
