#![deny(unused_must_use)]
use saga_core::{CompensationCx, Cx, Out, Saga, SagaBuilder, StepError};

struct Order;
impl Saga for Order {
    const NAME: &'static str = "order";
    const VERSION: u32 = 1;
    type Input = u32;
    type Output = String;
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, String> {
        let stock = saga.effect_free("stock").run(reserve);
        saga.compensatable("reserve").run(reserve);
        saga.pivot("charge").reads(stock).run(charge)
    }
}

async fn reserve(_: Cx<()>, quantity: u32) -> Result<u32, StepError> {
    Ok(quantity)
}
async fn release(_: CompensationCx<()>, _: u32, _: Option<u32>) -> Result<(), StepError> {
    Ok(())
}
async fn charge(_: Cx<()>, _: u32, stock: u32) -> Result<String, StepError> {
    Ok(stock.to_string())
}

fn main() {}
