//! The saga. What a step returns differs from attempt to attempt, so that a payload made of anything that was not
//! journaled shows.

use super::ledger::Ledger;
use saga_core::{CompensationCx, Cx, Out, Retry, Saga, SagaBuilder, StepError};
use serde::{Deserialize, Serialize};
use std::time::Duration;

pub struct Errand;

/// The saga's input.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Order {
    pub number: u64,
    pub fate: Fate,
}

/// How an errand is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    Completes,
    /// A participant is busy a few times: the saga pauses in the store, and whoever comes first goes on with it.
    Pauses,
    /// An answer is lost, which the next attempt finds out.
    LosesAnAnswer,
    /// The pivot says no: all is undone.
    IsDeclined,
    /// A step happens, gives no answer, and gives up: it is undone in doubt.
    GivesUp,
    /// Somebody asks to cancel at any time: it ends in either way.
    MayBeCancelled,
}

impl Fate {
    /// Every order's fate is known from its number.
    pub fn of(number: u64) -> Self {
        match number % 8 {
            1 | 4 => Self::Pauses,
            2 => Self::LosesAnAnswer,
            3 => Self::IsDeclined,
            5 => Self::GivesUp,
            6 => Self::MayBeCancelled,
            _ => Self::Completes,
        }
    }
}

/// Nothing gives up for want of attempts: how a saga ends is decided by its fate alone.
const AGAIN: Retry = Retry::exponential(Duration::from_millis(400)).longest(Duration::from_secs(2)).forever();

impl Saga for Errand {
    const NAME: &'static str = "errand";
    const VERSION: u32 = 1;
    type Input = Order;
    type Output = u64;
    type Deps = Ledger;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, u64> {
        let stock = saga
            .compensatable("reserve")
            .retry(AGAIN)
            .run(async |cx: Cx<Ledger>, order| act(&cx, order, ()).await)
            .retry_compensation(AGAIN)
            .compensate(async |cx: CompensationCx<Ledger>, order, did| undo(&cx, order, (), did).await);
        let credit = saga
            .compensatable("authorize")
            .reads(stock)
            .retry(AGAIN)
            .run(async |cx: Cx<Ledger>, order, stock| act(&cx, order, stock).await)
            .retry_compensation(AGAIN)
            .compensate(async |cx: CompensationCx<Ledger>, order, stock, did| undo(&cx, order, stock, did).await);
        let receipt = saga
            .pivot("charge")
            .reads((stock, credit))
            .retry(AGAIN)
            .run(async |cx: Cx<Ledger>, order, stock, credit| act(&cx, order, (stock, credit)).await);
        saga.retriable("deliver")
            .reads(receipt)
            .retry(AGAIN)
            .run(async |cx: Cx<Ledger>, order, receipt| act(&cx, order, receipt).await);
        receipt
    }
}

/// An attempt of any step.
async fn act(cx: &Cx<Ledger>, order: Order, read: impl Serialize) -> Result<u64, StepError> {
    let (key, step, attempt) = (cx.idempotency_key(), cx.step(), cx.attempt());
    cx.asked(key, &(order, read)).await?;
    match (order.fate, step) {
        (Fate::Pauses, "reserve" | "deliver") if attempt < 3 => return Err(StepError::retry("busy")),
        (Fate::IsDeclined, "charge") => return Err(StepError::fail("declined")),
        (Fate::GivesUp, "authorize") if attempt > 1 => return Err(StepError::fail("no answer, too often")),
        _ => {}
    }
    if !cx.takes_effect(key, cx.saga_id(), step).await? {
        return Err(StepError::fail("it was undone before"));
    }
    match (order.fate, step) {
        (Fate::GivesUp, "authorize") => Err(StepError::unknown("the answer was lost")),
        (Fate::LosesAnAnswer, "authorize" | "charge") if attempt == 1 => Err(StepError::unknown("the answer was lost")),
        _ => Ok(fastrand::u64(..1 << 50)),
    }
}

/// An attempt of any compensation.
async fn undo(
    cx: &CompensationCx<Ledger>,
    order: Order,
    read: impl Serialize,
    did: Option<u64>,
) -> Result<(), StepError> {
    cx.asked(cx.idempotency_key(), &(order, read, did)).await?;
    if order.fate == Fate::IsDeclined && cx.attempt() == 1 {
        return Err(StepError::retry("busy"));
    }
    cx.undoes(cx.forward_key(), cx.saga_id(), cx.step()).await?;
    Ok(())
}
