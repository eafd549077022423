//! All services of the shop in one, which only write down what reaches them.

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Method, Uri},
    response::{IntoResponse, Response, Sse, sse::Event},
    routing::get,
};
use futures::{StreamExt, stream};
use serde_json::json;
use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};

#[derive(Clone, Debug)]
pub struct Heard {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

pub struct Upstream {
    pub url: String,
    known: Known,
    task: JoinHandle<()>,
}

#[derive(Clone, Default)]
struct Known {
    heard: Arc<Mutex<Vec<Heard>>>,
    go_on: Arc<Notify>,
}

impl Upstream {
    pub async fn start() -> Self {
        let known = Known::default();
        let router = Router::new()
            .route("/orders/{id}/events", get(events))
            .route("/products/slow", get(std::future::pending::<()>))
            .route("/products/stuck", get(stuck))
            .route("/products/crooked", get(crooked))
            .fallback(hear)
            .with_state(known.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, known, task }
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.known.heard.lock().unwrap().clone()
    }

    /// The only request that reached it.
    pub fn heard_once(&self) -> Heard {
        let [heard] = <[Heard; 1]>::try_from(self.heard()).unwrap();
        heard
    }

    /// Lets the events go on.
    pub fn go_on(&self) {
        self.known.go_on.notify_one();
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn hear(State(known): State<Known>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let answer = json!({ "heard": uri.to_string() });
    known.heard.lock().unwrap().push(Heard { method, uri, headers, body });
    axum::Json(answer).into_response()
}

/// One event, and another one when it goes on.
async fn events(State(known): State<Known>) -> impl IntoResponse {
    let first = stream::once(async { Ok::<_, Infallible>(Event::default().data("first")) });
    let second = stream::once(async move {
        known.go_on.notified().await;
        Ok(Event::default().data("second"))
    });
    Sse::new(first.chain(second))
}

/// An answer that never comes to its end.
async fn stuck() -> Response {
    let first = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"[")) });
    Body::from_stream(first.chain(stream::pending())).into_response()
}

/// Headers that are for the gateway, and one for the client.
async fn crooked() -> impl IntoResponse {
    [("connection", "x-between-us"), ("x-between-us", "1"), ("proxy-authenticate", "Basic"), ("etag", "\"1\"")]
}
