//! A participant that is away for two minutes, a restart and somewhat more: with no policy stated, no saga turns back
//! or parks because of it.

use saga_core::{
    CompensationCx, Cx, Engine, MemoryStore, Out, Outcome, Saga, SagaBuilder, StepError,
    machine::Event,
    participant::{Command, CommandCx, MemoryInbox, Participant},
    transport::{LocalTransport, Transport},
};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until};

const AWAY: Duration = Duration::from_secs(120);
/// The longest pause of a retriable step or a compensation, an attempt that was silent to the end, and a little.
const SOON: Duration = Duration::from_secs(60 + 30 + 10);

/// What it is like when somebody is away.
#[derive(Clone, Copy, Debug)]
enum Manner {
    SaysRetry,
    /// As `?` gives it.
    Breaks,
    /// Until the attempt has taken too long.
    IsSilent,
    Panics,
}

const MANNERS: [Manner; 4] = [Manner::SaysRetry, Manner::Breaks, Manner::IsSilent, Manner::Panics];

/// The services of a shop, one of which is away.
struct Shop {
    away: &'static str,
    manner: Manner,
    back: Instant,
}

impl Shop {
    fn without(away: &'static str, manner: Manner) -> Arc<Self> {
        Arc::new(Self { away, manner, back: Instant::now() + AWAY })
    }

    async fn call(&self, step: &str) -> Result<(), StepError> {
        match self.manner {
            _ if step != self.away || Instant::now() >= self.back => Ok(()),
            Manner::SaysRetry => Err(StepError::retry("connection refused")),
            Manner::Breaks => Err(std::io::Error::other("connection reset"))?,
            Manner::IsSilent => std::future::pending().await,
            // Without a word on the terminal.
            Manner::Panics => std::panic::resume_unwind(Box::new("nobody is there")),
        }
    }
}

/// A step of each kind, and a way to turn back.
struct Order;

impl Saga for Order {
    const NAME: &'static str = "order";
    const VERSION: u32 = 1;
    type Input = bool;
    type Output = ();
    type Deps = Shop;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        saga.effect_free("quote").run(async |shop: Cx<Shop>, _| shop.call("quote").await);
        saga.compensatable("reserve").run(async |shop: Cx<Shop>, _| shop.call("reserve").await).compensate(release);
        saga.pivot("charge").run(charge);
        saga.effect_free("look-up").run(async |shop: Cx<Shop>, _| shop.call("look-up").await);
        saga.retriable("deliver").run(async |shop: Cx<Shop>, _| shop.call("deliver").await)
    }
}

async fn release(shop: CompensationCx<Shop>, _: bool, _: Option<()>) -> Result<(), StepError> {
    shop.call("release").await
}

async fn charge(shop: Cx<Shop>, declined: bool) -> Result<(), StepError> {
    if declined {
        return Err(StepError::fail("declined"));
    }
    shop.call("charge").await
}

/// All sagas of a shop go their way, in spite of what is away.
async fn all_go_their_way(away: &'static str, manner: Manner) {
    let (shop, began) = (Shop::without(away, manner), Instant::now());
    let engine = Engine::builder(MemoryStore::default()).register::<Order>(shop).unwrap().start().await.unwrap();
    let declined = away == "release";
    let mut orders = vec![];
    for n in 0..50 {
        orders.push(engine.sagas::<Order>().submit(n.to_string(), declined).await.unwrap());
    }
    for order in orders {
        match order.outcome().await.unwrap() {
            Outcome::Completed(()) => assert!(!declined),
            Outcome::RolledBack(why) => assert!(declined && why.reason == "declined", "{away} {manner:?}: {why}"),
            Outcome::Parked(why) => panic!("{away} {manner:?}: parked at {why}"),
        }
        assert!(
            began.elapsed() < AWAY + SOON,
            "{away} {manner:?}: {:?}\n{}",
            began.elapsed(),
            order.history().await.unwrap()
        );
        let history = order.history().await.unwrap();
        let retried = |event: &Event| matches!(event, Event::Retrying { .. } | Event::CompensationRetrying { .. });
        assert!(history.events().iter().any(retried), "{away} was not away at all");
    }
    assert!(began.elapsed() >= AWAY);
    engine.kill().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_turns_back_or_parks_because_somebody_is_away() {
    for away in ["quote", "reserve", "charge", "look-up", "deliver", "release"] {
        for manner in MANNERS {
            all_go_their_way(away, manner).await;
        }
    }
}

macro_rules! command {
    ($name:ident -> $reply:ty, $kind:literal) => {
        #[derive(Serialize, Deserialize)]
        struct $name(bool);
        impl Command for $name {
            const TYPE: &'static str = $kind;
            const TOPIC: &'static str = "shop.commands";
            type Reply = $reply;
        }
    };
}
command!(Quote -> (), "shop.quote.v1");
command!(Reserve -> (), "shop.reserve.v1");
command!(Release -> (), "shop.release.v1");
command!(Charge -> (), "shop.charge.v1");
command!(Deliver -> (), "shop.deliver.v1");

/// The same by commands.
struct OrderByCommand;

impl Saga for OrderByCommand {
    const NAME: &'static str = "order-by-command";
    const VERSION: u32 = 1;
    type Input = bool;
    type Output = ();
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        saga.effect_free("quote").command(Quote);
        saga.compensatable("reserve").command(Reserve).compensate_command(|declined, _| Release(declined));
        saga.pivot("charge").command(Charge);
        saga.retriable("deliver").command(Deliver)
    }
}

/// The participant that does all of that, at work from the beginning or not before it is back.
async fn by_command(away: &'static str, manner: Option<Manner>) {
    let (shop, began) = (Shop::without(away, manner.unwrap_or(Manner::SaysRetry)), Instant::now());
    let transport = Arc::new(LocalTransport::default()) as Arc<dyn Transport>;
    let charge = async |shop: CommandCx<Shop>, _: &mut (), Charge(declined): Charge| match declined {
        true => Err(StepError::fail("declined")),
        false => shop.call("charge").await,
    };
    let participant = Participant::new("shop", MemoryInbox::default(), shop.clone())
        .on(async |shop: CommandCx<Shop>, _: &mut (), _: Quote| shop.call("quote").await)
        .on(async |shop: CommandCx<Shop>, _: &mut (), _: Reserve| shop.call("reserve").await)
        .on(charge)
        .on(async |shop: CommandCx<Shop>, _: &mut (), _: Deliver| shop.call("deliver").await)
        .on_undo(async |shop: CommandCx<Shop>, _: &mut (), _: Release| shop.call("release").await);
    let builder = Engine::builder(MemoryStore::default()).transport("orders", transport.clone());
    let engine = builder.register::<OrderByCommand>(()).unwrap().start().await.unwrap();
    let declined = away == "release";
    let mut orders = vec![];
    for n in 0..5 {
        orders.push(engine.sagas::<OrderByCommand>().submit(n.to_string(), declined).await.unwrap());
    }
    if manner.is_none() {
        sleep_until(shop.back).await;
    }
    let participant = participant.start(transport).await.unwrap();
    for order in orders {
        match order.outcome().await.unwrap() {
            Outcome::Completed(()) => assert!(!declined),
            Outcome::RolledBack(why) => assert!(declined && why.reason == "declined", "{away} {manner:?}: {why}"),
            Outcome::Parked(why) => panic!("{away} {manner:?}: parked at {why}"),
        }
    }
    assert!(began.elapsed() >= AWAY, "{away} was not away at all");
    assert!(began.elapsed() < AWAY + SOON, "{away} {manner:?}: {:?}", began.elapsed());
    participant.stop().await;
    engine.kill().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_turns_back_or_parks_because_a_participant_of_commands_is_away() {
    for away in ["quote", "reserve", "charge", "deliver", "release"] {
        for manner in MANNERS {
            by_command(away, Some(manner)).await;
        }
    }
    // Not there at all: the commands wait for it.
    by_command("everybody", None).await;
}
