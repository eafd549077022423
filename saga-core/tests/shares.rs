//! However much one definition or one step takes of what there is, something is left for the others.

use saga_core::{Config, Cx, Engine, MemoryStore, Out, Outcome, Saga, SagaBuilder, Sagas, StepError};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// More than there is of anything.
const MANY: usize = 100;

/// Opens when the participant answers again.
struct Gate(watch::Sender<bool>);

/// Its participant hangs. What it brings along is heavy.
struct Hangs;

impl Saga for Hangs {
    const NAME: &'static str = "hangs";
    const VERSION: u32 = 1;
    type Input = bool;
    type Output = ();
    type Deps = Gate;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        let weighed = saga.effect_free("weigh").run(weigh);
        saga.pivot("ask").timeout(HOUR).reads(weighed).run(ask)
    }
}

async fn weigh(_: Cx<Gate>, heavy: bool) -> Result<String, StepError> {
    Ok("x".repeat(if heavy { 10_000 } else { 0 }))
}

async fn ask(gate: Cx<Gate>, _: bool, _: String) -> Result<(), StepError> {
    gate.0.subscribe().wait_for(|open| *open).await?;
    Ok(())
}

struct Quick;

impl Saga for Quick {
    const NAME: &'static str = "quick";
    const VERSION: u32 = 1;
    type Input = ();
    type Output = ();
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        saga.pivot("do").run(async |_: Cx<()>, ()| Ok(()))
    }
}

/// How long quick sagas take beside many that hang, in turns started here and elsewhere; and whether those all end when
/// their participant answers again.
async fn beside_what_hangs(heavy: bool, configure: fn(&mut Config)) {
    let (store, gate) = (MemoryStore::default(), Arc::new(Gate(watch::Sender::new(false))));
    let builder = Engine::builder(store.clone()).register::<Hangs>(gate.clone()).unwrap();
    let engine = builder.register::<Quick>(()).unwrap().configure(configure).start().await.unwrap();
    let client = Engine::builder(store).start().await.unwrap();
    let mut hanging = vec![];
    for n in 0..MANY {
        let sagas: Sagas<Hangs> = if n % 2 == 0 { engine.sagas() } else { client.sagas() };
        hanging.push(sagas.submit(n.to_string(), heavy).await.unwrap());
    }
    tokio::time::sleep(10 * SECOND).await;
    for n in 0..MANY {
        let sagas: Sagas<Quick> = if n % 2 == 0 { engine.sagas() } else { client.sagas() };
        let began = Instant::now();
        let quick = sagas.submit(n.to_string(), ()).await.unwrap();
        let outcome = timeout(HOUR / 2, quick.outcome()).await.expect("it is stopped by a stranger").unwrap();
        assert_eq!((outcome, began.elapsed() < 2 * SECOND), (Outcome::Completed(()), true), "{:?}", began.elapsed());
    }
    gate.0.send_replace(true);
    for saga in hanging {
        let outcome = timeout(HOUR / 2, saga.outcome()).await.expect("it is forgotten").unwrap();
        assert_eq!(outcome, Outcome::Completed(()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_hangs_leaves_attempts_to_others() {
    beside_what_hangs(false, |config| config.attempts = 16).await;
}

#[tokio::test(start_paused = true)]
async fn a_definition_that_hangs_leaves_places_to_others() {
    beside_what_hangs(false, |config| config.sagas = 16).await;
}

#[tokio::test(start_paused = true)]
async fn a_definition_that_is_heavy_leaves_memory_to_others() {
    beside_what_hangs(true, |config| config.memory = 64_000).await;
}

#[tokio::test(start_paused = true)]
async fn a_place_that_becomes_free_goes_to_what_waits_in_the_store_before_anybody_looks_again() {
    let gate = Arc::new(Gate(watch::Sender::new(false)));
    let builder = Engine::builder(MemoryStore::default()).register::<Hangs>(gate.clone()).unwrap();
    let few = |config: &mut Config| (config.sagas, config.poll) = (16, HOUR);
    let engine = builder.configure(few).start().await.unwrap();
    let mut hanging = vec![];
    for n in 0..MANY {
        hanging.push(engine.sagas::<Hangs>().submit(n.to_string(), false).await.unwrap());
    }
    tokio::time::sleep(10 * SECOND).await;
    gate.0.send_replace(true);
    let opened = Instant::now();
    for saga in hanging {
        assert_eq!(saga.outcome().await.unwrap(), Outcome::Completed(()));
    }
    assert!(opened.elapsed() < HOUR / 60, "they waited for a look: {:?}", opened.elapsed());
}
