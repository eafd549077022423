//! The engine on the memory store, in virtual time: what becomes of a saga.

mod common;

use common::{Order, Script, World};
use saga_core::{Engine, MemoryStore, Outcome};
use std::{sync::Arc, time::Duration};

async fn run(world: World) -> (Outcome<String>, Vec<String>) {
    let world = Arc::new(world);
    let engine =
        Engine::builder(MemoryStore::default()).register::<Order>(world.clone()).unwrap().start().await.unwrap();
    let outcome = engine.sagas::<Order>().submit("k", 3).await.unwrap().outcome().await.unwrap();
    engine.shutdown(Duration::ZERO).await;
    (outcome, world.log())
}

#[tokio::test(start_paused = true)]
async fn a_happy_order_completes_with_its_output() {
    let (outcome, log) = run(World::default()).await;
    assert_eq!(outcome, Outcome::Completed("paid for 6".into()));
    assert_eq!(log, ["reserve", "authorize", "capture", "deliver"]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_pivot_undoes_what_came_before() {
    let (outcome, mut log) = run(World::default().will("capture", Script::Fail)).await;
    assert!(matches!(&outcome, Outcome::RolledBack(why) if why.to_string() == "capture: no"));
    log[3..].sort();
    assert_eq!(log, ["reserve", "authorize", "capture", "release", "void"]);
}

#[tokio::test(start_paused = true)]
async fn a_transient_error_is_tried_again() {
    let (outcome, log) = run(World::default().will("reserve", Script::Retry).will("deliver", Script::Retry)).await;
    assert_eq!(outcome, Outcome::Completed("paid for 6".into()));
    assert_eq!(log, ["reserve", "authorize", "reserve", "capture", "deliver", "deliver"]);
}

#[tokio::test(start_paused = true)]
async fn a_step_in_doubt_is_undone_without_its_output() {
    let (outcome, log) = run(World::default().will("authorize", Script::Unknown)).await;
    assert!(matches!(&outcome, Outcome::RolledBack(why) if why.step.as_deref() == Some("authorize")));
    assert!(log.contains(&"void in doubt".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_an_unknown_outcome() {
    let (outcome, log) = run(World::default().will("authorize", Script::Panic)).await;
    assert!(matches!(&outcome, Outcome::RolledBack(why) if why.reason == "it panicked: ouch"));
    assert!(log.contains(&"void in doubt".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_hanging_step_is_dropped_at_its_timeout_and_tried_again() {
    let (outcome, log) = run(World::default().will("reserve", Script::Hang)).await;
    assert_eq!(outcome, Outcome::Completed("paid for 6".into()));
    assert_eq!(log.iter().filter(|call| *call == "reserve").count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_retriable_step_that_fails_parks_and_an_operator_moves_it_on() {
    let world = Arc::new(World::default().will("deliver", Script::Fail));
    let engine =
        Engine::builder(MemoryStore::default()).register::<Order>(world.clone()).unwrap().start().await.unwrap();
    let orders = engine.sagas::<Order>();
    let order = orders.submit("k", 3).await.unwrap();
    assert!(matches!(order.outcome().await.unwrap(), Outcome::Parked(why) if why.to_string() == "deliver: no"));
    orders.resume(order.id(), "eve").await.unwrap();
    let ended = async {
        loop {
            if let Outcome::Completed(receipt) = order.outcome().await.unwrap() {
                return receipt;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert_eq!(ended.await, "paid for 6");
    engine.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn another_process_takes_over_from_a_killed_one() {
    let world = Arc::new(World::default().will("capture", Script::Hang));
    let store = MemoryStore::default();
    let first = Engine::builder(store.clone()).register::<Order>(world.clone()).unwrap().start().await.unwrap();
    let order = first.sagas::<Order>().submit("k", 3).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.log(), ["reserve", "authorize", "capture"]);
    let saga = order.id();
    first.kill().await;
    let second = Engine::builder(store).register::<Order>(world.clone()).unwrap().start().await.unwrap();
    let outcome = second.sagas::<Order>().get(saga).outcome().await.unwrap();
    assert_eq!(outcome, Outcome::Completed("paid for 6".into()));
    assert_eq!(world.log(), ["reserve", "authorize", "capture", "capture", "deliver"]);
    let told = second.sagas::<Order>().get(saga).history().await.unwrap().to_string();
    assert!(told.contains("its worker was lost (number 1) while capture may have been under way"), "{told}");
}
