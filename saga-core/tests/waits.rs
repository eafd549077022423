//! A step that starts another saga: it must not wait for it in its place, and is told so at once; what it can do
//! instead.

use saga_core::{
    CompensationCx, Config, Cx, Engine, Error, MemoryStore, Out, Outcome, Retry, Saga, SagaBuilder, Sagas, StepError,
};
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::time::{Instant, timeout};

const PARENTS: u32 = 40;
const PLACES: usize = 16;

struct Child;

impl Saga for Child {
    const NAME: &'static str = "child";
    const VERSION: u32 = 1;
    type Input = u32;
    type Output = u32;
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, u32> {
        saga.pivot("double").run(async |_: Cx<()>, n: u32| Ok(2 * n))
    }
}

/// What a parent does in its step.
#[derive(Clone, Copy)]
enum Way {
    /// Waits, and hands on the error by `?`.
    Waits,
    /// The same, with the error in one of its own.
    WaitsAndWraps,
    /// Says that it is transient.
    WaitsAndRetries,
    /// Looks, and comes again.
    Looks,
}

struct Deps {
    way: Way,
    children: OnceLock<Sagas<Child>>,
}

struct Parent;

impl Saga for Parent {
    const NAME: &'static str = "parent";
    const VERSION: u32 = 1;
    type Input = u32;
    type Output = u32;
    type Deps = Deps;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, u32> {
        let patiently = Retry::exponential(Duration::from_millis(200)).longest(Duration::from_secs(5)).forever();
        saga.pivot("start-child").retry(patiently).run(start_child)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the child")]
struct OfChild(#[from] Error);

async fn start_child(cx: Cx<Deps>, n: u32) -> Result<u32, StepError> {
    let child = cx.children.get().unwrap().submit(cx.idempotency_key(), n).await?;
    let ended = match cx.way {
        Way::Waits => Some(child.outcome().await?),
        Way::WaitsAndWraps => Some(child.outcome().await.map_err(OfChild)?),
        Way::WaitsAndRetries => Some(child.outcome().await.map_err(StepError::retry)?),
        Way::Looks => child.history().await?.outcome()?,
    };
    match ended {
        Some(Outcome::Completed(doubled)) => Ok(doubled),
        Some(Outcome::RolledBack(why)) => Err(StepError::fail(why.to_string())),
        Some(Outcome::Parked(_)) | None => Err(StepError::retry("the child has not ended")),
    }
}

/// Two engines on one store: one that runs both sagas, and another one, which the children are started by if `apart`.
async fn outcomes(way: Way, apart: bool, configure: fn(&mut Config)) -> Vec<Outcome<u32>> {
    let (store, deps) = (MemoryStore::default(), Arc::new(Deps { way, children: OnceLock::new() }));
    let builder = Engine::builder(store.clone()).register::<Parent>(deps.clone()).unwrap();
    let engine = builder.register::<Child>(()).unwrap().configure(configure).start().await.unwrap();
    let other = Engine::builder(store).register::<Child>(()).unwrap().start().await.unwrap();
    assert!(deps.children.set(if apart { &other } else { &engine }.sagas::<Child>()).is_ok());
    let mut parents = vec![];
    for n in 0..PARENTS {
        parents.push(engine.sagas::<Parent>().submit(n.to_string(), n).await.unwrap());
    }
    let mut outcomes = vec![];
    for parent in parents {
        let outcome = timeout(Duration::from_secs(3600), parent.outcome()).await.expect("it waits for ever");
        outcomes.push(outcome.unwrap());
    }
    other.kill().await;
    engine.kill().await;
    outcomes
}

#[tokio::test(start_paused = true)]
async fn a_step_that_waits_for_a_saga_of_its_own_engine_is_told_so_at_once_however_many_places_there_are() {
    let configurations: [fn(&mut Config); 3] =
        [|_| (), |config| config.sagas = PLACES, |config| config.attempts = PLACES];
    for way in [Way::Waits, Way::WaitsAndWraps, Way::WaitsAndRetries] {
        for configure in configurations {
            let began = Instant::now();
            for outcome in outcomes(way, false, configure).await {
                let Outcome::Parked(why) = outcome else { panic!("{outcome:?}") };
                assert_eq!(why.step.as_deref(), Some("start-child"));
                assert!(why.reason.contains("step `start-child` waits for the outcome of saga"), "{why}");
                assert!(why.reason.contains("look with `history` whether it has ended"), "{why}");
            }
            assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_looks_and_comes_again_leaves_the_places_to_its_children() {
    for configure in [(|config| config.sagas = PLACES) as fn(&mut Config), |config| config.attempts = PLACES] {
        let doubled: Vec<_> = (0..PARENTS).map(|n| Outcome::Completed(2 * n)).collect();
        assert_eq!(outcomes(Way::Looks, false, configure).await, doubled);
    }
}

#[tokio::test(start_paused = true)]
async fn a_saga_of_another_engine_may_be_waited_for() {
    let doubled: Vec<_> = (0..PARENTS).map(|n| Outcome::Completed(2 * n)).collect();
    let outcomes = outcomes(Way::Waits, true, |config| {
        config.sagas = PLACES;
        config.attempts = PLACES;
    });
    assert_eq!(outcomes.await, doubled);
}

/// Waits in its compensation.
struct Undoing;

impl Saga for Undoing {
    const NAME: &'static str = "undoing";
    const VERSION: u32 = 1;
    type Input = ();
    type Output = ();
    type Deps = Deps;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        saga.compensatable("reserve")
            .run(async |_: Cx<Deps>, ()| Ok(()))
            .retry_compensation(Retry::never())
            .compensate(undo);
        saga.pivot("charge").run(async |_: Cx<Deps>, ()| Err(StepError::fail("declined")))
    }
}

async fn undo(cx: CompensationCx<Deps>, (): (), _: Option<()>) -> Result<(), StepError> {
    let child = cx.children.get().unwrap().submit(cx.idempotency_key(), 1).await?;
    let error = child.outcome().await.unwrap_err();
    assert!(matches!(&error, Error::WaitsInStep { step, saga } if step == "reserve" && *saga == child.id()), "{error}");
    Err(error)?
}

#[tokio::test(start_paused = true)]
async fn a_compensation_that_waits_is_told_so_too() {
    let deps = Arc::new(Deps { way: Way::Waits, children: OnceLock::new() });
    let builder = Engine::builder(MemoryStore::default()).register::<Undoing>(deps.clone()).unwrap();
    let engine = builder.register::<Child>(()).unwrap().start().await.unwrap();
    assert!(deps.children.set(engine.sagas::<Child>()).is_ok());
    let outcome = engine.sagas::<Undoing>().submit("k", ()).await.unwrap().outcome().await.unwrap();
    let Outcome::Parked(why) = outcome else { panic!("{outcome:?}") };
    assert!(why.reason.contains("step `reserve` waits for the outcome of saga"), "{why}");
}
