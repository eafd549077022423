//! The payment service: what each user has, and what was charged for an order.

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
use uuid::Uuid;

/// User 2 is the one who cannot pay.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS account (
        user_id  bigint PRIMARY KEY,
        opening  bigint NOT NULL,
        balance  bigint NOT NULL CHECK (balance >= 0)
    );
    CREATE TABLE IF NOT EXISTS payment (
        key       text PRIMARY KEY,
        order_id  uuid NOT NULL,
        user_id   bigint NOT NULL,
        amount    bigint NOT NULL CHECK (amount > 0)
    );
    INSERT INTO account SELECT id, 20000000, 20000000 FROM generate_series(1, 100) id WHERE id <> 2 ON CONFLICT DO NOTHING;
    INSERT INTO account VALUES (2, 1000000, 1000000) ON CONFLICT DO NOTHING";

pub async fn router(database: &str) -> Result<Router> {
    let db = PgPool::connect(database).await?;
    sqlx::raw_sql(barrier::TABLE).execute(&db).await?;
    sqlx::raw_sql(SCHEMA).execute(&db).await?;
    Ok(Router::new()
        .route("/payments", post(charge))
        .route("/accounts/{user}", get(account))
        .route("/books", get(books))
        .with_state(db))
}

/// What the order saga asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Charge {
    pub order_id: Uuid,
    pub user_id: i64,
    pub amount: i64,
}

/// What it gets.
#[derive(Debug, Serialize, Deserialize)]
pub struct Charged {
    pub amount: i64,
}

async fn charge(State(db): State<PgPool>, key: IdempotencyKey, Json(due): Json<Charge>) -> Result<Answer, Problem> {
    let mut tx = match barrier::command(&db, &key).await? {
        Command::First(tx) => tx,
        Command::Again(answer) => return Ok(answer),
    };
    let paid = sqlx::query("UPDATE account SET balance = balance - $2 WHERE user_id = $1 AND balance >= $2")
        .bind(due.user_id)
        .bind(due.amount)
        .execute(&mut *tx)
        .await?;
    if paid.rows_affected() == 0 {
        return barrier::answer(tx, &key, refused("payment declined")).await;
    }
    sqlx::query("INSERT INTO payment (key, order_id, user_id, amount) VALUES ($1, $2, $3, $4)")
        .bind(&key.0)
        .bind(due.order_id)
        .bind(due.user_id)
        .bind(due.amount)
        .execute(&mut *tx)
        .await?;
    barrier::answer(tx, &key, done(&Charged { amount: due.amount })).await
}

async fn account(State(db): State<PgPool>, Path(user): Path<i64>) -> Result<Json<Value>, Problem> {
    let balance: Option<i64> =
        sqlx::query_scalar("SELECT balance FROM account WHERE user_id = $1").bind(user).fetch_optional(&db).await?;
    let balance = balance.ok_or(Problem::new(StatusCode::NOT_FOUND, "no such user"))?;
    Ok(Json(json!({ "userId": user, "balance": balance })))
}

/// All money that the users began with is either still theirs or was taken.
#[derive(Debug, Serialize, Deserialize)]
pub struct Books {
    pub opening: i64,
    pub left: i64,
    pub taken: i64,
}

async fn books(State(db): State<PgPool>) -> Result<Json<Books>, Problem> {
    let (opening, left, taken) = sqlx::query_as(
        "SELECT sum(opening)::bigint, sum(balance)::bigint, (SELECT coalesce(sum(amount), 0)::bigint FROM payment)
         FROM account",
    )
    .fetch_one(&db)
    .await?;
    Ok(Json(Books { opening, left, taken }))
}
