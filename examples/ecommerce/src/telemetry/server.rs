//! What a service tells of the requests that it gets: a span and a duration each, by OpenTelemetry's conventions for HTTP.

use super::{SERVICE, Service, current};
use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{Method, StatusCode, header::CONTENT_TYPE},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use opentelemetry::{
    Context, KeyValue,
    context::FutureExt,
    global::{self, BoxedTracer},
    metrics::Histogram,
    trace::{SpanKind, Status, TraceContextExt, Tracer},
};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_semantic_conventions::{
    attribute::{ERROR_TYPE, HTTP_REQUEST_METHOD, HTTP_RESPONSE_STATUS_CODE, HTTP_ROUTE, URL_PATH, URL_SCHEME},
    metric::HTTP_SERVER_REQUEST_DURATION,
};
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};
use std::{sync::Arc, time::Instant};

/// The bounds of a histogram, in seconds: an answer is a matter of milliseconds.
pub const DURATIONS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The same service, with each request a part of the trace that it comes with, else the beginning of one. Only who asks how we are is not told of.
pub fn watched(router: Router) -> Router {
    let durations = global::meter("ecommerce")
        .f64_histogram(HTTP_SERVER_REQUEST_DURATION)
        .with_unit("s")
        .with_boundaries(DURATIONS.into())
        .build();
    let watch = Arc::new(Watch { service: current(), tracer: global::tracer("ecommerce"), durations });
    router.layer(from_fn_with_state(watch, watch_one))
}

/// What a service tells Prometheus.
#[derive(Clone)]
pub struct Figures(Registry);

impl Figures {
    /// Of the service in whose task this is asked.
    pub fn of_service() -> Self {
        Self(current().figures.clone())
    }
}

impl IntoResponse for Figures {
    fn into_response(self) -> Response {
        match TextEncoder::new().encode_to_string(&self.0.gather()) {
            Ok(text) => ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    }
}

struct Watch {
    service: Arc<Service>,
    tracer: BoxedTracer,
    durations: Histogram<f64>,
}

/// A request has a task of its own, so it says whose it is.
async fn watch_one(State(watch): State<Arc<Watch>>, request: Request, next: Next) -> Response {
    SERVICE.scope(watch.service.clone(), handle(watch, request, next)).await
}

async fn handle(watch: Arc<Watch>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|route| route.as_str().to_owned());
    if route.as_deref().is_some_and(|route| route.starts_with("/health")) {
        return next.run(request).await;
    }
    let began = Instant::now();
    let method = known(request.method());
    let mut attributes = vec![KeyValue::new(HTTP_REQUEST_METHOD, method), KeyValue::new(URL_SCHEME, "http")];
    attributes.extend(route.clone().map(|route| KeyValue::new(HTTP_ROUTE, route)));

    let came_with = global::get_text_map_propagator(|propagator| {
        propagator.extract_with_context(&Context::new(), &HeaderExtractor(request.headers()))
    });
    let name = route.as_ref().map_or(method.to_owned(), |route| format!("{method} {route}"));
    let path = KeyValue::new(URL_PATH, request.uri().path().to_owned());
    let span = watch
        .tracer
        .span_builder(name.clone())
        .with_kind(SpanKind::Server)
        .with_attributes(attributes.iter().cloned().chain([path]))
        .start_with_context(&watch.tracer, &came_with);
    let context = came_with.with_span(span);

    let response = next.run(request).with_context(context.clone()).await;
    let (status, took) = (response.status(), began.elapsed());
    attributes.push(KeyValue::new(HTTP_RESPONSE_STATUS_CODE, i64::from(status.as_u16())));
    context.span().set_attribute(KeyValue::new(HTTP_RESPONSE_STATUS_CODE, i64::from(status.as_u16())));
    if status.is_server_error() {
        attributes.push(KeyValue::new(ERROR_TYPE, status.as_str().to_owned()));
        context.span().set_attribute(KeyValue::new(ERROR_TYPE, status.as_str().to_owned()));
        context.span().set_status(Status::error(""));
    }
    watch.durations.record(took.as_secs_f64(), &attributes);
    let _in_its_trace = context.clone().attach();
    tracing::info!(status = status.as_u16(), ms = took.as_secs_f64() * 1000.0, "{name}");
    context.span().end();
    response
}

/// What is not known is not told, so that nobody can make us count more and more.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
    }
}
