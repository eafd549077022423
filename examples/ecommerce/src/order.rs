//! The order service: takes orders, and runs their saga.

use crate::{
    Result,
    client::Participant,
    figures,
    saga::{OrderSaga, OrderSagaOverKafka, PlaceOrder, Shop},
    service::{self, GRACE, Place, Problem, idempotency_key},
};
use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    routing::{get, post},
};
use chrono::{DateTime, Utc};
use saga_core::{Engine, Outcome, SagaId, Sagas, StepError, machine::Status, participant::Event};
use saga_postgres::{InTransaction, PgOutbox, PgStore};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;
use uuid::Uuid;

/// The service's name.
pub const NAME: &str = "order";
/// How long after the death of a process another one takes over its orders.
const LEASE: Duration = Duration::from_secs(2);

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS product (
        id     bigint PRIMARY KEY,
        name   text NOT NULL,
        price  bigint NOT NULL CHECK (price > 0)
    );
    CREATE TABLE IF NOT EXISTS orders (
        id          uuid PRIMARY KEY,  -- the saga's
        user_id     bigint NOT NULL,
        product_id  bigint NOT NULL,
        product     text NOT NULL,  -- name and price as they were
        unit_price  bigint NOT NULL,
        quantity    bigint NOT NULL,
        total       bigint NOT NULL,
        state       text NOT NULL CHECK (state IN ('PENDING', 'CONFIRMED', 'CANCELLED')),
        ended_at    timestamptz  -- when it got its final state
    );
    CREATE INDEX IF NOT EXISTS orders_of_user ON orders (user_id);
    INSERT INTO product VALUES (1, 'MacBook Pro 16', 3500000), (2, 'Signed poster', 90000), (1000, 'Sticker', 100) ON CONFLICT DO NOTHING";

/// How the saga's commands get to the other services.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Way {
    Http,
    Kafka,
}

impl Way {
    pub const fn told(self) -> &'static str {
        match self {
            Self::Http => "commands over HTTP",
            Self::Kafka => "commands over Kafka",
        }
    }

    /// What the order service is told.
    pub fn argument(self) -> String {
        match self {
            Self::Http => "--transport=http".into(),
            Self::Kafka => "--transport=kafka".into(),
        }
    }
}

/// Where the other services are.
#[derive(Debug, clap::Args)]
pub struct Participants {
    #[arg(long, default_value = "http://127.0.0.1:8084")]
    pub inventory: String,
    #[arg(long, default_value = "http://127.0.0.1:8085")]
    pub payment: String,
    #[arg(long, default_value = "http://127.0.0.1:8086")]
    pub delivery: String,
}

pub async fn serve(place: &Place, participants: Participants, way: Way) -> Result<()> {
    let db = PgPool::connect(&place.database).await?;
    sqlx::raw_sql(SCHEMA).execute(&db).await?;
    let store = PgStore::connect(&place.database).await?;
    store.migrate().await?;
    let outbox = PgOutbox::new(db.clone(), NAME);
    let kafka = place.broker.transport()?;
    let relay = outbox.relay(kafka.clone()).start().await?;
    let figures = Arc::new(figures::Orders::new());
    let shop = Arc::new(Shop {
        orders: db.clone(),
        outbox: outbox.clone(),
        inventory: Participant::at(participants.inventory),
        payment: Participant::at(participants.payment),
        delivery: Participant::at(participants.delivery),
        figures: figures.clone(),
    });
    let engine = Engine::builder(store.clone())
        .transport(NAME, kafka)
        .register::<OrderSaga>(shop.clone())?
        .register::<OrderSagaOverKafka>(shop)?
        .configure(|config| config.lease = LEASE)
        .start()
        .await?;
    let sagas = OrderSagas { over_http: engine.sagas(), over_kafka: engine.sagas(), new_ones: way };
    let router = Router::new()
        .route("/orders", post(submit).get(of_user))
        .route("/orders/{id}", get(one))
        .route("/orders/{id}/history", get(history))
        .route("/books", get(books))
        .with_state(Orders { db, store, sagas, figures });
    tokio::select! {
        served = service::serve(router, place) => served?,
        () = figures::watch(&outbox, &relay) => {}
    }
    let ended = async {
        engine.shutdown(GRACE).await;
        relay.stop().await;
    };
    // It would wait for a broker that is gone.
    let _ = timeout(2 * GRACE, ended).await;
    Ok(())
}

#[derive(Clone)]
struct Orders {
    db: PgPool,
    store: PgStore,
    sagas: OrderSagas,
    figures: Arc<figures::Orders>,
}

/// The orders of both versions of the saga. One that began over HTTP ends over HTTP, also when new ones go over Kafka by now.
#[derive(Clone)]
struct OrderSagas {
    over_http: Sagas<OrderSaga>,
    over_kafka: Sagas<OrderSagaOverKafka>,
    new_ones: Way,
}

impl OrderSagas {
    /// Says which saga it is, and whether it is new.
    async fn submit(
        &self,
        store: &PgStore,
        tx: &mut PgConnection,
        key: &str,
        order: PlaceOrder,
    ) -> Result<(SagaId, bool), saga_core::Error> {
        Ok(match self.new_ones {
            Way::Kafka => {
                self.over_kafka.submit_in(store, tx, key, order).await.map(|saga| (saga.id(), saga.is_new()))?
            }
            Way::Http => {
                self.over_http.submit_in(store, tx, key, order).await.map(|saga| (saga.id(), saga.is_new()))?
            }
        })
    }

    async fn status(&self, saga: SagaId) -> Result<Status, saga_core::Error> {
        self.over_http.get(saga).status().await
    }

    async fn outcome(&self, saga: SagaId) -> Result<Outcome<()>, saga_core::Error> {
        match self.over_kafka.get(saga).outcome().await {
            Err(saga_core::Error::WrongDefinition { .. }) => self.over_http.get(saga).outcome().await,
            known => known,
        }
    }

    async fn history(&self, saga: SagaId) -> Result<String, saga_core::Error> {
        match self.over_kafka.get(saga).history().await {
            Err(saga_core::Error::WrongDefinition { .. }) => Ok(self.over_http.get(saga).history().await?.to_string()),
            known => Ok(known?.to_string()),
        }
    }
}

/// Answers as soon as the order is durable, and its saga with it; what comes of it is told by `GET /orders/{id}`. With a key
/// that was used before the answer is the order of then.
async fn submit(
    State(Orders { db, store, sagas, figures }): State<Orders>,
    headers: HeaderMap,
    Json(order): Json<PlaceOrder>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let key = idempotency_key(&headers).map_or_else(|| Uuid::now_v7().to_string(), Into::into);
    let mut tx = db.begin().await?;
    let (saga, is_new) = sagas.submit(&store, &mut tx, &key, order.clone()).await?;
    if is_new {
        let placed = sqlx::query(
            "INSERT INTO orders (id, user_id, product_id, product, unit_price, quantity, total, state)
             SELECT $1, $2, id, name, price, $4, price * $4, 'PENDING' FROM product WHERE id = $3",
        )
        .bind(saga.as_uuid())
        .bind(order.user_id)
        .bind(order.product_id)
        .bind(i64::from(order.quantity.get()))
        .execute(&mut *tx)
        .await?;
        if placed.rows_affected() == 0 {
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "there is no such product"));
        }
    }
    tx.commit().await?;
    store.wake();
    if is_new {
        figures.requests.add(1, &[]);
    }
    Ok((StatusCode::ACCEPTED, look_up(&db, &sagas, saga).await?))
}

async fn one(State(orders): State<Orders>, Path(id): Path<Uuid>) -> Result<Json<Value>, Problem> {
    look_up(&orders.db, &orders.sagas, id.into()).await
}

/// An order, where its saga stands, and why it was cancelled if it was.
async fn look_up(db: &PgPool, sagas: &OrderSagas, saga: SagaId) -> Result<Json<Value>, Problem> {
    // First: once the saga has ended the row says how.
    let status = sagas.status(saga).await;
    let row: Option<Row> = sqlx::query_as(
        "SELECT id, user_id, product_id, product, unit_price, quantity, total, state, ended_at FROM orders WHERE id = $1",
    )
    .bind(saga.as_uuid())
    .fetch_optional(db)
    .await?;
    let mut order = told(row.ok_or(Problem::new(StatusCode::NOT_FOUND, "there is no such order"))?);
    let status = status?;
    order["saga"] = format!("{status:?}").into();
    if status == Status::RolledBack
        && let Outcome::RolledBack(why) = sagas.outcome(saga).await?
    {
        order["reason"] = why.reason.into();
    }
    Ok(Json(order))
}

async fn history(State(orders): State<Orders>, Path(id): Path<Uuid>) -> Result<String, Problem> {
    Ok(orders.sagas.history(id.into()).await?)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfUser {
    user_id: i64,
}

async fn of_user(State(orders): State<Orders>, Query(of): Query<OfUser>) -> Result<Json<Vec<Value>>, Problem> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, user_id, product_id, product, unit_price, quantity, total, state, ended_at FROM orders WHERE user_id = $1 ORDER BY id",
    )
    .bind(of.user_id)
    .fetch_all(&orders.db)
    .await?;
    Ok(Json(rows.into_iter().map(told).collect()))
}

type Row = (Uuid, i64, i64, String, i64, i64, i64, String, Option<DateTime<Utc>>);

fn told((id, user, product_id, product, unit_price, quantity, total, state, ended): Row) -> Value {
    json!({
        "id": id, "userId": user, "productId": product_id, "product": product,
        "unitPrice": unit_price, "quantity": quantity, "total": total, "state": state, "endedAt": ended,
    })
}

impl From<saga_core::Error> for Problem {
    fn from(error: saga_core::Error) -> Self {
        let status = match error {
            saga_core::Error::NoSuchSaga(_) => StatusCode::NOT_FOUND,
            saga_core::Error::KeyTaken { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            saga_core::Error::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, &error.to_string())
    }
}

/// For the saga: what is to be paid.
pub async fn total(db: &PgPool, saga: SagaId) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT total FROM orders WHERE id = $1").bind(saga.as_uuid()).fetch_one(db).await
}

/// For the saga: the order's state is a copy of the saga's, for queries. If it changes, others are told in the same transaction; a repeat changes nothing.
pub async fn change(shop: &Shop, saga: SagaId, state: &str, event: &impl Event) -> Result<(), StepError> {
    let mut tx = shop.orders.begin().await?;
    let changed =
        sqlx::query("UPDATE orders SET state = $2, ended_at = clock_timestamp() WHERE id = $1 AND state = 'PENDING'")
            .bind(saga.as_uuid())
            .bind(state)
            .execute(&mut *tx)
            .await?;
    if changed.rows_affected() == 1 {
        shop.outbox.publish(&mut tx, &saga.to_string(), event).await?;
    }
    shop.outbox.commit(tx).await?;
    if changed.rows_affected() == 1 {
        shop.figures.ended(saga, state);
    }
    Ok(())
}

/// What others are told of an order.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrderConfirmed {
    pub order_id: Uuid,
    pub user_id: i64,
}

impl Event for OrderConfirmed {
    const TYPE: &'static str = "order.confirmed.v1";
    const TOPIC: &'static str = "order.events";
}

/// The same.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrderCancelled {
    pub order_id: Uuid,
    pub user_id: i64,
}

impl Event for OrderCancelled {
    const TYPE: &'static str = "order.cancelled.v1";
    const TOPIC: &'static str = OrderConfirmed::TOPIC;
}

/// The finished orders, and how many are not.
#[derive(Debug, Serialize, Deserialize)]
pub struct Books {
    pub unfinished: i64,
    pub cancelled: i64,
    pub confirmed: i64,
    pub units: i64,
    pub money: i64,
}

async fn books(State(orders): State<Orders>) -> Result<Json<Books>, Problem> {
    let (unfinished, cancelled, confirmed, units, money) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE state = 'PENDING'), count(*) FILTER (WHERE state = 'CANCELLED'), count(*) FILTER (WHERE state = 'CONFIRMED'),
                coalesce(sum(quantity) FILTER (WHERE state = 'CONFIRMED'), 0)::bigint,
                coalesce(sum(total) FILTER (WHERE state = 'CONFIRMED'), 0)::bigint
         FROM orders",
    )
    .fetch_one(&orders.db)
    .await?;
    Ok(Json(Books { unfinished, cancelled, confirmed, units, money }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use saga_postgres::testing::Postgres;

    #[tokio::test]
    async fn a_step_that_runs_again_after_its_commit_tells_nobody_twice() -> Result<()> {
        let postgres = Postgres::private().await?;
        let orders = PgPool::connect(&postgres.url()).await?;
        sqlx::raw_sql(SCHEMA).execute(&orders).await?;
        let outbox = PgOutbox::new(orders.clone(), NAME);
        outbox.migrate().await?;
        let [inventory, payment, delivery] = ["", "", ""].map(Participant::at);
        let figures = Arc::new(figures::Orders::new());
        let shop = Shop { orders, outbox: outbox.clone(), inventory, payment, delivery, figures };
        let saga = SagaId::from(Uuid::now_v7());
        sqlx::query("INSERT INTO orders VALUES ($1, 1, 1, 'MacBook Pro 16', 3500000, 1, 3500000, 'PENDING')")
            .bind(saga.as_uuid())
            .execute(&shop.orders)
            .await?;
        let confirmed = OrderConfirmed { order_id: saga.as_uuid(), user_id: 1 };
        for _ in 0..2 {
            change(&shop, saga, "CONFIRMED", &confirmed).await.map_err(|error| error.to_string())?;
            assert_eq!(outbox.lag().await?.waiting, 1);
        }
        let state: String = sqlx::query_scalar("SELECT state FROM orders").fetch_one(&shop.orders).await?;
        assert_eq!(state, "CONFIRMED");
        shop.orders.close().await;
        postgres.stop().await;
        Ok(())
    }
}
