//! The delivery service: one delivery for each order that was paid.

use crate::{
    Result,
    service::{self, Place, Problem},
};
use axum::{Json, Router, extract::State, routing::get};
use saga_core::{
    StepError,
    participant::{Command, CommandCx, Participant},
};
use saga_postgres::{Barrier, PgInbox};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};

/// The service's name.
pub const NAME: &str = "delivery";

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS delivery (
        id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        order_id  uuid NOT NULL,
        user_id   bigint NOT NULL
    )";

pub async fn serve(place: &Place) -> Result<()> {
    let db = PgPool::connect(&place.database).await?;
    let inbox = PgInbox::new(db.clone());
    inbox.migrate().await?;
    sqlx::raw_sql(SCHEMA).execute(&db).await?;
    let barrier = Barrier::new(inbox.clone(), ());
    let router = Router::new().route("/deliveries", barrier.on(start)).route("/books", get(books)).with_state(db);
    let participant = Participant::new(NAME, inbox, ()).on(start);
    service::take_part(place, router, participant.start(place.broker.transport()?).await?).await
}

/// What the order saga asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartDelivery {
    pub user_id: i64,
}

impl Command for StartDelivery {
    const TYPE: &'static str = "delivery.start.v1";
    const TOPIC: &'static str = "delivery.commands";
    type Reply = Started;
}

/// What it gets.
#[derive(Debug, Serialize, Deserialize)]
pub struct Started {
    pub delivery: i64,
}

async fn start(cx: CommandCx<()>, db: &mut PgConnection, parcel: StartDelivery) -> Result<Started, StepError> {
    let delivery = sqlx::query_scalar("INSERT INTO delivery (order_id, user_id) VALUES ($1, $2) RETURNING id")
        .bind(cx.saga_id().as_uuid())
        .bind(parcel.user_id)
        .fetch_one(db)
        .await?;
    Ok(Started { delivery })
}

/// No constraint keeps two deliveries for one order apart: that is the inbox's work, and the books would show it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Books {
    pub deliveries: i64,
}

async fn books(State(db): State<PgPool>) -> Result<Json<Books>, Problem> {
    let deliveries = sqlx::query_scalar("SELECT count(*) FROM delivery").fetch_one(&db).await?;
    Ok(Json(Books { deliveries }))
}
