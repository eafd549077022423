//! Starting sagas: keys, limits, back-pressure, and asking from elsewhere.

mod common;

use common::{Order, Script, World, engine, until};
use saga_core::{Engine, Error, MemoryStore, Outcome, machine::Status};
use std::{sync::Arc, time::Duration};

#[tokio::test(start_paused = true)]
async fn the_same_key_and_input_start_one_saga() {
    let (store, world) = (MemoryStore::default(), Arc::new(World::default()));
    let engine = engine(&store, &world).start().await.unwrap();
    let orders = engine.sagas::<Order>();
    let (first, second) = tokio::join!(orders.submit("k", 3), orders.submit("k", 3));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.id(), second.id());
    assert!(first.is_new() != second.is_new());
    assert_eq!(first.outcome().await.unwrap(), second.outcome().await.unwrap());
    assert_eq!(orders.submit("k", 3).await.unwrap().outcome().await.unwrap(), Outcome::Completed("paid for 6".into()));
    assert_eq!(world.log().iter().filter(|call| *call == "capture").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_same_key_with_another_input_is_an_error_that_names_the_saga() {
    let (store, world) = (MemoryStore::default(), Arc::new(World::default()));
    let engine = engine(&store, &world).start().await.unwrap();
    let first = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    let error = engine.sagas::<Order>().submit("k", 4).await.unwrap_err();
    assert!(matches!(&error, Error::KeyTaken { saga, .. } if *saga == first.id()), "{error}");
}

#[tokio::test(start_paused = true)]
async fn another_process_waits_for_the_outcome_and_finds_it_later_too() {
    let (store, world) = (MemoryStore::default(), Arc::new(World::default().will("capture", Script::Wait)));
    let worker = engine(&store, &world).start().await.unwrap();
    let client = Engine::builder(store.clone()).start().await.unwrap();
    let saga = worker.sagas::<Order>().submit("k", 3).await.unwrap().id();
    let waiting = tokio::spawn({
        let orders = client.sagas::<Order>();
        async move { orders.get(saga).outcome().await.unwrap() }
    });
    until("the capture", || world.log().contains(&"capture".into())).await;
    assert_eq!(client.sagas::<Order>().get(saga).status().await.unwrap(), Status::Running);
    world.gate.open();
    assert_eq!(waiting.await.unwrap(), Outcome::Completed("paid for 6".into()));
    let found = client.sagas::<Order>().find("k").await.unwrap().unwrap();
    assert_eq!(found.outcome().await.unwrap(), Outcome::Completed("paid for 6".into()));
    assert!(client.sagas::<Order>().find("other").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_process_without_workers_can_start_sagas_for_others() {
    let (store, world) = (MemoryStore::default(), Arc::new(World::default()));
    let client = Engine::builder(store.clone()).start().await.unwrap();
    let saga = client.sagas::<Order>().submit("k", 3).await.unwrap();
    let _worker = engine(&store, &world).start().await.unwrap();
    assert_eq!(saga.outcome().await.unwrap(), Outcome::Completed("paid for 6".into()));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_saga_is_an_error() {
    let client = Engine::builder(MemoryStore::default()).start().await.unwrap();
    let nobody = client.sagas::<Order>().get(saga_core::SagaId::generate());
    assert!(matches!(nobody.outcome().await, Err(Error::NoSuchSaga(_))));
    assert!(matches!(client.sagas::<Order>().cancel(nobody.id(), "why").await, Err(Error::NoSuchSaga(_))));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_into_memory_waits_in_the_store_and_none_is_forgotten() {
    let (store, world) = (MemoryStore::default(), Arc::new(World::default()));
    let engine = engine(&store, &world).configure(|config| config.sagas = 3).start().await.unwrap();
    let orders = engine.sagas::<Order>();
    let submitted = (0..100).map(|n| orders.submit(format!("{n}"), 3));
    for order in futures::future::join_all(submitted).await {
        assert_eq!(order.unwrap().outcome().await.unwrap(), Outcome::Completed("paid for 6".into()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_step_holds_up_no_other_saga() {
    let world = World::default().will("reserve", Script::Wait);
    let (store, world) = (MemoryStore::default(), Arc::new(world));
    let engine = engine(&store, &world).start().await.unwrap();
    let slow = engine.sagas::<Order>().submit("slow", 3).await.unwrap();
    until("the reservation", || world.log().contains(&"reserve".into())).await;
    for n in 0..50 {
        let quick = engine.sagas::<Order>().submit(format!("quick {n}"), 3).await.unwrap();
        quick.outcome().await.unwrap();
    }
    assert_eq!(slow.status().await.unwrap(), Status::Running);
}

#[tokio::test(start_paused = true)]
async fn attempts_are_limited() {
    let mut world = World::default();
    for _ in 0..10 {
        world = world.will("reserve", Script::Wait);
    }
    let (store, world) = (MemoryStore::default(), Arc::new(world));
    let engine = engine(&store, &world).configure(|config| config.attempts = 4).start().await.unwrap();
    for n in 0..10 {
        engine.sagas::<Order>().submit(format!("{n}"), 3).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let reserving = world.log().iter().filter(|call| *call == "reserve").count();
    assert_eq!(reserving, 3, "one is left for other steps: {:?}", world.log());
    world.gate.open();
    until("all", || world.log().iter().filter(|call| *call == "deliver").count() == 10).await;
}

#[tokio::test(start_paused = true)]
async fn an_input_that_is_too_large_is_refused() {
    let (store, world) = (MemoryStore::default(), Arc::new(World::default()));
    let engine = engine(&store, &world).configure(|config| config.payload = 2).start().await.unwrap();
    let error = engine.sagas::<Order>().submit("k", 1000).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { bytes: 4, allowed: 2 }));
}

#[tokio::test(start_paused = true)]
async fn an_output_that_is_too_large_parks_and_a_larger_limit_moves_it_on() {
    let (store, world) = (MemoryStore::default(), Arc::new(World::default()));
    let small = engine(&store, &world).configure(|config| config.payload = 5).start().await.unwrap();
    let saga = small.sagas::<Order>().submit("k", 3).await.unwrap();
    let Outcome::Parked(why) = saga.outcome().await.unwrap() else { panic!("not parked") };
    assert_eq!(why.to_string(), "capture: its output has 12 bytes, more than the 5 allowed");
    small.shutdown(Duration::ZERO).await;
    let large = engine(&store, &world).start().await.unwrap();
    large.sagas::<Order>().resume(saga.id(), "a larger limit").await.unwrap();
    until("the delivery", || world.log().contains(&"deliver".into())).await;
}
