//! The order service: takes orders, and runs their saga.

mod asking;
mod drawing;
mod following;
mod placing;

use crate::{
    Result,
    client::Participant,
    databases::create_tables,
    figures,
    identity::Caller,
    money::Money,
    problem::Problem,
    saga::{OrderSaga, OrderSagaOverKafka, PlaceOrder, Shop},
    service::{self, Consistency, GRACE, OfUser, Site},
    together::Together,
};
use asking::Asking;
use axum::{
    Json, Router,
    extract::{Path, Query, Request, State},
    http::StatusCode,
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::{get, post},
};
use chrono::{DateTime, Utc};
use following::Wait;
use placing::{Placing, Writing};
use saga_core::{
    Engine, Outcome, Saga, SagaId, Sagas, Started, StepError, machine::Status, participant::Event, store::Start,
    transport::Transport,
};
use saga_postgres::{InTransaction, PgOutbox, PgStore};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{FromRow, PgConnection, PgExecutor, PgPool};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The service's name.
pub const NAME: &str = "order";
/// Of its port.
pub const OFFSET: u16 = 2;
/// How long after the death of a process another one takes over its orders.
const LEASE: Duration = Duration::from_secs(5);
/// How long an order that waits for an answer stays in memory. When all have to wait, to put them away and to fetch them again would make them wait longer.
const HOLD: Duration = Duration::from_secs(10);

/// One statement at a time writes the journals, of all sagas that wait for it: on a machine with few processors that is more than several small ones.
const COMMITTERS: usize = 1;

/// What is done to several orders at once waits for the locks of others, and for a node that stands still in the middle, no longer than this.
const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '2s'; SET LOCAL idle_in_transaction_session_timeout = '5s'";

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS orders (
        id            uuid PRIMARY KEY,  -- the saga's
        user_id       bigint NOT NULL,
        product_id    bigint NOT NULL,
        product       text NOT NULL,  -- name and price as they were
        unit_price    bigint NOT NULL,
        quantity      bigint NOT NULL,
        total         bigint NOT NULL,
        currency      text NOT NULL,
        user_checked  boolean NOT NULL,  -- not if the user service was away
        state         text NOT NULL CHECK (state IN ('PENDING', 'CONFIRMED', 'CANCELLED')),
        ended_at      timestamptz  -- when it got its final state
    );
    CREATE INDEX IF NOT EXISTS orders_of_user ON orders (user_id, id)";

/// How the saga's commands get to the other services.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Way {
    Http,
    Kafka,
}

impl Way {
    pub const fn told(self) -> &'static str {
        match self {
            Self::Http => "commands over HTTP",
            Self::Kafka => "commands over Kafka",
        }
    }

    /// What the order service is told.
    pub fn argument(self) -> String {
        match self {
            Self::Http => "--transport=http".into(),
            Self::Kafka => "--transport=kafka".into(),
        }
    }
}

/// Where the other services are.
#[derive(Clone, Debug, clap::Args)]
pub struct Others {
    #[arg(long, env = "USER_URL", default_value = "http://127.0.0.1:8081")]
    pub user: String,
    #[arg(long, env = "INVENTORY_URL", default_value = "http://127.0.0.1:8084")]
    pub inventory: String,
    #[arg(long, env = "PAYMENT_URL", default_value = "http://127.0.0.1:8085")]
    pub payment: String,
    #[arg(long, env = "DELIVERY_URL", default_value = "http://127.0.0.1:8086")]
    pub delivery: String,
    #[arg(long, env = "PRODUCT_URL", default_value = "http://127.0.0.1:8087")]
    pub product: String,
}

pub async fn serve(site: Site, kafka: Arc<dyn Transport>, others: Others, way: Way) -> Result<()> {
    let db = site.connect().await?;
    create_tables(&db, SCHEMA).await?;
    let store = PgStore::connect(&site.database).await?;
    store.migrate().await?;
    let outbox = PgOutbox::new(db.clone(), NAME);
    let relay = outbox.relay(kafka.clone()).lanes(1).start().await?;
    let figures = Arc::new(figures::Orders::new());
    let shop = Arc::new(Shop {
        orders: db.clone(),
        confirming: confirming(&db, &figures),
        outbox: outbox.clone(),
        inventory: Participant::at(others.inventory),
        payment: Participant::at(others.payment),
        delivery: Participant::at(others.delivery),
        figures: figures.clone(),
    });
    let engine = Engine::builder(store.clone())
        .transport(NAME, kafka)
        .register::<OrderSaga>(shop.clone())?
        .register::<OrderSagaOverKafka>(shop)?
        .configure(|config| (config.lease, config.hold, config.committers) = (LEASE, HOLD, COMMITTERS))
        .start()
        .await?;
    let sagas = OrderSagas { over_http: engine.sagas(), over_kafka: engine.sagas(), new_ones: way };
    let asking = Arc::new(Asking::at(others.user, others.product));
    let placing = Writing { db: db.clone(), store, outbox: outbox.clone(), sagas: sagas.clone(), figures };
    let router = Router::new()
        .route("/orders/{id}", get(one))
        .route("/orders/{id}/history", get(history))
        .route("/orders/{id}/picture", get(drawing::picture))
        .route("/orders/{id}/events", get(following::events))
        .route_layer(from_fn_with_state(db.clone(), only_theirs))
        .route("/orders", post(placing::submit).get(of_user))
        .route("/consistency", get(consistency))
        .route("/openapi.json", service::openapi(include_str!("../openapi/order.json")))
        .with_state(Orders {
            db: db.clone(),
            outbox: outbox.clone(),
            sagas,
            asking,
            placing: Arc::new(placing.together()),
            stop: site.door.stop.clone(),
        });
    tokio::select! {
        served = site.serve(router, db) => served?,
        () = figures::watch(&outbox, &relay) => {}
    }
    let ended = async {
        engine.shutdown(GRACE).await;
        relay.stop().await;
    };
    // It would wait for a broker that is gone.
    let _ = timeout(2 * GRACE, ended).await;
    Ok(())
}

#[derive(Clone)]
struct Orders {
    db: PgPool,
    outbox: PgOutbox,
    sagas: OrderSagas,
    asking: Arc<Asking>,
    placing: Arc<Together<Placing, Known>>,
    stop: CancellationToken,
}

/// The orders of both versions of the saga. One that began over HTTP ends over HTTP, also when new ones go over Kafka by now.
#[derive(Clone)]
struct OrderSagas {
    over_http: Sagas<OrderSaga>,
    over_kafka: Sagas<OrderSagaOverKafka>,
    new_ones: Way,
}

impl OrderSagas {
    fn to_start(&self, key: &str, order: &PlaceOrder) -> Result<Start, saga_core::Error> {
        match self.new_ones {
            Way::Kafka => self.over_kafka.to_start(key, order),
            Way::Http => self.over_http.to_start(key, order),
        }
    }

    /// Says of each which saga it is, and whether it is new.
    async fn start(
        &self,
        store: &PgStore,
        tx: &mut PgConnection,
        sagas: &[Start],
    ) -> Result<Vec<Result<Known, Problem>>, Problem> {
        Ok(match self.new_ones {
            Way::Kafka => known(self.over_kafka.start_in(store, tx, sagas).await?),
            Way::Http => known(self.over_http.start_in(store, tx, sagas).await?),
        })
    }

    async fn find(&self, key: &str) -> Result<Option<SagaId>, saga_core::Error> {
        Ok(self.over_kafka.find(key).await?.map(|saga| saga.id()))
    }

    async fn status(&self, saga: SagaId) -> Result<Status, saga_core::Error> {
        self.over_http.get(saga).status().await
    }

    async fn outcome(&self, saga: SagaId) -> Result<Outcome<()>, saga_core::Error> {
        match self.over_kafka.get(saga).outcome().await {
            Err(saga_core::Error::WrongDefinition { .. }) => self.over_http.get(saga).outcome().await,
            known => known,
        }
    }

    async fn history(&self, saga: SagaId) -> Result<String, saga_core::Error> {
        match self.over_kafka.get(saga).history().await {
            Err(saga_core::Error::WrongDefinition { .. }) => Ok(self.over_http.get(saga).history().await?.to_string()),
            known => Ok(known?.to_string()),
        }
    }
}

/// A saga, and whether it is new.
type Known = (SagaId, bool);

fn known<S: Saga>(sagas: Vec<Result<Started<S>, saga_core::Error>>) -> Vec<Result<Known, Problem>> {
    sagas.into_iter().map(|saga| saga.map(|saga| (saga.id(), saga.is_new())).map_err(Problem::from)).collect()
}

/// An order as it was placed, and what became of it.
#[derive(Clone, Serialize, FromRow)]
#[serde(rename_all = "camelCase")]
struct Row {
    id: Uuid,
    user_id: i64,
    product_id: i64,
    product: String,
    unit_price: i64,
    quantity: i64,
    total: i64,
    currency: String,
    user_checked: bool,
    state: String,
    ended_at: Option<DateTime<Utc>>,
}

impl Row {
    /// As customers hear of it, with where its saga stands.
    fn told(&self, status: Status) -> Value {
        let mut order = json!(self);
        order["saga"] = format!("{status:?}").into();
        order
    }

    async fn insert(rows: &[Self], tx: &mut PgConnection) -> Result<(), sqlx::Error> {
        sqlx::query(
            "INSERT INTO orders
             SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::text[], $9::boolean[], $10::text[])",
        )
        .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.user_id).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.product_id).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.product.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.unit_price).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.quantity).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.total).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.currency.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.user_checked).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.state.as_str()).collect::<Vec<_>>())
        .execute(tx)
        .await?;
        Ok(())
    }
}

async fn one(
    State(orders): State<Orders>,
    Path(id): Path<Uuid>,
    Query(wait): Query<Wait>,
) -> Result<Json<Value>, Problem> {
    Ok(Json(orders.awaited(id.into(), wait.duration()?).await?))
}

/// Somebody else's order is not there: who may not see it does not even hear that there is one.
async fn only_theirs(
    State(db): State<PgPool>,
    Path(id): Path<Uuid>,
    caller: Caller,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if caller.is_known() {
        let user = sqlx::query_scalar("SELECT user_id FROM orders WHERE id = $1").bind(id).fetch_optional(&db).await?;
        user.filter(|user| caller.sees(*user)).ok_or_else(|| Problem::not_found("there is no such order"))?;
    }
    Ok(next.run(request).await)
}

impl Orders {
    /// An order, where its saga stands, and why it was cancelled if it was.
    async fn look_up(&self, saga: SagaId) -> Result<Value, Problem> {
        // First: once the saga has ended the row says how.
        let status = self.sagas.status(saga).await;
        let row: Option<Row> =
            sqlx::query_as("SELECT * FROM orders WHERE id = $1").bind(saga.as_uuid()).fetch_optional(&self.db).await?;
        let row = row.ok_or_else(|| Problem::not_found("there is no such order"))?;
        let status = status?;
        let mut order = row.told(status);
        if status == Status::RolledBack
            && let Outcome::RolledBack(why) = self.sagas.outcome(saga).await?
        {
            order["reason"] = why.reason.into();
        }
        Ok(order)
    }
}

async fn history(State(orders): State<Orders>, Path(id): Path<Uuid>) -> Result<String, Problem> {
    Ok(orders.sagas.history(id.into()).await?)
}

async fn of_user(State(orders): State<Orders>, Query(of): Query<OfUser>) -> Result<Json<Vec<Row>>, Problem> {
    let rows = sqlx::query_as("SELECT * FROM orders WHERE user_id = $1 ORDER BY id DESC LIMIT 100");
    Ok(Json(rows.bind(of.user_id).fetch_all(&orders.db).await?))
}

impl From<saga_core::Error> for Problem {
    fn from(error: saga_core::Error) -> Self {
        let status = match error {
            saga_core::Error::NoSuchSaga(_) => StatusCode::NOT_FOUND,
            saga_core::Error::KeyTaken { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            saga_core::Error::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

/// For the saga: the order's state is a copy of the saga's, for queries. A repeat changes nothing. Says which were changed.
async fn change(db: impl PgExecutor<'_>, orders: &[Uuid], state: &str) -> Result<HashSet<Uuid>, sqlx::Error> {
    let changed = sqlx::query_scalar(
        "UPDATE orders SET state = $2, ended_at = clock_timestamp() WHERE id = ANY ($1) AND state = 'PENDING' RETURNING id",
    );
    Ok(changed.bind(orders).bind(state).fetch_all(db).await?.into_iter().collect())
}

/// For the saga: its orders are confirmed. The delivery service tells the customers.
fn confirming(db: &PgPool, figures: &Arc<figures::Orders>) -> Together<SagaId, ()> {
    let (db, figures) = (db.clone(), figures.clone());
    Together::new(move |orders| confirm(db.clone(), figures.clone(), orders))
}

async fn confirm(
    db: PgPool,
    figures: Arc<figures::Orders>,
    orders: Vec<SagaId>,
) -> Result<Vec<Result<(), Problem>>, Problem> {
    let ids: Vec<Uuid> = orders.iter().map(|order| order.as_uuid()).collect();
    let mut tx = db.begin_with(BEGIN).await?;
    let changed = change(&mut *tx, &ids, "CONFIRMED").await?;
    tx.commit().await?;
    changed.into_iter().for_each(|order| figures.ended(order.into(), "CONFIRMED"));
    Ok(orders.iter().map(|_| Ok(())).collect())
}

/// For the saga. Others are told in the same transaction.
pub async fn cancel(shop: &Shop, saga: SagaId, user_id: i64) -> Result<(), StepError> {
    let mut tx = shop.orders.begin().await?;
    let changed = change(&mut *tx, &[saga.as_uuid()], "CANCELLED").await?.contains(&saga.as_uuid());
    if changed {
        let cancelled = OrderCancelled { order_id: saga.as_uuid(), user_id };
        shop.outbox.publish(&mut tx, &saga.to_string(), &cancelled).await?;
    }
    shop.outbox.commit(tx).await?;
    if changed {
        shop.figures.ended(saga, "CANCELLED");
    }
    Ok(())
}

/// What others are told of an order.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrderCreated {
    pub order_id: Uuid,
    pub user_id: i64,
    pub product_id: i64,
    pub quantity: i64,
    pub total: Money,
}

impl Event for OrderCreated {
    const TYPE: &'static str = "order.created.v1";
    const TOPIC: &'static str = "order.events";
}

/// The same.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrderCancelled {
    pub order_id: Uuid,
    pub user_id: i64,
}

impl Event for OrderCancelled {
    const TYPE: &'static str = "order.cancelled.v1";
    const TOPIC: &'static str = OrderCreated::TOPIC;
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

/// They balance if what is owed for every order is what its units cost then.
async fn consistency(State(orders): State<Orders>) -> Result<Json<Consistency<Books>>, Problem> {
    let (unfinished, cancelled, confirmed, units, money, balanced) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE state = 'PENDING'), count(*) FILTER (WHERE state = 'CANCELLED'), count(*) FILTER (WHERE state = 'CONFIRMED'),
                coalesce(sum(quantity) FILTER (WHERE state = 'CONFIRMED'), 0)::bigint,
                coalesce(sum(total) FILTER (WHERE state = 'CONFIRMED'), 0)::bigint,
                coalesce(bool_and(total = quantity * unit_price), true)
         FROM orders",
    )
    .fetch_one(&orders.db)
    .await?;
    Ok(Json(Consistency { balanced, books: Books { unfinished, cancelled, confirmed, units, money } }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use saga_postgres::testing::Postgres;

    #[tokio::test]
    async fn a_step_that_runs_again_after_its_commit_tells_nobody_twice() -> Result<()> {
        let postgres = Postgres::private().await?;
        let orders = PgPool::connect(&postgres.url()).await?;
        sqlx::raw_sql(SCHEMA).execute(&orders).await?;
        let outbox = PgOutbox::new(orders.clone(), NAME);
        outbox.migrate().await?;
        let [inventory, payment, delivery] = ["", "", ""].map(Participant::at);
        let figures = Arc::new(figures::Orders::new());
        let confirming = confirming(&orders, &figures);
        let shop = Shop { orders, confirming, outbox: outbox.clone(), inventory, payment, delivery, figures };
        let saga = SagaId::from(Uuid::now_v7());
        let order = Row {
            id: saga.as_uuid(),
            user_id: 1,
            product_id: 1,
            product: "MacBook Pro 16".into(),
            unit_price: 3_500_000,
            quantity: 1,
            total: 3_500_000,
            currency: "KRW".into(),
            user_checked: true,
            state: "PENDING".into(),
            ended_at: None,
        };
        Row::insert(&[order], &mut *shop.orders.acquire().await?).await?;
        for _ in 0..2 {
            cancel(&shop, saga, 1).await.map_err(|error| error.to_string())?;
            assert_eq!(outbox.lag().await?.waiting, 1);
        }
        let state: String = sqlx::query_scalar("SELECT state FROM orders").fetch_one(&shop.orders).await?;
        assert_eq!(state, "CANCELLED");
        shop.orders.close().await;
        postgres.stop().await;
        Ok(())
    }
}
