//! The order service: takes orders, and runs their saga.

use crate::{
    Result,
    client::Participant,
    saga::{OrderSaga, PlaceOrder, Shop},
    service::{self, IdempotencyKey, Place, Problem},
};
use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    routing::{get, post},
};
use saga_core::{Engine, Outcome, SagaId, Sagas, Started, machine::Status};
use saga_postgres::{InTransaction, PgStore};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgPool;
use std::time::Duration;
use uuid::Uuid;

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
        state       text NOT NULL CHECK (state IN ('PENDING', 'CONFIRMED', 'CANCELLED'))
    );
    CREATE INDEX IF NOT EXISTS orders_of_user ON orders (user_id);
    INSERT INTO product VALUES (1, 'MacBook Pro 16', 3500000), (2, 'Signed poster', 90000) ON CONFLICT DO NOTHING";

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

pub async fn serve(place: &Place, participants: Participants) -> Result<()> {
    let db = PgPool::connect(&place.database).await?;
    sqlx::raw_sql(SCHEMA).execute(&db).await?;
    let store = PgStore::connect(&place.database).await?;
    store.migrate().await?;
    let shop = Shop {
        orders: db.clone(),
        inventory: Participant::at(participants.inventory),
        payment: Participant::at(participants.payment),
        delivery: Participant::at(participants.delivery),
    };
    let engine = Engine::builder(store.clone())
        .register::<OrderSaga>(shop)?
        .configure(|config| config.lease = LEASE)
        .start()
        .await?;
    let router = Router::new()
        .route("/orders", post(submit).get(of_user))
        .route("/orders/{id}", get(one))
        .route("/orders/{id}/history", get(history))
        .route("/books", get(books))
        .with_state(Orders { db, store, sagas: engine.sagas() });
    service::serve(router, place).await?;
    engine.shutdown(Duration::from_secs(5)).await;
    Ok(())
}

#[derive(Clone)]
struct Orders {
    db: PgPool,
    store: PgStore,
    sagas: Sagas<OrderSaga>,
}

/// Answers as soon as the order is durable, and its saga with it; what comes of it is told by `GET /orders/{id}`. With a key
/// that was used before the answer is the order of then.
async fn submit(
    State(Orders { db, store, sagas }): State<Orders>,
    headers: HeaderMap,
    Json(order): Json<PlaceOrder>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let key = IdempotencyKey::of(&headers).map_or_else(|| Uuid::now_v7().to_string(), |key| key.0);
    let mut tx = db.begin().await?;
    let saga = sagas.submit_in(&store, &mut tx, &key, order.clone()).await?;
    if saga.is_new() {
        let placed = sqlx::query(
            "INSERT INTO orders (id, user_id, product_id, product, unit_price, quantity, total, state)
             SELECT $1, $2, id, name, price, $4, price * $4, 'PENDING' FROM product WHERE id = $3",
        )
        .bind(saga.id().as_uuid())
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
    Ok((StatusCode::ACCEPTED, look_up(&db, &saga).await?))
}

async fn one(State(orders): State<Orders>, Path(id): Path<Uuid>) -> Result<Json<Value>, Problem> {
    look_up(&orders.db, &orders.sagas.get(id.into())).await
}

/// An order, where its saga stands, and why it was cancelled if it was.
async fn look_up(db: &PgPool, saga: &Started<OrderSaga>) -> Result<Json<Value>, Problem> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT id, user_id, product_id, product, unit_price, quantity, total, state FROM orders WHERE id = $1",
    )
    .bind(saga.id().as_uuid())
    .fetch_optional(db)
    .await?;
    let mut order = told(row.ok_or(Problem::new(StatusCode::NOT_FOUND, "there is no such order"))?);
    let status = saga.status().await?;
    order["saga"] = format!("{status:?}").into();
    if status == Status::RolledBack
        && let Outcome::RolledBack(why) = saga.outcome().await?
    {
        order["reason"] = why.reason.into();
    }
    Ok(Json(order))
}

async fn history(State(orders): State<Orders>, Path(id): Path<Uuid>) -> Result<String, Problem> {
    Ok(orders.sagas.get(id.into()).history().await?.to_string())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfUser {
    user_id: i64,
}

async fn of_user(State(orders): State<Orders>, Query(of): Query<OfUser>) -> Result<Json<Vec<Value>>, Problem> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, user_id, product_id, product, unit_price, quantity, total, state FROM orders WHERE user_id = $1 ORDER BY id",
    )
    .bind(of.user_id)
    .fetch_all(&orders.db)
    .await?;
    Ok(Json(rows.into_iter().map(told).collect()))
}

type Row = (Uuid, i64, i64, String, i64, i64, i64, String);

fn told((id, user, product_id, product, unit_price, quantity, total, state): Row) -> Value {
    json!({
        "id": id, "userId": user, "productId": product_id, "product": product,
        "unitPrice": unit_price, "quantity": quantity, "total": total, "state": state,
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

/// For the saga: the order's state is a copy of the saga's, for queries.
pub async fn change(db: &PgPool, saga: SagaId, state: &str) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE orders SET state = $2 WHERE id = $1").bind(saga.as_uuid()).bind(state).execute(db).await?;
    Ok(())
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
