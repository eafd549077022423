//! The notification service: tells customers what became of their orders. It listens to what has happened; no order waits for it.

use crate::{
    Result,
    order::{OrderCancelled, OrderConfirmed},
    service::{self, Place, Problem},
};
use axum::{
    Json, Router,
    extract::{Query, State},
    routing::get,
};
use saga_core::{
    StepError,
    participant::{EventCx, Listener},
};
use saga_postgres::PgInbox;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// The service's name.
pub const NAME: &str = "notification";

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS notification (
        id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        order_id  uuid NOT NULL,
        user_id   bigint NOT NULL,
        message   text NOT NULL
    );
    CREATE INDEX IF NOT EXISTS notifications_of_user ON notification (user_id)";

pub async fn serve(place: &Place) -> Result<()> {
    let db = PgPool::connect(&place.database).await?;
    let inbox = PgInbox::new(db.clone());
    inbox.migrate().await?;
    sqlx::raw_sql(SCHEMA).execute(&db).await?;
    let router = Router::new().route("/notifications", get(of_user)).route("/books", get(books)).with_state(db);
    let listener = Listener::new(NAME, inbox, ()).on(confirmed).on(cancelled);
    service::take_part(place, router, listener.start(place.broker.transport()?).await?).await
}

async fn confirmed(_: EventCx<()>, db: &mut PgConnection, order: OrderConfirmed) -> Result<(), StepError> {
    notify(db, order.order_id, order.user_id, "Your order is on its way.").await
}

async fn cancelled(_: EventCx<()>, db: &mut PgConnection, order: OrderCancelled) -> Result<(), StepError> {
    notify(db, order.order_id, order.user_id, "Your order was cancelled.").await
}

/// Stands for a mail.
async fn notify(db: &mut PgConnection, order: Uuid, user: i64, message: &str) -> Result<(), StepError> {
    sqlx::query("INSERT INTO notification (order_id, user_id, message) VALUES ($1, $2, $3)")
        .bind(order)
        .bind(user)
        .bind(message)
        .execute(db)
        .await?;
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfUser {
    user_id: i64,
}

async fn of_user(State(db): State<PgPool>, Query(of): Query<OfUser>) -> Result<Json<Vec<Value>>, Problem> {
    let sent: Vec<(Uuid, String)> =
        sqlx::query_as("SELECT order_id, message FROM notification WHERE user_id = $1 ORDER BY id")
            .bind(of.user_id)
            .fetch_all(&db)
            .await?;
    Ok(Json(sent.into_iter().map(|(order, message)| json!({ "orderId": order, "message": message })).collect()))
}

/// No constraint keeps two notifications of one order apart: that is the inbox's work, and the books would show it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Books {
    pub notifications: i64,
}

async fn books(State(db): State<PgPool>) -> Result<Json<Books>, Problem> {
    let notifications = sqlx::query_scalar("SELECT count(*) FROM notification").fetch_one(&db).await?;
    Ok(Json(Books { notifications }))
}
