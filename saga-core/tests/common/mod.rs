//! A saga whose world does what the test says.
#![allow(dead_code, reason = "each test file uses a part of it")]

use saga_core::{CompensationCx, Cx, Engine, EngineBuilder, MemoryStore, Out, Retry, Saga, SagaBuilder, StepError};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::Semaphore;

/// Does what the test says, and writes down what was called.
#[derive(Default)]
pub(crate) struct World {
    log: Mutex<Vec<String>>,
    script: Mutex<Vec<(&'static str, Script)>>,
    /// Opened for those that wait.
    pub(crate) gate: Gate,
}

/// Closed until it is opened.
pub(crate) struct Gate(Semaphore);

impl Default for Gate {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl Gate {
    pub(crate) fn open(&self) {
        self.0.add_permits(1000);
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Script {
    Fail,
    Retry,
    Unknown,
    Panic,
    Hang,
    /// Waits for the gate, then succeeds.
    Wait,
}

impl World {
    pub(crate) fn will(self, step: &'static str, script: Script) -> Self {
        self.script.lock().unwrap().push((step, script));
        self
    }

    pub(crate) async fn call(&self, what: &str) -> Result<(), StepError> {
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
            Some(Script::Wait) => {
                self.gate.0.acquire().await.unwrap().forget();
                Ok(())
            }
        }
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

pub(crate) struct Order;

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

/// Waits until something is so.
pub(crate) async fn until(what: &str, so: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

/// An engine to put together, on this store and in this world.
pub(crate) fn engine(store: &MemoryStore, world: &Arc<World>) -> EngineBuilder {
    Engine::builder(store.clone()).register::<Order>(world.clone()).unwrap()
}
