//! Taking an order.

use super::{
    BEGIN, Known, OrderCreated, OrderSagas, Orders, Row,
    following::{Wait, has_ended},
};
use crate::{
    figures, identity::Caller, money::Money, problem::Problem, product::Product, saga::PlaceOrder, together::Together,
};
use axum::{
    Json,
    extract::{Query, State},
    http::{
        HeaderMap, StatusCode,
        header::{HeaderName, LOCATION},
    },
};
use saga_core::{SagaId, machine::Status, store::Start, transport::Outgoing};
use saga_postgres::{PgOutbox, PgStore, outbox::OutboxError};
use serde::Deserialize;
use serde_json::Value;
use sqlx::PgPool;
use std::{num::NonZeroU32, sync::Arc};
use uuid::Uuid;

/// More of one thing is no order but a mistake.
const MOST: u32 = 1000;
const LONGEST_KEY: usize = 255;

/// What a customer sends. Whatever else is in it, a price for example, is passed over.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    user_id: i64,
    product_id: i64,
    quantity: i64,
}

/// 202 as soon as the order is durable, and its saga with it. With `?wait=` 200 when it has ended, or 202 when that time is over. With a key that was used before the
/// answer is the order of then.
pub async fn submit(
    State(orders): State<Orders>,
    Query(wait): Query<Wait>,
    headers: HeaderMap,
    caller: Caller,
    Json(wanted): Json<Wanted>,
) -> Result<(StatusCode, [(HeaderName, String); 1], Json<Value>), Problem> {
    if !caller.is(wanted.user_id) {
        return Err(Problem::new(StatusCode::FORBIDDEN, "nobody orders for somebody else"));
    }
    let wait = wait.duration()?;
    let quantity = checked(&wanted)?;
    let key = idempotency_key(&headers)?.map_or_else(|| Uuid::now_v7().to_string(), |key| of_user(wanted.user_id, key));
    let (saga, placed) = take(&orders, &key, &wanted, quantity).await?;
    let order = match placed {
        Some(row) if wait.is_zero() => row.told(Status::Running),
        _ => orders.awaited(saga, wait).await?,
    };
    let status = if !wait.is_zero() && has_ended(&order) { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, [(LOCATION, format!("/orders/{saga}"))], Json(order)))
}

/// As the client chose it. One that cannot be read is no reason to order twice.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let key = key.to_str().ok().filter(|key| (1..=LONGEST_KEY).contains(&key.len()) && keys.next().is_none());
    Ok(Some(key.ok_or_else(|| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            format!("the header Idempotency-Key is one text of up to {LONGEST_KEY} characters"),
        )
    })?))
}

/// Two users who choose the same key have nothing to do with each other.
fn of_user(user: i64, key: &str) -> String {
    format!("{user}/{key}")
}

/// The order's saga, and the order itself if it is new.
type Placed = (SagaId, Option<Row>);

/// A repeat is answered whatever became of the price, the product or the user meanwhile.
async fn take(orders: &Orders, key: &str, wanted: &Wanted, quantity: NonZeroU32) -> Result<Placed, Problem> {
    match place(orders, key, wanted, quantity).await {
        Err(problem) => match orders.sagas.find(key).await? {
            Some(saga) => repeated(orders, saga, wanted).await,
            None => Err(problem),
        },
        placed => placed,
    }
}

fn checked(wanted: &Wanted) -> Result<NonZeroU32, Problem> {
    let quantity = u32::try_from(wanted.quantity).ok().filter(|quantity| *quantity <= MOST).and_then(NonZeroU32::new);
    quantity.ok_or_else(|| Problem::refused(&format!("the quantity is 1 to {MOST}")))
}

/// The order that has this key, if it is the same but for its price.
async fn repeated(orders: &Orders, saga: SagaId, wanted: &Wanted) -> Result<Placed, Problem> {
    let then: Option<(i64, i64, i64)> =
        sqlx::query_as("SELECT user_id, product_id, quantity FROM orders WHERE id = $1")
            .bind(saga.as_uuid())
            .fetch_optional(&orders.db)
            .await?;
    match then == Some((wanted.user_id, wanted.product_id, wanted.quantity)) {
        true => Ok((saga, None)),
        false => Err(Problem::refused("this Idempotency-Key is another order's")),
    }
}

/// Prices the order, and has it written. Nobody is asked for anything while it is.
async fn place(orders: &Orders, key: &str, wanted: &Wanted, quantity: NonZeroU32) -> Result<Placed, Problem> {
    let &Wanted { user_id, product_id, .. } = wanted;
    let asking = &orders.asking;
    let (user_checked, product) = tokio::try_join!(asking.check_user(user_id), asking.product(product_id))?;
    let total = total(&product, quantity)?;
    let order = PlaceOrder { user_id, product_id, quantity, total: total.clone() };
    let start = orders.sagas.to_start(key, &order)?;
    // With name and price as they are now: what they will be changes nothing.
    let row = Row {
        id: start.saga.as_uuid(),
        user_id,
        product_id,
        product: product.name,
        unit_price: product.price,
        quantity: wanted.quantity,
        total: total.amount,
        currency: total.currency.clone(),
        user_checked,
        state: "PENDING".into(),
        ended_at: None,
    };
    let created = OrderCreated { order_id: row.id, user_id, product_id, quantity: row.quantity, total };
    let created = orders.outbox.event(&start.saga.to_string(), &created)?;
    let (saga, is_new) = orders.placing.run(Placing { start, row: row.clone(), created }).await?;
    Ok((saga, is_new.then_some(row)))
}

/// An order that is to be written.
#[derive(Clone)]
pub(super) struct Placing {
    start: Start,
    row: Row,
    created: Outgoing,
}

/// Where orders are written.
#[derive(Clone)]
pub(super) struct Writing {
    pub(super) db: PgPool,
    pub(super) store: PgStore,
    pub(super) outbox: PgOutbox,
    pub(super) sagas: OrderSagas,
    pub(super) figures: Arc<figures::Orders>,
}

impl Writing {
    pub(super) fn together(self) -> Together<Placing, Known> {
        Together::new(move |orders| self.clone().write(orders))
    }

    /// Writes the orders, their sagas, and the events that tell others, in one transaction. If its commit was done and the answer was lost, it comes again: the sagas are the same then, so they are new once
    /// more, and the orders' primary key refuses it.
    async fn write(self, orders: Vec<Placing>) -> Result<Vec<Result<Known, Problem>>, Problem> {
        let starts: Vec<Start> = orders.iter().map(|order| order.start.clone()).collect();
        let mut tx = self.db.begin_with(BEGIN).await?;
        let sagas = self.sagas.start(&self.store, &mut tx, &starts).await?;
        let new = orders.into_iter().zip(&sagas).filter(|(_, saga)| matches!(saga, Ok((_, true))));
        let (rows, events): (Vec<Row>, Vec<Outgoing>) = new.map(|(order, _)| (order.row, order.created)).unzip();
        Row::insert(&rows, &mut tx).await?;
        self.outbox.publish_all(&mut tx, events).await?;
        self.outbox.commit(tx).await?;
        self.store.wake();
        self.figures.requests.add(rows.len() as u64, &[]);
        Ok(sagas)
    }
}

impl From<OutboxError> for Problem {
    fn from(error: OutboxError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the event cannot be written: {error}"))
    }
}

fn total(product: &Product, quantity: NonZeroU32) -> Result<Money, Problem> {
    let amount = product.price.checked_mul(quantity.get().into());
    let amount = amount.ok_or_else(|| Problem::refused("that is more than can be paid"))?;
    Ok(Money { amount, currency: product.currency.clone() })
}
