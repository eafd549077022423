//! The notification service: tells customers what becomes of their orders. It listens to what has happened; no order waits for it.

use crate::{
    Result,
    databases::create_tables,
    delivery::{DeliveryCompleted, DeliveryStarted},
    order::{OrderCancelled, OrderCreated},
    problem::Problem,
    service::{self, Consistency, OfUser, Site},
};
use axum::{
    Json, Router,
    extract::{Query, State},
    routing::get,
};
use saga_core::{
    StepError,
    participant::{BatchCx, Listener},
    transport::Transport,
};
use saga_postgres::PgInbox;
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection, PgPool};
use std::sync::Arc;
use uuid::Uuid;

/// The service's name.
pub const NAME: &str = "notification";
/// Of its port.
pub const OFFSET: u16 = 8;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS notification (
        id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        order_id  uuid NOT NULL,
        user_id   bigint NOT NULL,
        channel   text NOT NULL CHECK (channel IN ('MAIL', 'SMS')),
        message   text NOT NULL
    );
    CREATE INDEX IF NOT EXISTS notifications_of_user ON notification (user_id)";

pub async fn serve(site: Site, kafka: Arc<dyn Transport>) -> Result<()> {
    let db = site.connect().await?;
    let inbox = PgInbox::new(db.clone());
    inbox.migrate().await?;
    create_tables(&db, SCHEMA).await?;
    let router = Router::new()
        .route("/notifications", get(of_user))
        .route("/consistency", get(consistency))
        .route("/openapi.json", service::openapi(include_str!("../openapi/notification.json")))
        .with_state(db.clone());
    let listener = Listener::new(NAME, inbox, ());
    let listener = listener.on_batch(created).on_batch(cancelled).on_batch(started).on_batch(completed);
    site.take_part(router, db, listener.start(kafka).await?).await
}

async fn created(_: BatchCx<()>, db: &mut PgConnection, orders: Vec<OrderCreated>) -> Result<(), StepError> {
    let told = orders.iter().map(|order| (order.order_id, order.user_id));
    notify(db, told.unzip(), "MAIL", "We have your order.").await
}

async fn cancelled(_: BatchCx<()>, db: &mut PgConnection, orders: Vec<OrderCancelled>) -> Result<(), StepError> {
    let told = orders.iter().map(|order| (order.order_id, order.user_id));
    notify(db, told.unzip(), "MAIL", "Your order was cancelled.").await
}

async fn started(_: BatchCx<()>, db: &mut PgConnection, deliveries: Vec<DeliveryStarted>) -> Result<(), StepError> {
    let told = deliveries.iter().map(|delivery| (delivery.order_id, delivery.user_id));
    notify(db, told.unzip(), "SMS", "Your order is on its way.").await
}

async fn completed(_: BatchCx<()>, db: &mut PgConnection, deliveries: Vec<DeliveryCompleted>) -> Result<(), StepError> {
    let told = deliveries.iter().map(|delivery| (delivery.order_id, delivery.user_id));
    notify(db, told.unzip(), "SMS", "Your order has arrived.").await
}

/// Stands for sending it, to the users of these orders.
async fn notify(
    db: &mut PgConnection,
    (orders, users): (Vec<Uuid>, Vec<i64>),
    channel: &str,
    message: &str,
) -> Result<(), StepError> {
    sqlx::query(
        "INSERT INTO notification (order_id, user_id, channel, message)
         SELECT order_id, user_id, $3, $4 FROM unnest($1::uuid[], $2::bigint[]) AS told (order_id, user_id)",
    )
    .bind(orders)
    .bind(users)
    .bind(channel)
    .bind(message)
    .execute(db)
    .await?;
    Ok(())
}

/// A notification, as others see it.
#[derive(Debug, Serialize, FromRow)]
#[serde(rename_all = "camelCase")]
struct Notification {
    order_id: Uuid,
    channel: String,
    message: String,
}

async fn of_user(State(db): State<PgPool>, Query(of): Query<OfUser>) -> Result<Json<Vec<Notification>>, Problem> {
    let sent = sqlx::query_as(
        "SELECT order_id, channel, message FROM notification WHERE user_id = $1 ORDER BY id DESC LIMIT 100",
    );
    Ok(Json(sent.bind(of.user_id).fetch_all(&db).await?))
}

/// No constraint keeps a customer from being told the same twice: that is the inbox's work, and the books would show it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Books {
    pub notifications: i64,
    pub different: i64,
}

async fn consistency(State(db): State<PgPool>) -> Result<Json<Consistency<Books>>, Problem> {
    let (notifications, different) =
        sqlx::query_as("SELECT count(*), count(DISTINCT (order_id, message)) FROM notification").fetch_one(&db).await?;
    Ok(Json(Consistency { balanced: notifications == different, books: Books { notifications, different } }))
}
