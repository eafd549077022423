//! A saga that is tried again for days costs no more an attempt than a new one, and is the same saga.

mod common;

use common::{Setup, fresh};
use saga_core::{
    Cx, Engine, Out, Outcome, Retry, Saga, SagaBuilder, StepError, WorkerId,
    store::{DefinitionId, Record, Ripe, Room, Store},
};
use saga_postgres::PgStore;
use sqlx::AssertSqlSafe;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::time::sleep;

#[derive(Default)]
struct Provider {
    is_there: AtomicBool,
    attempt: AtomicU32,
}

struct Patient;

impl Saga for Patient {
    const NAME: &'static str = "patient";
    const VERSION: u32 = 1;
    type Input = String;
    type Output = u32;
    type Deps = Provider;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, u32> {
        // `null` is an output like any other.
        let nothing = saga.effect_free("look").run(async |_: Cx<Provider>, _: String| Ok(None::<u32>));
        let often = Retry::fixed(Duration::from_millis(1)).forever();
        saga.pivot("ask").reads(nothing).retry(often).run(ask)
    }
}

async fn ask(provider: Cx<Provider>, name: String, nothing: Option<u32>) -> Result<u32, StepError> {
    assert_eq!((name.as_str(), nothing), ("a name", None));
    provider.attempt.store(provider.attempt(), Ordering::SeqCst);
    match provider.is_there.load(Ordering::SeqCst) {
        true => Ok(provider.attempt()),
        false => Err(StepError::retry("the provider is away")),
    }
}

/// An engine that puts every saga back into the store that has to wait.
async fn engine(store: &PgStore, provider: &Arc<Provider>) -> Engine {
    let builder = Engine::builder(store.clone()).register::<Patient>(provider.clone()).unwrap();
    let builder = builder.configure(|config| {
        config.hold = Duration::ZERO;
        config.poll = Duration::from_millis(1);
    });
    builder.start().await.unwrap()
}

async fn attempts(provider: &Provider, number: u32) {
    while provider.attempt.load(Ordering::SeqCst) < number {
        sleep(Duration::from_millis(5)).await;
    }
}

/// What a worker reads that takes the saga over.
async fn taken_over(store: &PgStore) -> Record {
    let (worker, definition) = (WorkerId::generate(), DefinitionId { name: "patient".into(), version: 1 });
    let definition = std::slice::from_ref(&definition);
    store.join(worker, Duration::from_secs(60), definition).await.unwrap();
    let record = loop {
        if let Some(record) = store.claim(worker, definition, Ripe::Due, Room::of(1)).await.unwrap().pop() {
            break record;
        }
        sleep(Duration::from_millis(5)).await;
    };
    store.disown(worker, &[(record.saga, record.epoch)]).await.unwrap();
    store.leave(worker).await.unwrap();
    record
}

#[tokio::test]
async fn however_often_a_saga_was_tried_little_is_read_to_try_it_again() {
    let Setup { store, schema, .. } = fresh(|_, sql| sql).await;
    let provider = Arc::new(Provider::default());
    let one = engine(&store, &provider).await;
    let saga = one.sagas::<Patient>().submit("k", "a name".into()).await.unwrap().id();
    attempts(&provider, 200).await;
    one.shutdown(Duration::from_secs(60)).await;

    let record = taken_over(&store).await;
    let whole = store.read(saga).await.unwrap().unwrap();
    assert_eq!((record.seq(), whole.snapshot.is_some()), (whole.seq(), false));
    assert!(whole.journal.len() > 200, "{}", whole.journal.len());
    assert!(record.journal.len() <= 64, "{}", record.journal.len());

    // It goes on where it was, and so it does when it reads the journal instead.
    let before = provider.attempt.swap(0, Ordering::SeqCst);
    let two = engine(&store, &provider).await;
    attempts(&provider, before + 100).await;
    two.shutdown(Duration::from_secs(60)).await;
    let newer = format!(
        "UPDATE {schema}.saga_snapshot SET state = convert_to(replace(convert_from(state, 'UTF8'), '\"form\":1', '\"form\":99'), 'UTF8')"
    );
    assert_eq!(sqlx::query(AssertSqlSafe(newer)).execute(store.pool()).await.unwrap().rows_affected(), 1);
    let before = provider.attempt.swap(0, Ordering::SeqCst);
    provider.is_there.store(true, Ordering::SeqCst);
    let three = engine(&store, &provider).await;
    let outcome = three.sagas::<Patient>().get(saga).outcome().await.unwrap();
    assert!(matches!(outcome, Outcome::Completed(attempt) if attempt == before + 1), "{outcome:?}, not {before} + 1");
    let left = format!("SELECT count(*) FROM {schema}.saga_snapshot");
    let left: i64 = sqlx::query_scalar(AssertSqlSafe(left)).fetch_one(store.pool()).await.unwrap();
    assert_eq!(left, 0, "a saga that ended keeps none");
}
