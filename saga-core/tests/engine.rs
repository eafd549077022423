//! The engine on the memory store, in virtual time.

use saga_core::{CompensationCx, Cx, Engine, MemoryStore, Out, Outcome, Retry, Saga, SagaBuilder, StepError};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

/// Does what the test says, and writes down what was called.
#[derive(Default)]
struct World {
    log: Mutex<Vec<String>>,
    script: Mutex<Vec<(&'static str, Script)>>,
}

#[derive(Clone, Copy)]
enum Script {
    Fail,
    Retry,
    Unknown,
    Panic,
    Hang,
}

impl World {
    fn will(self, step: &'static str, script: Script) -> Self {
        self.script.lock().unwrap().push((step, script));
        self
    }

    async fn call(&self, what: &str) -> Result<(), StepError> {
        self.log.lock().unwrap().push(what.to_owned());
        let script = {
            let mut script = self.script.lock().unwrap();
            script.iter().position(|(step, _)| *step == what).map(|i| script.remove(i).1)
        };
        match script {
            None => Ok(()),
            Some(Script::Fail) => Err(StepError::fail("no")),
            Some(Script::Retry) => Err(StepError::retry("busy")),
            Some(Script::Unknown) => Err(StepError::unknown("lost")),
            Some(Script::Panic) => panic!("ouch"),
            Some(Script::Hang) => std::future::pending().await,
        }
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

struct Order;

impl Saga for Order {
    const NAME: &'static str = "order";
    const VERSION: u32 = 1;
    type Input = u32;
    type Output = String;
    type Deps = World;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, String> {
        let (stock, _) = saga.parallel(|saga| {
            (
                saga.compensatable("reserve").timeout(Duration::from_secs(5)).run(reserve).compensate(release),
                saga.compensatable("authorize").retry(Retry::never()).run(authorize).compensate(void),
            )
        });
        let receipt = saga.pivot("capture").reads(stock).run(capture);
        saga.retriable("deliver").reads((stock, receipt)).run(deliver);
        receipt
    }
}

async fn reserve(world: Cx<World>, quantity: u32) -> Result<u32, StepError> {
    world.call("reserve").await?;
    Ok(quantity * 2)
}
async fn release(world: CompensationCx<World>, _: u32, _: Option<u32>) -> Result<(), StepError> {
    world.call("release").await
}
async fn authorize(world: Cx<World>, _: u32) -> Result<(), StepError> {
    world.call("authorize").await
}
async fn void(world: CompensationCx<World>, _: u32, known: Option<()>) -> Result<(), StepError> {
    world.call(if known.is_some() { "void" } else { "void in doubt" }).await
}
async fn capture(world: Cx<World>, _: u32, stock: u32) -> Result<String, StepError> {
    world.call("capture").await?;
    Ok(format!("paid for {stock}"))
}
async fn deliver(world: Cx<World>, _: u32, stock: u32, receipt: String) -> Result<(), StepError> {
    assert_eq!(receipt, format!("paid for {stock}"));
    world.call("deliver").await
}

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
    println!("{}", second.sagas::<Order>().get(saga).history().await.unwrap());
}
