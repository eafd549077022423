//! The payment service: what each user has, and what was charged for an order.

use crate::{
    Result, figures,
    money::Money,
    problem::Problem,
    service::{self, Consistency, Site},
};
use axum::{
    Json, Router,
    extract::{Path, State},
    routing::get,
};
use saga_core::{
    SagaId, StepError,
    participant::{Command, CommandCx, Participant},
    transport::Transport,
};
use saga_postgres::{Barrier, PgInbox};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool};
use std::sync::Arc;

/// The service's name.
pub const NAME: &str = "payment";
/// Of its port.
pub const OFFSET: u16 = 5;

/// Accounts are in one currency each, and amounts in its smallest unit. User 2 is the one who cannot pay.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS account (
        user_id   bigint PRIMARY KEY,
        currency  text NOT NULL,
        opening   bigint NOT NULL,
        balance   bigint NOT NULL CHECK (balance >= 0)
    );
    CREATE TABLE IF NOT EXISTS payment (
        id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        order_id  uuid NOT NULL,
        user_id   bigint NOT NULL,
        amount    bigint NOT NULL CHECK (amount > 0)
    );
    INSERT INTO account SELECT id, 'KRW', 20000000, 20000000 FROM generate_series(1, 100) id WHERE id <> 2 ON CONFLICT DO NOTHING;
    INSERT INTO account SELECT id, 'KRW', 1000000000, 1000000000 FROM generate_series(1001, 2000) id ON CONFLICT DO NOTHING;
    INSERT INTO account VALUES (2, 'KRW', 1000000, 1000000) ON CONFLICT DO NOTHING";

pub async fn serve(site: Site, kafka: Arc<dyn Transport>) -> Result<()> {
    let db = site.connect().await?;
    let inbox = PgInbox::new(db.clone());
    inbox.migrate().await?;
    sqlx::raw_sql(SCHEMA).execute(&db).await?;
    let figures = Arc::new(figures::Payments::new());
    let barrier = Barrier::new(inbox.clone(), figures.clone());
    let router = Router::new()
        .route("/payments", barrier.on(charge))
        .route("/accounts/{user}", get(account))
        .route("/consistency", get(consistency))
        .route("/openapi.json", service::openapi(include_str!("../openapi/payment.json")))
        .with_state(db.clone());
    let participant = Participant::new(NAME, inbox, figures).on(charge);
    site.take_part(router, db, participant.start(kafka).await?).await
}

/// What the order saga asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChargePayment {
    pub user_id: i64,
    #[serde(flatten)]
    pub due: Money,
}

impl Command for ChargePayment {
    const TYPE: &'static str = "payment.charge.v1";
    const TOPIC: &'static str = "payment.commands";
    type Reply = Money;
}

async fn charge(
    cx: CommandCx<Arc<figures::Payments>>,
    db: &mut PgConnection,
    charge: ChargePayment,
) -> Result<Money, StepError> {
    let charged = take(cx.saga_id(), db, charge).await;
    cx.count(&charged);
    charged
}

async fn take(order: SagaId, db: &mut PgConnection, charge: ChargePayment) -> Result<Money, StepError> {
    let ChargePayment { user_id, due } = charge;
    let paid =
        sqlx::query("UPDATE account SET balance = balance - $2 WHERE user_id = $1 AND balance >= $2 AND currency = $3")
            .bind(user_id)
            .bind(due.amount)
            .bind(&due.currency)
            .execute(&mut *db)
            .await?;
    if paid.rows_affected() == 0 {
        return Err(StepError::fail("payment declined"));
    }
    sqlx::query("INSERT INTO payment (order_id, user_id, amount) VALUES ($1, $2, $3)")
        .bind(order.as_uuid())
        .bind(user_id)
        .bind(due.amount)
        .execute(db)
        .await?;
    Ok(due)
}

async fn account(State(db): State<PgPool>, Path(user): Path<i64>) -> Result<Json<Value>, Problem> {
    let account: Option<(i64, String)> = sqlx::query_as("SELECT balance, currency FROM account WHERE user_id = $1")
        .bind(user)
        .fetch_optional(&db)
        .await?;
    let (balance, currency) = account.ok_or_else(|| Problem::not_found("there is no such account"))?;
    Ok(Json(json!({ "userId": user, "balance": balance, "currency": currency })))
}

/// All money that the users began with is either still theirs or was taken.
#[derive(Debug, Serialize, Deserialize)]
pub struct Books {
    pub opening: i64,
    pub left: i64,
    pub taken: i64,
}

async fn consistency(State(db): State<PgPool>) -> Result<Json<Consistency<Books>>, Problem> {
    let (opening, left, taken) = sqlx::query_as(
        "SELECT sum(opening)::bigint, sum(balance)::bigint, (SELECT coalesce(sum(amount), 0)::bigint FROM payment)
         FROM account",
    )
    .fetch_one(&db)
    .await?;
    let books = Books { opening, left, taken };
    Ok(Json(Consistency { balanced: opening == left + taken, books }))
}
