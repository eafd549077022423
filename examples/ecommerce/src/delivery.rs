//! The delivery service: one delivery for each order that was paid. It tells others when it starts, and a moment later that it is completed.

use crate::{
    Result,
    databases::create_tables,
    figures,
    problem::Problem,
    service::{self, Consistency, GRACE, OfUser, Site},
};
use axum::{
    Json, Router,
    extract::{Query, State},
    routing::get,
};
use opentelemetry::Context;
use saga_core::{
    StepError,
    participant::{Command, CommandCx, Event, Participant},
    trace::TraceContext,
    transport::Transport,
};
use saga_postgres::{Barrier, PgInbox, PgOutbox};
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection, PgPool};
use std::{sync::Arc, time::Duration};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The service's name.
pub const NAME: &str = "delivery";
/// Of its port.
pub const OFFSET: u16 = 6;
/// How often it looks for deliveries that have arrived, and for events that others wrote.
const POLL: Duration = Duration::from_millis(100);

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS delivery (
        id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        order_id  uuid NOT NULL,
        user_id   bigint NOT NULL,
        state     text NOT NULL DEFAULT 'STARTED' CHECK (state IN ('STARTED', 'COMPLETED')),
        arrives   timestamptz NOT NULL DEFAULT now() + interval '1 second'
    );
    ALTER TABLE delivery ADD COLUMN IF NOT EXISTS traceparent text;
    ALTER TABLE delivery ADD COLUMN IF NOT EXISTS tracestate text;
    ALTER TABLE delivery ADD COLUMN IF NOT EXISTS baggage text;
    CREATE INDEX IF NOT EXISTS deliveries_of_user ON delivery (user_id);
    CREATE INDEX IF NOT EXISTS deliveries_under_way ON delivery (arrives) WHERE state = 'STARTED'";

pub async fn serve(site: Site, kafka: Arc<dyn Transport>) -> Result<()> {
    let db = site.connect().await?;
    let (inbox, outbox) = (PgInbox::new(db.clone()), PgOutbox::new(db.clone(), NAME));
    inbox.migrate().await?;
    create_tables(&db, SCHEMA).await?;
    let relay = outbox.relay(kafka.clone()).lanes(1).poll(POLL).start().await?;
    let barrier = Barrier::new(inbox.clone(), outbox.clone());
    let router = Router::new()
        .route("/deliveries", barrier.on(start).get(of_user))
        .route("/consistency", get(consistency))
        .route("/openapi.json", service::openapi(include_str!("../openapi/delivery.json")))
        .with_state(db.clone());
    let participant = Participant::new(NAME, inbox, outbox.clone()).on(start);
    let arriving = tokio::spawn(arrive(db.clone(), outbox.clone(), site.door.stop.clone()));
    let participating = participant.start(kafka).await?;
    tokio::select! {
        served = site.take_part(router, db, participating) => served?,
        () = figures::watch(&outbox, &relay) => {}
    }
    let _ = timeout(GRACE, async { tokio::join!(arriving, relay.stop()) }).await;
    Ok(())
}

/// What the order saga asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartDelivery {
    pub user_id: i64,
}

impl Command for StartDelivery {
    const TYPE: &'static str = "delivery.start.v1";
    const TOPIC: &'static str = "delivery.commands";
    type Reply = Started;
}

/// What it gets.
#[derive(Debug, Serialize, Deserialize)]
pub struct Started {
    pub delivery: i64,
}

/// The event is written in the transaction that starts the delivery: it leaves if and only if that commits. The trace is kept as text, so that the delivery's end belongs to it too.
async fn start(cx: CommandCx<PgOutbox>, db: &mut PgConnection, parcel: StartDelivery) -> Result<Started, StepError> {
    let order = cx.saga_id().as_uuid();
    let TraceContext { traceparent, tracestate, baggage } = TraceContext::of(&Context::current());
    let delivery = sqlx::query_scalar(
        "INSERT INTO delivery (order_id, user_id, traceparent, tracestate, baggage) VALUES ($1, $2, $3, $4, $5) RETURNING id",
    )
    .bind(order)
    .bind(parcel.user_id)
    .bind(traceparent)
    .bind(tracestate)
    .bind(baggage)
    .fetch_one(&mut *db)
    .await?;
    let started = DeliveryStarted { order_id: order, user_id: parcel.user_id };
    cx.publish(db, &order.to_string(), &started).await?;
    Ok(Started { delivery })
}

/// What others are told of a delivery.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryStarted {
    pub order_id: Uuid,
    pub user_id: i64,
}

impl Event for DeliveryStarted {
    const TYPE: &'static str = "delivery.started.v1";
    const TOPIC: &'static str = "delivery.events";
}

/// The same.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryCompleted {
    pub order_id: Uuid,
    pub user_id: i64,
}

impl Event for DeliveryCompleted {
    const TYPE: &'static str = "delivery.completed.v1";
    const TOPIC: &'static str = DeliveryStarted::TOPIC;
}

/// Stands for the courier: a moment after it started, a delivery is completed.
async fn arrive(db: PgPool, outbox: PgOutbox, stop: CancellationToken) {
    while !stop.is_cancelled() {
        // What could not be written is found again.
        if let Ok(0) | Err(_) = complete(&db, &outbox).await {
            sleep(POLL).await;
        }
    }
}

/// A delivery that has arrived, and the trace of its order.
#[derive(FromRow)]
struct Arrived {
    order_id: Uuid,
    user_id: i64,
    traceparent: Option<String>,
    tracestate: Option<String>,
    baggage: Option<String>,
}

/// Completes those that are due, and says how many. Also on several nodes at once: each takes what no other has taken.
async fn complete(db: &PgPool, outbox: &PgOutbox) -> Result<usize> {
    let mut tx = db.begin().await?;
    let arrived: Vec<Arrived> = sqlx::query_as(
        "UPDATE delivery SET state = 'COMPLETED'
         WHERE id IN (SELECT id FROM delivery WHERE state = 'STARTED' AND arrives <= now() ORDER BY arrives LIMIT 100 FOR UPDATE SKIP LOCKED)
         RETURNING order_id, user_id, traceparent, tracestate, baggage",
    )
    .fetch_all(&mut *tx)
    .await?;
    let completed = arrived.len();
    let events = arrived.into_iter().map(|Arrived { order_id, user_id, traceparent, tracestate, baggage }| {
        let _in_its_trace = TraceContext { traceparent, tracestate, baggage }.context().attach();
        outbox.event(&order_id.to_string(), &DeliveryCompleted { order_id, user_id })
    });
    outbox.publish_all(&mut tx, events.collect::<Result<_, _>>()?).await?;
    outbox.commit(tx).await?;
    Ok(completed)
}

/// A delivery, as others see it.
#[derive(Debug, Serialize, FromRow)]
#[serde(rename_all = "camelCase")]
struct Delivery {
    id: i64,
    order_id: Uuid,
    user_id: i64,
    state: String,
}

async fn of_user(State(db): State<PgPool>, Query(of): Query<OfUser>) -> Result<Json<Vec<Delivery>>, Problem> {
    let deliveries = sqlx::query_as(
        "SELECT id, order_id, user_id, state FROM delivery WHERE user_id = $1 ORDER BY id DESC LIMIT 100",
    );
    Ok(Json(deliveries.bind(of.user_id).fetch_all(&db).await?))
}

/// No constraint keeps two deliveries for one order apart: that is the inbox's work, and the books would show it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Books {
    pub deliveries: i64,
    pub orders: i64,
    pub under_way: i64,
}

async fn consistency(State(db): State<PgPool>) -> Result<Json<Consistency<Books>>, Problem> {
    let (deliveries, orders, under_way) = sqlx::query_as(
        "SELECT count(*), count(DISTINCT order_id), count(*) FILTER (WHERE state = 'STARTED') FROM delivery",
    )
    .fetch_one(&db)
    .await?;
    let books = Books { deliveries, orders, under_way };
    Ok(Json(Consistency { balanced: deliveries == orders, books }))
}
