//! Calls to other services, each a part of the trace at present: a span, by OpenTelemetry's conventions for HTTP, and headers that say so.

use super::propagation;
use opentelemetry::{
    Context, KeyValue,
    context::FutureExt,
    global::{self, BoxedTracer},
    trace::{SpanKind, Status, TraceContextExt, Tracer},
};
use opentelemetry_http::HeaderInjector;
use opentelemetry_semantic_conventions::attribute::{
    ERROR_TYPE, HTTP_REQUEST_METHOD, HTTP_RESPONSE_STATUS_CODE, SERVER_ADDRESS, SERVER_PORT, URL_FULL,
};
use reqwest::{Method, RequestBuilder, Response};
use std::sync::Arc;

/// An HTTP client. Made in a service's task, its calls are that service's.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    tracer: Arc<BoxedTracer>,
}

impl Client {
    pub fn new(http: reqwest::Client) -> Self {
        Self { http, tracer: Arc::new(global::tracer("ecommerce")) }
    }

    /// A call, to be completed and then sent.
    pub fn request(&self, method: Method, url: &str) -> RequestBuilder {
        self.http.request(method, url)
    }

    /// Until there is an answer; its body may still be on its way.
    pub async fn send(&self, request: RequestBuilder) -> reqwest::Result<Response> {
        let mut request = request.build()?;
        let url = request.url();
        let mut attributes = vec![
            KeyValue::new(HTTP_REQUEST_METHOD, request.method().to_string()),
            KeyValue::new(URL_FULL, url.to_string()),
        ];
        attributes.extend(url.host_str().map(|host| KeyValue::new(SERVER_ADDRESS, host.to_owned())));
        attributes.extend(url.port_or_known_default().map(|port| KeyValue::new(SERVER_PORT, i64::from(port))));
        let span = self
            .tracer
            .span_builder(request.method().to_string())
            .with_kind(SpanKind::Client)
            .with_attributes(attributes)
            .start(&*self.tracer);
        let context = Context::current_with_span(span);
        // What was copied from another request is not about this one.
        for header in propagation::HEADERS {
            request.headers_mut().remove(header);
        }
        global::get_text_map_propagator(|propagator| {
            propagator.inject_context(&context, &mut HeaderInjector(request.headers_mut()));
        });
        let answered = self.http.execute(request).with_context(context.clone()).await;
        let span = context.span();
        match &answered {
            Ok(response) => {
                let status = response.status();
                span.set_attribute(KeyValue::new(HTTP_RESPONSE_STATUS_CODE, i64::from(status.as_u16())));
                if status.is_client_error() || status.is_server_error() {
                    span.set_attribute(KeyValue::new(ERROR_TYPE, status.as_str().to_owned()));
                    span.set_status(Status::error(""));
                }
            }
            Err(error) => {
                span.set_attribute(KeyValue::new(
                    ERROR_TYPE,
                    if error.is_timeout() { "timeout" } else { "connection" },
                ));
                span.set_status(Status::error(error.to_string()));
            }
        }
        span.end();
        answered
    }
}
