//! What the tests of the store share.
#![allow(dead_code, reason = "each test file uses a part of it")]

use saga_core::{
    Cx, Encoded, Engine, Error, Out, Saga, SagaBuilder, SagaId, Started as Handle, StepError, WorkerId,
    store::{Append, DefinitionId, Start, Started, Store, Then},
    trace::TraceContext,
};
use saga_postgres::{InTransaction, PgStore, testing};
use sqlx::{AssertSqlSafe, PgConnection};
use std::time::{Duration, Instant};

pub(crate) struct Setup {
    pub(crate) store: PgStore,
    pub(crate) url: String,
    pub(crate) schema: String,
}

/// A store on a schema of its own, with statements changed by `edit`.
pub(crate) async fn fresh(edit: fn(&str, String) -> String) -> Setup {
    let postgres = testing::shared().await.unwrap();
    let (url, schema) = (postgres.url(), postgres.schema());
    let options = PgStore::options(&url).unwrap().schema(&schema).connections(6).edit_sql(edit);
    let store = options.connect().await.unwrap();
    store.migrate().await.unwrap();
    Setup { store, url, schema }
}

pub(crate) fn definition() -> DefinitionId {
    DefinitionId { name: "order".into(), version: 1 }
}

pub(crate) fn new_start(key: &str, owner: Option<WorkerId>) -> Start {
    let input = Encoded::of(&1).unwrap();
    let (saga, trace) = (SagaId::generate(), TraceContext::default());
    Start { saga, name: "order".into(), version: 1, key: key.into(), input, trace, owner }
}

pub(crate) async fn start(store: &PgStore, key: &str, owner: Option<WorkerId>) -> SagaId {
    let start = new_start(key, owner);
    assert_eq!(store.start(std::slice::from_ref(&start)).await.unwrap(), [Started::New]);
    start.saga
}

pub(crate) fn entry(saga: SagaId, epoch: i64, seq: i32) -> Append {
    let (entry, age) = (Some(b"[]".to_vec()), Duration::ZERO);
    Append { saga, epoch, seq, entry, read: vec![], status: None, then: Then::Keep, age }
}

/// Waits until a query answers with true.
pub(crate) async fn until(store: &PgStore, sql: &str) {
    let began = Instant::now();
    loop {
        let done: Option<bool> =
            sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_optional(store.pool()).await.unwrap();
        if done == Some(true) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "never: {sql}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Where an edited statement waits, for as long as somebody has the lock 4711: a slow machine takes its time.
pub(crate) const WAITS: &str = "(SELECT CASE WHEN set_config('lock_timeout', '0', true) IS NOT NULL THEN pg_advisory_xact_lock_shared(4711)::text END)";

pub(crate) async fn until_somebody_waits_for_an_advisory_lock(connection: &mut PgConnection) {
    let began = Instant::now();
    let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = 4711";
    while sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut *connection).await.unwrap() == 0 {
        assert!(began.elapsed() < Duration::from_secs(120), "nobody came to the lock");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A saga of one step.
pub(crate) struct Order;

impl Saga for Order {
    const NAME: &'static str = "order";
    const VERSION: u32 = 1;
    type Input = i32;
    type Output = i32;
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, i32> {
        saga.effect_free("double").run(double)
    }
}

async fn double(_: Cx<()>, input: i32) -> Result<i32, StepError> {
    Ok(input * 2)
}

/// Starts an order in a transaction, by an engine that runs none.
pub(crate) async fn start_in(store: &PgStore, tx: &mut PgConnection, key: &str) -> Result<Handle<Order>, Error> {
    let engine = Engine::builder(store.clone()).start().await?;
    engine.sagas::<Order>().submit_in(store, tx, key, 1).await
}
