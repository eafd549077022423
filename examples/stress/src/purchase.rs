//! The saga under stress: three commands to three participants, and a ledger in which each effect is one line.

use saga_core::{
    Out, Retry, Saga, SagaBuilder, StepError,
    message::Op,
    participant::{Command, CommandCx, Participant},
};
use saga_postgres::PgInbox;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use std::time::Duration;

/// The saga's input: the number decides its fate, so that it is the same on every attempt.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Number {
    pub number: u64,
    /// Whether participants sometimes refuse, fail and panic.
    pub trouble: bool,
}

macro_rules! command {
    ($name:ident -> $reply:ty, $kind:literal, $topic:literal) => {
        #[derive(Debug, Serialize, Deserialize)]
        pub struct $name(pub Number);
        impl Command for $name {
            const TYPE: &'static str = $kind;
            const TOPIC: &'static str = $topic;
            type Reply = $reply;
        }
    };
}
command!(Reserve -> u64, "inventory.reserve.v1", "inventory.commands");
command!(Release -> (), "inventory.release.v1", "inventory.commands");
command!(Charge -> u64, "payment.charge.v1", "payment.commands");
command!(Deliver -> u64, "delivery.start.v1", "delivery.commands");

/// Where commands go.
pub const COMMANDS: [&str; 3] = [Reserve::TOPIC, Charge::TOPIC, Deliver::TOPIC];
/// The orchestrator's name.
pub const SHOP: &str = "shop";
/// Where replies go.
pub const REPLIES: &str = "shop.replies";
/// The participants' names, which are their groups.
pub const PARTICIPANTS: [&str; 3] = ["inventory", "payment", "delivery"];

pub struct Purchase;

impl Saga for Purchase {
    const NAME: &'static str = "purchase";
    const VERSION: u32 = 1;
    type Input = Number;
    type Output = u64;
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, u64> {
        let for_ever = Retry::exponential(Duration::from_millis(200)).longest(Duration::from_secs(5)).forever();
        let timeout = Duration::from_secs(10);
        saga.compensatable("reserve")
            .timeout(timeout)
            .command(Reserve)
            .retry_compensation(for_ever)
            .compensation_timeout(timeout)
            .compensate_command(|number, _| Release(number));
        saga.pivot("charge").retry(for_ever).timeout(timeout).command(Charge);
        saga.retriable("deliver").retry(for_ever).timeout(timeout).command(Deliver)
    }
}

/// The participants' own table.
pub const LEDGER: &str = "
    CREATE TABLE IF NOT EXISTS ledger (
        id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        saga     uuid NOT NULL,
        step     text NOT NULL,
        op       text NOT NULL
    )";

/// One of the participants.
pub fn participant(name: &'static str, inbox: PgInbox) -> Participant<PgInbox, ()> {
    let participant = Participant::new(name, inbox, ());
    match name {
        "inventory" => participant.on(reserve).on_undo(release),
        "payment" => participant.on(charge),
        _ => participant.on(deliver),
    }
}

async fn reserve(cx: CommandCx<()>, db: &mut PgConnection, Reserve(n): Reserve) -> Result<u64, StepError> {
    trouble(&cx, n)?;
    write(&cx, db, Op::Do).await?;
    if n.trouble && n.number % 20 == 0 {
        // After its write, which has to go with it.
        return Err(StepError::fail("out of stock"));
    }
    Ok(n.number)
}

async fn release(cx: CommandCx<()>, db: &mut PgConnection, _: Release) -> Result<(), StepError> {
    write(&cx, db, Op::Undo).await
}

async fn charge(cx: CommandCx<()>, db: &mut PgConnection, Charge(n): Charge) -> Result<u64, StepError> {
    write(&cx, db, Op::Do).await?;
    trouble(&cx, n)?;
    if n.trouble && n.number % 5 == 1 {
        return Err(StepError::fail("declined"));
    }
    Ok(n.number)
}

async fn deliver(cx: CommandCx<()>, db: &mut PgConnection, Deliver(n): Deliver) -> Result<u64, StepError> {
    write(&cx, db, Op::Do).await?;
    trouble(&cx, n)?;
    Ok(n.number)
}

/// What goes wrong at a first attempt.
fn trouble(cx: &CommandCx<()>, n: Number) -> Result<(), StepError> {
    match n.number {
        _ if !n.trouble || cx.attempt() > 1 => Ok(()),
        n if n % 7 == 3 => Err(StepError::retry("busy")),
        n if n % 11 == 4 => Err(StepError::unknown("who knows")),
        n if n % 53 == 5 => panic!("a handler that panics"),
        _ => Ok(()),
    }
}

async fn write(cx: &CommandCx<()>, db: &mut PgConnection, op: Op) -> Result<(), StepError> {
    sqlx::query("INSERT INTO ledger (saga, step, op) VALUES ($1, $2, $3)")
        .bind(cx.saga_id().as_uuid())
        .bind(&cx.id().step)
        .bind(op.to_string())
        .execute(db)
        .await?;
    Ok(())
}
