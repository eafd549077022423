//! A saga without participants, for measuring what Postgres and the engine themselves take.

use saga_core::{CompensationCx, Cx, Engine, Out, Retry, Saga, SagaBuilder, StepError};
use saga_postgres::PgStore;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::sleep;

pub(crate) struct Errand;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Says this and is done.
    Say(String),
    /// Asks again and again for what does not come.
    Wait,
}

impl Saga for Errand {
    const NAME: &'static str = "errand";
    const VERSION: u32 = 1;
    type Input = Task;
    type Output = String;
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, String> {
        let again = Retry::fixed(Duration::from_millis(100)).forever();
        saga.compensatable("prepare").retry(again).run(prepare).compensate(tidy_up);
        let said = saga.pivot("say").run(say);
        saga.retriable("go home").run(go_home);
        said
    }
}

async fn prepare(_: Cx<()>, task: Task) -> Result<(), StepError> {
    match task {
        Task::Say(_) => work().await,
        Task::Wait => return Err(StepError::retry("not yet")),
    }
    Ok(())
}

async fn tidy_up(_: CompensationCx<()>, _: Task, _: Option<()>) -> Result<(), StepError> {
    Ok(())
}

async fn say(_: Cx<()>, task: Task) -> Result<String, StepError> {
    work().await;
    match task {
        Task::Say(what) => Ok(what),
        Task::Wait => Err(StepError::fail("nothing to say")),
    }
}

async fn go_home(_: Cx<()>, _: Task) -> Result<(), StepError> {
    work().await;
    Ok(())
}

async fn work() {
    sleep(Duration::from_millis(5)).await;
}

/// An engine that runs errands in this process, in a schema of its own.
pub(crate) async fn engine(url: &str, schema: &str) -> (Engine, PgStore) {
    let store = PgStore::options(url).unwrap().schema(schema).connect().await.unwrap();
    store.migrate().await.unwrap();
    let engine = Engine::builder(store.clone()).register::<Errand>(()).unwrap().configure(|config| {
        // All in one batch.
        config.committers = 1;
    });
    (engine.start().await.unwrap(), store)
}
