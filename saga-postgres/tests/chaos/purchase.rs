//! The saga that goes through all of it. What it returns differs from attempt to attempt, so that a payload made of
//! anything that was not journaled shows.

use super::ledger::{Call, Ledger};
use saga_core::{CompensationCx, Cx, Out, Retry, Saga, SagaBuilder, StepError};
use serde::{Deserialize, Serialize};
use std::time::Duration;

pub(crate) struct Purchase;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) number: u64,
    pub(crate) fate: Fate,
}

/// How a purchase is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Fate {
    Completes,
    /// The pivot says no: all is undone.
    IsDeclined,
    /// A compensatable step happens, gives no answer, and gives up: it is undone in doubt.
    LosesAnswers,
    /// Somebody asks to cancel at any time: it ends in either way.
    MayBeCancelled,
    /// Kills the process that runs it.
    IsPoison,
}

/// Nothing gives up here for want of attempts: how a saga ends is decided by its fate alone.
const AGAIN: Retry = Retry::exponential(Duration::from_millis(20)).longest(Duration::from_millis(200)).forever();

impl Saga for Purchase {
    const NAME: &'static str = "purchase";
    const VERSION: u32 = 1;
    type Input = Order;
    type Output = String;
    type Deps = Ledger;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, String> {
        let quote = saga.effect_free("quote").retry(AGAIN).run(quote);
        let (stock, credit) = saga.parallel(|saga| {
            (
                saga.compensatable("reserve")
                    .reads(quote)
                    .retry(AGAIN)
                    .run(reserve)
                    .retry_compensation(AGAIN)
                    .compensate(undo),
                saga.compensatable("authorize")
                    .reads(quote)
                    .retry(AGAIN)
                    .run(authorize)
                    .retry_compensation(AGAIN)
                    .compensate(undo),
            )
        });
        let receipt = saga.pivot("capture").reads((stock, credit)).retry(AGAIN).run(capture);
        saga.retriable("deliver").reads((quote, receipt)).retry(AGAIN).run(deliver);
        receipt
    }
}

/// The steps that have an effect.
pub(crate) const EFFECTS: [&str; 4] = ["reserve", "authorize", "capture", "deliver"];

fn call(cx: &Cx<Ledger>) -> Call<'_> {
    Call { key: cx.idempotency_key(), saga: cx.saga_id(), step: cx.step(), undo: false, number: cx.attempt() }
}

async fn quote(cx: Cx<Ledger>, order: Order) -> Result<u64, StepError> {
    let attempt = cx.begin(call(&cx), &order).await?;
    cx.work().await;
    attempt.ends().await?;
    match cx.is_in_trouble() {
        true => Err(StepError::retry("busy")),
        false => Ok(cx.dice.roll() >> 12),
    }
}

async fn reserve(cx: Cx<Ledger>, order: Order, quote: u64) -> Result<String, StepError> {
    if order.fate == Fate::IsPoison {
        cx.begin(call(&cx), &(&order, quote)).await?;
        tokio::time::sleep(cx.poison).await;
        std::process::abort();
    }
    act(&cx, &(&order, quote)).await
}

async fn authorize(cx: Cx<Ledger>, order: Order, quote: u64) -> Result<String, StepError> {
    if order.fate != Fate::LosesAnswers {
        return act(&cx, &(&order, quote)).await;
    }
    if cx.attempt() < 3 {
        act(&cx, &(&order, quote)).await?;
        return Err(StepError::unknown("no answer"));
    }
    cx.begin(call(&cx), &(&order, quote)).await?.ends().await?;
    Err(StepError::fail("no answer, too often"))
}

async fn capture(cx: Cx<Ledger>, order: Order, stock: String, credit: String) -> Result<String, StepError> {
    let payload = (&order, stock, credit);
    if order.fate != Fate::IsDeclined {
        return act(&cx, &payload).await;
    }
    let attempt = cx.begin(call(&cx), &payload).await?;
    cx.work().await;
    attempt.ends().await?;
    Err(StepError::fail("declined"))
}

async fn deliver(cx: Cx<Ledger>, order: Order, quote: u64, receipt: String) -> Result<String, StepError> {
    act(&cx, &(&order, quote, receipt)).await
}

/// An attempt of any step that has an effect.
async fn act(cx: &Cx<Ledger>, payload: &impl Serialize) -> Result<String, StepError> {
    let attempt = cx.begin(call(cx), payload).await?;
    cx.work().await;
    if cx.is_in_trouble() {
        attempt.ends().await?;
        return Err(StepError::retry("busy"));
    }
    if !attempt.takes_effect(cx.idempotency_key()).await? {
        return Err(StepError::fail("it was undone before"));
    }
    match cx.is_in_trouble() {
        true => Err(StepError::unknown("the answer was lost")),
        false => Ok(format!("{} {:x}", cx.step(), cx.dice.roll())),
    }
}

async fn undo(cx: CompensationCx<Ledger>, order: Order, quote: u64, did: Option<String>) -> Result<(), StepError> {
    let (key, saga, step) = (cx.idempotency_key(), cx.saga_id(), cx.step());
    let call = Call { key, saga, step, undo: true, number: cx.attempt() };
    let attempt = cx.begin(call, &(&order, quote, did)).await?;
    cx.work().await;
    if cx.is_in_trouble() {
        attempt.ends().await?;
        return Err(StepError::retry("busy"));
    }
    attempt.undoes(cx.forward_key()).await?;
    match cx.is_in_trouble() {
        true => Err(StepError::unknown("the answer was lost")),
        false => Ok(()),
    }
}
