//! Taking an order.

use super::{
    OrderCreated, Orders, Row,
    following::{Wait, has_ended},
};
use crate::{
    identity::Caller, money::Money, problem::Problem, product::Product, saga::PlaceOrder, service::to_its_end,
};
use axum::{
    Json,
    extract::{Query, State},
    http::{
        HeaderMap, StatusCode,
        header::{HeaderName, LOCATION},
    },
};
use saga_core::{SagaId, machine::Status};
use serde::Deserialize;
use serde_json::Value;
use std::num::NonZeroU32;
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
    let order = checked(&wanted)?;
    let key = idempotency_key(&headers)?.map_or_else(|| Uuid::now_v7().to_string(), |key| of_user(order.user_id, key));
    let (saga, placed) = to_its_end(take(orders.clone(), key, order)).await?;
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

/// A repeat is answered whatever became of the product or the user meanwhile.
async fn take(orders: Orders, key: String, order: PlaceOrder) -> Result<Placed, Problem> {
    match place(&orders, &key, order.clone()).await {
        Err(_) if orders.sagas.find(&key).await? => repeated(&orders, &key, order).await,
        placed => placed,
    }
}

fn checked(wanted: &Wanted) -> Result<PlaceOrder, Problem> {
    let quantity = u32::try_from(wanted.quantity).ok().filter(|quantity| *quantity <= MOST).and_then(NonZeroU32::new);
    let quantity = quantity.ok_or_else(|| Problem::refused(&format!("the quantity is 1 to {MOST}")))?;
    Ok(PlaceOrder { user_id: wanted.user_id, product_id: wanted.product_id, quantity })
}

/// The order that has this key, if it is the same.
async fn repeated(orders: &Orders, key: &str, order: PlaceOrder) -> Result<Placed, Problem> {
    let mut tx = orders.db.begin().await?;
    let (saga, _) = orders.sagas.submit(&orders.store, &mut tx, key, order).await?;
    tx.rollback().await?;
    Ok((saga, None))
}

/// Writes the order, its saga, and the event that tells others, in one transaction. The others are asked before it: it waits for nobody.
async fn place(orders: &Orders, key: &str, order: PlaceOrder) -> Result<Placed, Problem> {
    let asking = &orders.asking;
    let (user_checked, product) = tokio::try_join!(asking.check_user(order.user_id), asking.product(order.product_id))?;
    let mut tx = orders.db.begin().await?;
    let (saga, is_new) = orders.sagas.submit(&orders.store, &mut tx, key, order.clone()).await?;
    if !is_new {
        tx.rollback().await?;
        return Ok((saga, None));
    }
    let row = priced(saga, &order, product, user_checked)?;
    row.insert(&mut tx).await?;
    let created = OrderCreated {
        order_id: row.id,
        user_id: row.user_id,
        product_id: row.product_id,
        quantity: row.quantity,
        total: Money { amount: row.total, currency: row.currency.clone() },
    };
    orders.outbox.publish(&mut tx, &saga.to_string(), &created).await.map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the event cannot be written: {error}"))
    })?;
    orders.outbox.commit(tx).await?;
    orders.store.wake();
    orders.figures.requests.add(1, &[]);
    Ok((saga, Some(row)))
}

/// The order with name and price as they are now: what they will be changes nothing.
fn priced(saga: SagaId, order: &PlaceOrder, product: Product, user_checked: bool) -> Result<Row, Problem> {
    let quantity = i64::from(order.quantity.get());
    let total = product.price.checked_mul(quantity).ok_or_else(|| Problem::refused("that is more than can be paid"))?;
    Ok(Row {
        id: saga.as_uuid(),
        user_id: order.user_id,
        product_id: product.id,
        product: product.name,
        unit_price: product.price,
        quantity,
        total,
        currency: product.currency,
        user_checked,
        state: "PENDING".into(),
        ended_at: None,
    })
}
