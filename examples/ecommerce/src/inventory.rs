//! The inventory: what is in stock, and what is reserved for an order.

use crate::{
    Result, figures,
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
use std::{num::NonZeroU32, sync::Arc};

/// The service's name.
pub const NAME: &str = "inventory";
/// Of its port.
pub const OFFSET: u16 = 4;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS stock (
        product_id  bigint PRIMARY KEY,
        delivered   bigint NOT NULL,  -- what ever came in
        quantity    bigint NOT NULL CHECK (quantity >= 0)  -- what is left of it
    );
    CREATE TABLE IF NOT EXISTS reservation (
        order_id    uuid PRIMARY KEY,
        product_id  bigint NOT NULL,
        quantity    bigint NOT NULL CHECK (quantity > 0)
    );
    INSERT INTO stock VALUES (1, 5, 5), (2, 1, 1), (3, 20, 20), (1000, 1000000000, 1000000000) ON CONFLICT DO NOTHING";

pub async fn serve(site: Site, kafka: Arc<dyn Transport>) -> Result<()> {
    let db = site.connect().await?;
    let inbox = PgInbox::new(db.clone());
    inbox.migrate().await?;
    sqlx::raw_sql(SCHEMA).execute(&db).await?;
    let figures = Arc::new(figures::Reservations::new());
    let barrier = Barrier::new(inbox.clone(), figures.clone());
    let router = Router::new()
        .route("/reservations", barrier.on(reserve))
        .route("/reservations/release", barrier.on_undo(release))
        .route("/inventory/{product}", get(inventory))
        .route("/consistency", get(consistency))
        .route("/openapi.json", service::openapi(include_str!("../openapi/inventory.json")))
        .with_state(db.clone());
    let participant = Participant::new(NAME, inbox, figures).on(reserve).on_undo(release);
    site.take_part(router, db, participant.start(kafka).await?).await
}

/// What the order saga asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReserveStock {
    pub product_id: i64,
    pub quantity: NonZeroU32,
}

impl Command for ReserveStock {
    const TYPE: &'static str = "inventory.reserve.v1";
    const TOPIC: &'static str = "inventory.commands";
    type Reply = Reserved;
}

/// What it gets.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reserved {
    pub units: u32,
}

type Cx = CommandCx<Arc<figures::Reservations>>;

async fn reserve(cx: Cx, db: &mut PgConnection, wanted: ReserveStock) -> Result<Reserved, StepError> {
    let reserved = take(cx.saga_id(), db, wanted).await;
    cx.count(&reserved);
    reserved
}

async fn take(order: SagaId, db: &mut PgConnection, wanted: ReserveStock) -> Result<Reserved, StepError> {
    let quantity = i64::from(wanted.quantity.get());
    let taken = sqlx::query("UPDATE stock SET quantity = quantity - $2 WHERE product_id = $1 AND quantity >= $2")
        .bind(wanted.product_id)
        .bind(quantity)
        .execute(&mut *db)
        .await?;
    if taken.rows_affected() == 0 {
        return Err(StepError::fail("out of stock"));
    }
    sqlx::query("INSERT INTO reservation (order_id, product_id, quantity) VALUES ($1, $2, $3)")
        .bind(order.as_uuid())
        .bind(wanted.product_id)
        .bind(quantity)
        .execute(db)
        .await?;
    Ok(Reserved { units: wanted.quantity.get() })
}

/// The undo of [`ReserveStock`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReleaseStock {}

impl Command for ReleaseStock {
    const TYPE: &'static str = "inventory.release.v1";
    const TOPIC: &'static str = ReserveStock::TOPIC;
    type Reply = ();
}

/// Only called if there is a reservation, and once.
async fn release(cx: Cx, db: &mut PgConnection, _: ReleaseStock) -> Result<(), StepError> {
    sqlx::query(
        "WITH gone AS (DELETE FROM reservation WHERE order_id = $1 RETURNING product_id, quantity)
         UPDATE stock SET quantity = stock.quantity + gone.quantity FROM gone WHERE stock.product_id = gone.product_id",
    )
    .bind(cx.saga_id().as_uuid())
    .execute(db)
    .await?;
    cx.released.add(1, &[]);
    Ok(())
}

async fn inventory(State(db): State<PgPool>, Path(product): Path<i64>) -> Result<Json<Value>, Problem> {
    let quantity: Option<i64> = sqlx::query_scalar("SELECT quantity FROM stock WHERE product_id = $1")
        .bind(product)
        .fetch_optional(&db)
        .await?;
    let quantity = quantity.ok_or_else(|| Problem::not_found("there is no such product"))?;
    Ok(Json(json!({ "productId": product, "quantity": quantity })))
}

/// All units that ever came in are either left or reserved.
#[derive(Debug, Serialize, Deserialize)]
pub struct Books {
    pub delivered: i64,
    pub left: i64,
    pub reserved: i64,
}

async fn consistency(State(db): State<PgPool>) -> Result<Json<Consistency<Books>>, Problem> {
    let (delivered, left, reserved) = sqlx::query_as(
        "SELECT sum(delivered)::bigint, sum(quantity)::bigint,
                (SELECT coalesce(sum(quantity), 0)::bigint FROM reservation)
         FROM stock",
    )
    .fetch_one(&db)
    .await?;
    let books = Books { delivered, left, reserved };
    Ok(Json(Consistency { balanced: delivered == left + reserved, books }))
}
