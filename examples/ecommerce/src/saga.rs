//! The order saga, twice: its steps call the other services over HTTP, or send them commands over Kafka. What happens is the same.

use crate::{
    client::Participant,
    delivery::{StartDelivery, Started},
    figures,
    inventory::{ReleaseStock, ReserveStock, Reserved},
    money::Money,
    order,
    payment::ChargePayment,
    together::Together,
};
use saga_core::{CompensationCx, Cx, Out, Retry, Saga, SagaBuilder, SagaId, StepError};
use saga_postgres::PgOutbox;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use std::{num::NonZeroU32, sync::Arc, time::Duration};

/// What a customer asked for, and what it cost then.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlaceOrder {
    pub user_id: i64,
    pub product_id: i64,
    pub quantity: NonZeroU32,
    pub total: Money,
}

/// What the steps work with.
pub struct Shop {
    pub orders: PgPool,
    pub confirming: Together<SagaId, ()>,
    pub outbox: PgOutbox,
    pub inventory: Participant,
    pub payment: Participant,
    pub delivery: Participant,
    pub figures: Arc<figures::Orders>,
}

/// Over HTTP: a step is a function that calls.
pub struct OrderSaga;

impl Saga for OrderSaga {
    const NAME: &'static str = "order";
    const VERSION: u32 = 1;
    type Input = PlaceOrder;
    type Output = ();
    type Deps = Shop;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        let for_minutes = patiently().elapsed(Duration::from_secs(600));

        saga.compensatable("place-order").run(place_order).compensate(cancel_order);
        saga.compensatable("reserve-stock")
            .retry(for_minutes)
            .timeout(Duration::from_secs(5))
            .run(reserve_stock)
            .compensate(release_stock);
        saga.pivot("charge-payment").retry(for_minutes).timeout(Duration::from_secs(5)).run(charge_payment);
        saga.retriable("start-delivery").retry(patiently().forever()).run(start_delivery);
        saga.retriable("confirm-order").retry(patiently().forever()).run(confirm_order)
    }
}

/// Over Kafka: a step is a command, and its output is the reply. A command waits in its topic while its receiver is away, so there is no need to be quick to
/// send it again.
pub struct OrderSagaOverKafka;

impl Saga for OrderSagaOverKafka {
    const NAME: &'static str = OrderSaga::NAME;
    const VERSION: u32 = 2;
    type Input = PlaceOrder;
    type Output = ();
    type Deps = Shop;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        let for_minutes = patiently().elapsed(Duration::from_secs(600));

        saga.compensatable("place-order").run(place_order).compensate(cancel_order);
        saga.compensatable("reserve-stock")
            .retry(for_minutes)
            .command(|PlaceOrder { product_id, quantity, .. }| ReserveStock { product_id, quantity })
            .compensate_command(|_, _| ReleaseStock {});
        saga.pivot("charge-payment")
            .retry(for_minutes)
            .command(|PlaceOrder { user_id, total, .. }| ChargePayment { user_id, due: total });
        saga.retriable("start-delivery")
            .retry(patiently().forever())
            .command(|PlaceOrder { user_id, .. }| StartDelivery { user_id });
        saga.retriable("confirm-order").retry(patiently().forever()).run(confirm_order)
    }
}

const fn patiently() -> Retry {
    Retry::exponential(Duration::from_millis(200)).longest(Duration::from_secs(5))
}

/// The order stands since this saga does: one transaction wrote both. From here on it is cancelled if the saga turns back.
async fn place_order(_: Cx<Shop>, _: PlaceOrder) -> Result<(), StepError> {
    Ok(())
}

async fn cancel_order(shop: CompensationCx<Shop>, order: PlaceOrder, _: Option<()>) -> Result<(), StepError> {
    order::cancel(&shop, shop.saga_id(), order.user_id).await
}

async fn confirm_order(shop: Cx<Shop>, _: PlaceOrder) -> Result<(), StepError> {
    Ok(shop.confirming.run(shop.saga_id()).await?)
}

async fn reserve_stock(shop: Cx<Shop>, order: PlaceOrder) -> Result<Reserved, StepError> {
    let PlaceOrder { product_id, quantity, .. } = order;
    shop.inventory.command("/reservations", shop.idempotency_key(), &ReserveStock { product_id, quantity }).await
}

async fn release_stock(shop: CompensationCx<Shop>, _: PlaceOrder, _: Option<Reserved>) -> Result<(), StepError> {
    shop.inventory.command("/reservations/release", shop.forward_key(), &ReleaseStock {}).await
}

async fn charge_payment(shop: Cx<Shop>, order: PlaceOrder) -> Result<Money, StepError> {
    let charge = ChargePayment { user_id: order.user_id, due: order.total };
    shop.payment.command("/payments", shop.idempotency_key(), &charge).await
}

async fn start_delivery(shop: Cx<Shop>, order: PlaceOrder) -> Result<Started, StepError> {
    shop.delivery.command("/deliveries", shop.idempotency_key(), &StartDelivery { user_id: order.user_id }).await
}
