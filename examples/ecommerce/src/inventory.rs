//! The inventory: what is in stock, and what is reserved for an order.

use crate::{
    Result,
    barrier::{self, Command},
    service::{Answer, IdempotencyKey, Problem, done, refused},
};
use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgPool;
use std::num::NonZeroU32;
use uuid::Uuid;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS stock (
        product_id  bigint PRIMARY KEY,
        delivered   bigint NOT NULL,  -- what ever came in
        quantity    bigint NOT NULL CHECK (quantity >= 0)  -- what is left of it
    );
    CREATE TABLE IF NOT EXISTS reservation (
        key         text PRIMARY KEY,
        order_id    uuid NOT NULL,
        product_id  bigint NOT NULL,
        quantity    bigint NOT NULL CHECK (quantity > 0),
        released    boolean NOT NULL DEFAULT false
    );
    INSERT INTO stock VALUES (1, 5, 5), (2, 1, 1) ON CONFLICT DO NOTHING";

pub async fn router(database: &str) -> Result<Router> {
    let db = PgPool::connect(database).await?;
    sqlx::raw_sql(barrier::TABLE).execute(&db).await?;
    sqlx::raw_sql(SCHEMA).execute(&db).await?;
    Ok(Router::new()
        .route("/reservations", post(reserve))
        .route("/reservations/release", post(release))
        .route("/inventory/{product}", get(inventory))
        .route("/books", get(books))
        .with_state(db))
}

/// What the order saga asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reserve {
    pub order_id: Uuid,
    pub product_id: i64,
    pub quantity: NonZeroU32,
}

/// What it gets.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reserved {
    pub units: u32,
}

async fn reserve(
    State(db): State<PgPool>,
    key: IdempotencyKey,
    Json(wanted): Json<Reserve>,
) -> Result<Answer, Problem> {
    let mut tx = match barrier::command(&db, &key).await? {
        Command::First(tx) => tx,
        Command::Again(answer) => return Ok(answer),
    };
    let quantity = i64::from(wanted.quantity.get());
    let taken = sqlx::query("UPDATE stock SET quantity = quantity - $2 WHERE product_id = $1 AND quantity >= $2")
        .bind(wanted.product_id)
        .bind(quantity)
        .execute(&mut *tx)
        .await?;
    if taken.rows_affected() == 0 {
        return barrier::answer(tx, &key, refused("out of stock")).await;
    }
    sqlx::query("INSERT INTO reservation (key, order_id, product_id, quantity) VALUES ($1, $2, $3, $4)")
        .bind(&key.0)
        .bind(wanted.order_id)
        .bind(wanted.product_id)
        .bind(quantity)
        .execute(&mut *tx)
        .await?;
    barrier::answer(tx, &key, done(&Reserved { units: wanted.quantity.get() })).await
}

/// Undoes the reservation that was made, or is still to come, under this key.
async fn release(State(db): State<PgPool>, key: IdempotencyKey) -> Result<Answer, Problem> {
    if let Some(mut tx) = barrier::undo(&db, &key).await? {
        sqlx::query(
            "WITH gone AS (UPDATE reservation SET released = true WHERE key = $1 RETURNING product_id, quantity)
             UPDATE stock SET quantity = stock.quantity + gone.quantity FROM gone WHERE stock.product_id = gone.product_id",
        )
        .bind(&key.0)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
    }
    Ok(done(&()))
}

async fn inventory(State(db): State<PgPool>, Path(product): Path<i64>) -> Result<Json<Value>, Problem> {
    let quantity: Option<i64> = sqlx::query_scalar("SELECT quantity FROM stock WHERE product_id = $1")
        .bind(product)
        .fetch_optional(&db)
        .await?;
    let quantity = quantity.ok_or(Problem::new(StatusCode::NOT_FOUND, "no such product"))?;
    Ok(Json(json!({ "productId": product, "quantity": quantity })))
}

/// All units that ever came in are either left or reserved.
#[derive(Debug, Serialize, Deserialize)]
pub struct Books {
    pub delivered: i64,
    pub left: i64,
    pub reserved: i64,
}

async fn books(State(db): State<PgPool>) -> Result<Json<Books>, Problem> {
    let (delivered, left, reserved) = sqlx::query_as(
        "SELECT sum(delivered)::bigint, sum(quantity)::bigint,
                (SELECT coalesce(sum(quantity), 0)::bigint FROM reservation WHERE NOT released)
         FROM stock",
    )
    .fetch_one(&db)
    .await?;
    Ok(Json(Books { delivered, left, reserved }))
}
