//! The payment service: what each user has, and what was charged for an order.

use crate::{
    Result, figures,
    service::{self, Place, Problem},
};
use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use saga_core::{
    SagaId, StepError,
    participant::{Command, CommandCx, Participant},
};
use saga_postgres::{Barrier, PgInbox};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool};
use std::sync::Arc;

/// The service's name.
pub const NAME: &str = "payment";

/// User 2 is the one who cannot pay.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS account (
        user_id  bigint PRIMARY KEY,
        opening  bigint NOT NULL,
        balance  bigint NOT NULL CHECK (balance >= 0)
    );
    CREATE TABLE IF NOT EXISTS payment (
        id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        order_id  uuid NOT NULL,
        user_id   bigint NOT NULL,
        amount    bigint NOT NULL CHECK (amount > 0)
    );
    INSERT INTO account SELECT id, 20000000, 20000000 FROM generate_series(1, 100) id WHERE id <> 2 ON CONFLICT DO NOTHING;
    INSERT INTO account SELECT id, 1000000000, 1000000000 FROM generate_series(1001, 2000) id ON CONFLICT DO NOTHING;
    INSERT INTO account VALUES (2, 1000000, 1000000) ON CONFLICT DO NOTHING";

pub async fn serve(place: &Place) -> Result<()> {
    let db = PgPool::connect(&place.database).await?;
    let inbox = PgInbox::new(db.clone());
    inbox.migrate().await?;
    sqlx::raw_sql(SCHEMA).execute(&db).await?;
    let figures = Arc::new(figures::Payments::new());
    let barrier = Barrier::new(inbox.clone(), figures.clone());
    let router = Router::new()
        .route("/payments", barrier.on(charge))
        .route("/accounts/{user}", get(account))
        .route("/books", get(books))
        .with_state(db);
    let participant = Participant::new(NAME, inbox, figures).on(charge);
    service::take_part(place, router, participant.start(place.broker.transport()?).await?).await
}

/// What the order saga asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChargePayment {
    pub user_id: i64,
    pub amount: i64,
}

impl Command for ChargePayment {
    const TYPE: &'static str = "payment.charge.v1";
    const TOPIC: &'static str = "payment.commands";
    type Reply = Charged;
}

/// What it gets.
#[derive(Debug, Serialize, Deserialize)]
pub struct Charged {
    pub amount: i64,
}

async fn charge(
    cx: CommandCx<Arc<figures::Payments>>,
    db: &mut PgConnection,
    due: ChargePayment,
) -> Result<Charged, StepError> {
    let charged = take(cx.saga_id(), db, due).await;
    cx.count(&charged);
    charged
}

async fn take(order: SagaId, db: &mut PgConnection, due: ChargePayment) -> Result<Charged, StepError> {
    let paid = sqlx::query("UPDATE account SET balance = balance - $2 WHERE user_id = $1 AND balance >= $2")
        .bind(due.user_id)
        .bind(due.amount)
        .execute(&mut *db)
        .await?;
    if paid.rows_affected() == 0 {
        return Err(StepError::fail("payment declined"));
    }
    sqlx::query("INSERT INTO payment (order_id, user_id, amount) VALUES ($1, $2, $3)")
        .bind(order.as_uuid())
        .bind(due.user_id)
        .bind(due.amount)
        .execute(db)
        .await?;
    Ok(Charged { amount: due.amount })
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
