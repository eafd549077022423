//! The barrier over HTTP: the same promises, as statuses.
#![cfg(all(feature = "axum", feature = "testing", unix))]

use axum::Router;
use reqwest::{Client, StatusCode};
use saga_core::{
    SagaId, StepError,
    message::Op,
    participant::{Command, CommandCx},
};
use saga_postgres::{PgInbox, http, testing};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

#[derive(Clone, Serialize, Deserialize)]
struct Reserve {
    quantity: u32,
}

impl Command for Reserve {
    const TYPE: &'static str = "inventory.reserve.v1";
    const TOPIC: &'static str = "inventory.commands";
    type Reply = u32;
}

#[derive(Clone, Serialize, Deserialize)]
struct Release {}

impl Command for Release {
    const TYPE: &'static str = "inventory.release.v1";
    const TOPIC: &'static str = "inventory.commands";
    type Reply = ();
}

type Ledger = Arc<Mutex<Vec<String>>>;

async fn reserve(cx: CommandCx<Ledger>, _: &mut PgConnection, Reserve { quantity }: Reserve) -> Result<u32, StepError> {
    match quantity {
        0 => return Err(StepError::fail("a reservation needs a quantity")),
        13 => return Err(StepError::retry("busy")),
        14 => panic!("a handler that panics"),
        _ => {}
    }
    let trace = cx.headers().get("traceparent").cloned().unwrap_or_default();
    cx.lock().unwrap().push(format!("reserved {quantity} {trace}"));
    Ok(quantity)
}

async fn release(cx: CommandCx<Ledger>, _: &mut PgConnection, _: Release) -> Result<(), StepError> {
    cx.lock().unwrap().push(format!("released {:?}", cx.kept::<u32>()?));
    Ok(())
}

struct World {
    url: String,
    ledger: Ledger,
}

impl World {
    async fn start() -> Self {
        let postgres = testing::shared().await.unwrap();
        let pool = PgPool::connect(&postgres.url()).await.unwrap();
        let inbox = PgInbox::in_schema(pool, &postgres.schema()).unwrap();
        inbox.migrate().await.unwrap();
        let ledger = Ledger::default();
        let router = Router::new()
            .route("/reservations", http::command(&inbox, ledger.clone(), Op::Do, reserve))
            .route("/reservations/release", http::command(&inbox, ledger.clone(), Op::Undo, release));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, ledger }
    }

    async fn post(&self, path: &str, key: &str, body: Value) -> (StatusCode, Value) {
        let request = Client::new().post(format!("{}{path}", self.url)).header("Idempotency-Key", key);
        let response = request.header("traceparent", "00-1-2-01").json(&body).send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    async fn reserve(&self, key: &str, quantity: u32) -> (StatusCode, Value) {
        self.post("/reservations", key, json!({ "quantity": quantity })).await
    }

    async fn release(&self, key: &str) -> (StatusCode, Value) {
        self.post("/reservations/release", key, json!({})).await
    }

    fn done(&self) -> Vec<String> {
        self.ledger.lock().unwrap().clone()
    }
}

fn key() -> String {
    format!("{}/reserve", SagaId::generate())
}

#[tokio::test]
async fn a_request_that_comes_again_is_answered_again_and_undone_once() {
    let (world, key) = (World::start().await, key());
    for _ in 0..2 {
        assert_eq!(world.reserve(&key, 3).await, (StatusCode::OK, json!(3)));
    }
    for _ in 0..2 {
        assert_eq!(world.release(&key).await, (StatusCode::OK, Value::Null));
    }
    assert_eq!(world.done(), ["reserved 3 00-1-2-01", "released Some(3)"]);
}

#[tokio::test]
async fn an_undo_that_comes_first_has_its_command_refused() {
    let (world, key) = (World::start().await, key());
    assert_eq!(world.release(&key).await, (StatusCode::OK, Value::Null));
    let (status, problem) = world.reserve(&key, 3).await;
    assert_eq!((status, &problem["detail"]), (StatusCode::CONFLICT, &json!("it was undone before it came")));
    assert_eq!(world.done(), Vec::<String>::new());
}

#[tokio::test]
async fn every_answer_has_its_status() {
    let world = World::start().await;
    for (quantity, status, detail) in [
        (0, StatusCode::CONFLICT, "a reservation needs a quantity"),
        (13, StatusCode::SERVICE_UNAVAILABLE, "busy"),
        (14, StatusCode::INTERNAL_SERVER_ERROR, "it panicked: a handler that panics"),
    ] {
        let (found, problem) = world.reserve(&key(), quantity).await;
        assert_eq!((found, &problem["detail"]), (status, &json!(detail)));
    }
}

#[tokio::test]
async fn a_body_that_cannot_be_read_is_a_no_for_good() {
    let (world, key) = (World::start().await, key());
    for body in [json!({ "pieces": 3 }), json!({ "quantity": 3 })] {
        let (status, problem) = world.post("/reservations", &key, body).await;
        assert_eq!(status, StatusCode::CONFLICT);
        assert!(problem["detail"].as_str().unwrap().contains("the body is no inventory.reserve.v1"), "{problem}");
    }
    assert_eq!(world.done(), Vec::<String>::new());
}

#[tokio::test]
async fn a_key_that_is_none_is_refused() {
    let world = World::start().await;
    for key in ["", "order-1", &format!("{}/reserve/undo", SagaId::generate())] {
        let (status, problem) = world.reserve(key, 3).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(problem["detail"].as_str().unwrap().contains("is no idempotency key of a step"), "{problem}");
    }
}
