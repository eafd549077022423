//! The delivery service: one delivery for each order that was paid.

use crate::{
    Result,
    barrier::{self, Command},
    service::{Answer, IdempotencyKey, Problem, done},
};
use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use uuid::Uuid;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS delivery (
        id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        order_id  uuid NOT NULL,
        user_id   bigint NOT NULL
    )";

pub async fn router(database: &str) -> Result<Router> {
    let db = PgPool::connect(database).await?;
    sqlx::raw_sql(barrier::TABLE).execute(&db).await?;
    sqlx::raw_sql(SCHEMA).execute(&db).await?;
    Ok(Router::new().route("/deliveries", post(start)).route("/books", get(books)).with_state(db))
}

/// What the order saga asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Start {
    pub order_id: Uuid,
    pub user_id: i64,
}

/// What it gets.
#[derive(Debug, Serialize, Deserialize)]
pub struct Started {
    pub delivery: i64,
}

async fn start(State(db): State<PgPool>, key: IdempotencyKey, Json(parcel): Json<Start>) -> Result<Answer, Problem> {
    let mut tx = match barrier::command(&db, &key).await? {
        Command::First(tx) => tx,
        Command::Again(answer) => return Ok(answer),
    };
    let delivery = sqlx::query_scalar("INSERT INTO delivery (order_id, user_id) VALUES ($1, $2) RETURNING id")
        .bind(parcel.order_id)
        .bind(parcel.user_id)
        .fetch_one(&mut *tx)
        .await?;
    barrier::answer(tx, &key, done(&Started { delivery })).await
}

/// No constraint keeps two deliveries for one order apart: that is the barrier's work, and the books would show it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Books {
    pub deliveries: i64,
}

async fn books(State(db): State<PgPool>) -> Result<Json<Books>, Problem> {
    let deliveries = sqlx::query_scalar("SELECT count(*) FROM delivery").fetch_one(&db).await?;
    Ok(Json(Books { deliveries }))
}
