use async_trait::async_trait;
use saga_core::{CompensationCx, Cx, Out, Retry, Saga, SagaBuilder, StepError};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a saga is started with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlaceOrder {
    pub sku: String,
    pub quantity: u32,
    pub cents: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reservation(pub String);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt(pub String);

/// The services that do the work. Each call carries a key.
#[async_trait]
pub trait Services: Send + Sync {
    async fn reserve(&self, key: &str, sku: &str, quantity: u32) -> Result<Reservation, StepError>;
    async fn release(&self, key: &str) -> Result<(), StepError>;
    async fn charge(&self, key: &str, cents: u64) -> Result<Receipt, StepError>;
    async fn deliver(&self, key: &str, reservation: Reservation) -> Result<(), StepError>;
}

pub struct Order;

impl Saga for Order {
    const NAME: &'static str = "order";
    const VERSION: u32 = 1;
    type Input = PlaceOrder;
    type Output = Receipt;
    type Deps = Box<dyn Services>;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, Receipt> {
        let reservation = saga.compensatable("reserve-stock").run(reserve).compensate(release);
        let receipt = saga.pivot("charge").timeout(Duration::from_secs(10)).run(charge);
        let patiently = Retry::exponential(Duration::from_secs(1)).forever();
        saga.retriable("deliver").reads(reservation).retry(patiently).run(deliver);
        receipt
    }
}

type Deps = Box<dyn Services>;

async fn reserve(shop: Cx<Deps>, order: PlaceOrder) -> Result<Reservation, StepError> {
    if order.quantity == 0 {
        return Err(StepError::fail("an order needs a quantity"));
    }
    shop.reserve(shop.idempotency_key(), &order.sku, order.quantity).await
}

async fn release(shop: CompensationCx<Deps>, _: PlaceOrder, _: Option<Reservation>) -> Result<(), StepError> {
    shop.release(shop.forward_key()).await
}

async fn charge(shop: Cx<Deps>, order: PlaceOrder) -> Result<Receipt, StepError> {
    shop.charge(shop.idempotency_key(), order.cents).await
}

async fn deliver(shop: Cx<Deps>, _: PlaceOrder, reservation: Reservation) -> Result<(), StepError> {
    shop.deliver(shop.idempotency_key(), reservation).await
}
