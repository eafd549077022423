//! What is said to a saga from outside: cancel, resume, skip.

mod common;

use common::{Order, Script, World, engine, until};
use saga_core::{
    CompensationCx, Cx, Engine, Error, MemoryStore, Out, Outcome, Retry, Saga, SagaBuilder, StepError,
    machine::Status,
    store::{Hint, Mail, Posted, Store},
};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

#[tokio::test(start_paused = true)]
async fn a_cancel_before_the_pivot_rolls_back_what_was_done_and_what_is_under_way() {
    let world = World::default().will("authorize", Script::Wait);
    let (store, world) = (MemoryStore::default(), Arc::new(world));
    let engine = engine(&store, &world).start().await.unwrap();
    let orders = engine.sagas::<Order>();
    let order = orders.submit("k", 3).await.unwrap();
    until("the authorization", || world.log().contains(&"authorize".into())).await;
    orders.cancel(order.id(), "changed my mind").await.unwrap();
    until("the release", || world.log().contains(&"release".into())).await;
    assert_eq!(order.status().await.unwrap(), Status::Compensating, "it waits for the authorization to end");
    world.gate.open();
    let Outcome::RolledBack(why) = order.outcome().await.unwrap() else { panic!("not rolled back") };
    assert_eq!((why.step, why.reason.as_str()), (None, "changed my mind"));
    assert!(world.log().contains(&"void".into()), "its end was waited for, and it was undone knowing its output");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_while_the_pivot_is_under_way_comes_too_late_when_it_succeeds() {
    let world = World::default().will("capture", Script::Wait);
    let (store, world) = (MemoryStore::default(), Arc::new(world));
    let engine = engine(&store, &world).start().await.unwrap();
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    until("the capture", || world.log().contains(&"capture".into())).await;
    engine.sagas::<Order>().cancel(order.id(), "too late?").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.gate.open();
    assert_eq!(order.outcome().await.unwrap(), Outcome::Completed("paid for 6".into()));
}

#[tokio::test(start_paused = true)]
async fn a_cancel_while_the_pivot_is_under_way_takes_effect_when_it_fails() {
    let world = World::default().will("capture", Script::Retry).will("capture", Script::Fail);
    let (store, world) = (MemoryStore::default(), Arc::new(world));
    let engine = engine(&store, &world).start().await.unwrap();
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    until("the capture", || world.log().contains(&"capture".into())).await;
    engine.sagas::<Order>().cancel(order.id(), "in time").await.unwrap();
    let Outcome::RolledBack(why) = order.outcome().await.unwrap() else { panic!("not rolled back") };
    assert_eq!(why.reason, "in time");
}

#[tokio::test(start_paused = true)]
async fn an_ended_saga_hears_nothing() {
    let (store, world) = (MemoryStore::default(), Arc::new(World::default()));
    let engine = engine(&store, &world).start().await.unwrap();
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    order.outcome().await.unwrap();
    assert!(matches!(engine.sagas::<Order>().cancel(order.id(), "late").await, Err(Error::Ended(_))));
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_waits_for_a_retry_in_the_store_hears_a_cancel() {
    let world = World::default().will("reserve", Script::Retry);
    let (store, world) = (MemoryStore::default(), Arc::new(world));
    let engine = engine(&store, &world)
        .configure(|config| {
            config.hold = Duration::ZERO;
            config.poll = Duration::from_millis(20);
        })
        .start()
        .await
        .unwrap();
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    until("the reservation", || world.log().contains(&"reserve".into())).await;
    engine.sagas::<Order>().cancel(order.id(), "no").await.unwrap();
    assert!(matches!(order.outcome().await.unwrap(), Outcome::RolledBack(why) if why.reason == "no"));
    assert!(!world.log().contains(&"release".into()), "nothing had happened");
}

/// Waits for an hour, or takes a tenth of a second.
struct Errand;

impl Saga for Errand {
    const NAME: &'static str = "errand";
    const VERSION: u32 = 1;
    type Input = bool;
    type Output = ();
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        let in_an_hour = Retry::exponential(Duration::from_secs(3600)).forever();
        saga.compensatable("run").retry(in_an_hour).run(run).compensate(back)
    }
}

async fn run(_: Cx<()>, waits: bool) -> Result<(), StepError> {
    if waits {
        return Err(StepError::retry("not yet"));
    }
    sleep(Duration::from_millis(100)).await;
    Ok(())
}

async fn back(_: CompensationCx<()>, _: bool, _: Option<()>) -> Result<(), StepError> {
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_waits_in_the_store_hears_a_cancel_in_spite_of_a_backlog() {
    let store = MemoryStore::default();
    let builder = Engine::builder(store.clone()).register::<Errand>(Arc::new(())).unwrap();
    let engine = builder.configure(|config| (config.sagas, config.hold) = (1, Duration::ZERO)).start().await.unwrap();
    let errands = engine.sagas::<Errand>();
    let waiting = errands.submit("waiting", true).await.unwrap();
    // Until it is put back into the store.
    sleep(Duration::from_secs(1)).await;
    let mut backlog = vec![];
    for n in 0..100 {
        backlog.push(errands.submit(format!("backlog {n}"), false).await.unwrap());
    }
    errands.cancel(waiting.id(), "no").await.unwrap();
    assert!(matches!(waiting.outcome().await.unwrap(), Outcome::RolledBack(why) if why.reason == "no"));
    let last = backlog.last().unwrap();
    assert_eq!(last.status().await.unwrap(), Status::Running, "as long as there is a backlog, nobody hears a cancel");
    last.outcome().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn mail_without_a_hint_is_heard_at_the_next_poll_however_many_hints_of_work_there_are() {
    let store = MemoryStore::default();
    let builder = Engine::builder(store.clone()).register::<Errand>(Arc::new(())).unwrap();
    let engine = builder.configure(|config| config.poll = Duration::from_millis(500)).start().await.unwrap();
    let waiting = engine.sagas::<Errand>().submit("waiting", true).await.unwrap();
    let hinting = tokio::spawn({
        let store = store.clone();
        async move {
            loop {
                store.hint(Hint::Work);
                sleep(Duration::from_millis(100)).await;
            }
        }
    });
    sleep(Duration::from_secs(1)).await;
    for n in 0..5 {
        let mail = Mail { saga: waiting.id(), message: n.to_string(), body: b"not understood".to_vec() };
        assert_eq!(store.post(&[mail]).await.unwrap(), [Posted::Accepted]);
        sleep(Duration::from_millis(570)).await;
        let unread = store.read(waiting.id()).await.unwrap().unwrap().mail;
        assert!(unread.is_empty(), "{unread:?}");
    }
    hinting.abort();
}

#[tokio::test(start_paused = true)]
async fn an_operator_skips_a_stuck_step_whose_output_nobody_reads_and_no_other() {
    let world = World::default().will("deliver", Script::Fail);
    let (store, world) = (MemoryStore::default(), Arc::new(world));
    let engine = engine(&store, &world).start().await.unwrap();
    let orders = engine.sagas::<Order>();
    let order = orders.submit("k", 3).await.unwrap();
    assert!(matches!(order.outcome().await.unwrap(), Outcome::Parked(_)));
    orders.skip(order.id(), "capture", "wrong").await.unwrap();
    orders.skip(order.id(), "nothing", "wrong").await.unwrap();
    orders.skip(order.id(), "deliver", "delivered by hand").await.unwrap();
    while order.status().await.unwrap() != Status::Completed {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let told = order.history().await.unwrap().to_string();
    assert!(told.contains("refused: skip capture: it is not stuck"), "{told}");
    assert!(told.contains("refused: skip nothing: there is no such step"), "{told}");
    assert!(told.contains("deliver was skipped: delivered by hand"), "{told}");
}
