//! Releases side by side: a schema of the last release is migrated under its traffic, and what that release says goes
//! on to work.
//!
//! `release_0_1/` has a schema as release 0.1 left it, and every statement that it sends.
#![cfg(all(feature = "testing", unix))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker;
mod common;

use broker::Broker;
use futures::future::{join_all, try_join_all};
use saga_core::{
    CompensationCx, Cx, Engine, Out, Outcome, Retry, Saga, SagaBuilder, StepError, WorkerId,
    store::{DefinitionId, Ripe, Room, Store},
};
use saga_postgres::{PgOutbox, PgStore, SetupError, testing};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Row, SqlStr, postgres::PgPoolOptions};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(60);

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/release_0_1")
}

/// The saga that release 0.1 ran.
struct Delivery;

#[derive(Serialize, Deserialize)]
struct Parcel {
    to: String,
    weight: f64,
}

impl Saga for Delivery {
    const NAME: &'static str = "delivery";
    const VERSION: u32 = 1;
    type Input = Parcel;
    type Output = String;
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, String> {
        let reserved = saga.compensatable("reserve").run(reserve).compensate(release);
        let retry = Retry::fixed(Duration::from_secs(600));
        let captured = saga.pivot("capture").reads(reserved).retry(retry).run(capture);
        let retry = Retry::fixed(Duration::from_millis(100)).attempts(2);
        saga.retriable("deliver").reads(captured).retry(retry).run(deliver)
    }
}

async fn reserve(_: Cx<()>, _: Parcel) -> Result<u32, StepError> {
    Ok(8)
}

async fn release(_: CompensationCx<()>, _: Parcel, reserved: Option<u32>) -> Result<(), StepError> {
    // What that release recorded, or what it could not know.
    assert!(matches!(reserved, Some(7) | None));
    Ok(())
}

async fn capture(_: Cx<()>, parcel: Parcel, reserved: u32) -> Result<String, StepError> {
    assert!((parcel.weight - 0.3).abs() < 1e-9);
    Ok(format!("{} {reserved}", parcel.to))
}

async fn deliver(_: Cx<()>, _: Parcel, captured: String) -> Result<String, StepError> {
    Ok(format!("delivered {captured}"))
}

/// What release 0.1 left.
struct Old {
    url: String,
    schema: String,
    pool: PgPool,
}

impl Old {
    async fn release() -> Self {
        let postgres = testing::shared().await.unwrap();
        let (url, schema) = (postgres.url(), postgres.schema());
        let sql = fs::read_to_string(fixtures().join("schema.sql")).unwrap().replace("{schema}", &schema);
        let mut connection = PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        let own = [
            ("lock_timeout", "100"),
            ("statement_timeout", "30000"),
            ("plan_cache_mode", "force_generic_plan"),
            ("enable_seqscan", "off"),
        ];
        let options = url.parse::<sqlx::postgres::PgConnectOptions>().unwrap().options(own);
        let pool = PgPoolOptions::new().max_connections(4).connect_with(options).await.unwrap();
        Self { url, schema, pool }
    }

    async fn store(&self) -> PgStore {
        PgStore::options(&self.url).unwrap().schema(&self.schema).connect().await.unwrap()
    }

    /// A statement of that release.
    fn sql(&self, name: &str) -> SqlStr {
        let sql = fs::read_to_string(fixtures().join(format!("statements/{name}.sql"))).unwrap();
        sqlx::SqlSafeStr::into_sql_str(AssertSqlSafe(sql.replace("{schema}", &self.schema)))
    }

    async fn number(&self, sql: &str) -> i64 {
        let sql = sql.replace("{schema}", &self.schema);
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap()
    }

    /// All indexes are there, and can be used.
    async fn has_its_indexes(&self) {
        let count = "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
            WHERE c.relnamespace = '{schema}'::regnamespace AND c.relname IN ('saga_lost_with', 'saga_due_since', 'saga_unfinished', 'saga_mailbox_for', 'saga_inbox_received_at')";
        assert_eq!(self.number(&format!("{count} AND i.indisvalid AND i.indisready")).await, 5);
        assert_eq!(self.number(count).await, 5);
        // What was built before its release, what has a successor, and what is left of broken builds.
        let others = "SELECT count(*) FROM pg_class WHERE relnamespace = '{schema}'::regnamespace AND (relname IN ('saga_due_from', 'saga_inbox_received') OR relname LIKE '%_broken_%')";
        assert_eq!(self.number(others).await, 0);
        assert_eq!(self.number("SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE c.relnamespace = '{schema}'::regnamespace AND NOT i.indisvalid").await, 0);
    }
}

/// What a worker of that release does, again and again: it starts a saga, claims what is due, and ends it.
struct OldWorker<'o> {
    old: &'o Old,
    id: Uuid,
}

impl<'o> OldWorker<'o> {
    async fn join(old: &'o Old) -> Self {
        let id = Uuid::now_v7();
        let join =
            sqlx::query(old.sql("join")).bind(id).bind(60_000_i64).bind(["traffic"].as_slice()).bind([1].as_slice());
        join.execute(&old.pool).await.unwrap();
        Self { old, id }
    }

    async fn beat(&self) -> bool {
        let beat = sqlx::query(self.old.sql("beat")).bind(self.id).bind(60_000_i64);
        beat.fetch_optional(&self.old.pool).await.unwrap().is_some()
    }

    async fn start(&self, owner: Option<Uuid>) -> Uuid {
        let saga = Uuid::now_v7();
        let no_text: &[Option<&str>] = &[None];
        let started = again(async || {
            let start = sqlx::query(self.old.sql("start")).bind(vec![saga]).bind(vec!["traffic"]).bind(vec![1]);
            let start = start.bind(vec![saga.to_string()]).bind(vec![b"1".as_slice()]).bind(vec![owner]);
            start.bind(no_text).bind(no_text).bind(no_text).fetch_all(&self.old.pool).await
        });
        assert_eq!(started.await.len(), 1);
        saga
    }

    async fn claim(&self) -> Vec<(Uuid, i64)> {
        let rows = again(async || {
            let claim = sqlx::query(self.old.sql("claim_due")).bind(self.id).bind(["traffic"].as_slice());
            claim.bind([1].as_slice()).bind(10_i64).fetch_all(&self.old.pool).await
        });
        rows.await.iter().map(|row| (row.get("id"), row.get("epoch"))).collect()
    }

    /// Whether it was written.
    async fn end(&self, saga: Uuid, epoch: i64) -> bool {
        let rows = again(async || {
            let none: (&[Uuid], &[&str]) = (&[], &[]);
            let append =
                sqlx::query(self.old.sql("append")).bind(self.id).bind(vec![saga]).bind(vec![epoch]).bind(vec![1]);
            let append = append.bind(vec![b"[]".as_slice()]).bind(vec![3_i16]).bind(vec![true]).bind(vec![None::<i64>]);
            let rows = append.bind(none.0).bind(none.1).fetch_all(&self.old.pool).await?;
            // Busy: it is tried again.
            if rows.is_empty() { Err(sqlx::Error::RowNotFound) } else { Ok(rows) }
        });
        rows.await[0].get("mine")
    }
}

/// As that release does when a lock is held.
async fn again<T>(statement: impl AsyncFn() -> Result<T, sqlx::Error>) -> T {
    let began = Instant::now();
    loop {
        let error = match statement().await {
            Ok(done) => return done,
            Err(error) => error,
        };
        let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
        assert!(matches!(error, sqlx::Error::RowNotFound) || matches!(code.as_str(), "55P03" | "40P01"), "{error}");
        assert!(began.elapsed() < PATIENCE, "{error}");
        sleep(AGAIN).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_of_release_0_1_is_migrated_under_its_traffic_and_its_sagas_go_on() {
    let old = Old::release().await;
    let store = old.store().await;
    let (over, ended) = (AtomicBool::new(false), AtomicUsize::new(0));
    let traffic = async || {
        let worker = OldWorker::join(&old).await;
        while !over.load(Ordering::SeqCst) {
            worker.start(None).await;
            for (saga, epoch) in worker.claim().await {
                assert!(worker.end(saga, epoch).await);
                ended.fetch_add(1, Ordering::SeqCst);
            }
            assert!(worker.beat().await);
        }
        while let claimed @ [_, ..] = worker.claim().await.as_slice() {
            for (saga, epoch) in claimed {
                assert!(worker.end(*saga, *epoch).await);
            }
        }
    };
    let some_more = async || {
        let so_far = ended.load(Ordering::SeqCst);
        while ended.load(Ordering::SeqCst) < so_far + 20 {
            sleep(AGAIN).await;
        }
    };
    let migration = async {
        some_more().await;
        store.migrate().await.unwrap();
        some_more().await;
        over.store(true, Ordering::SeqCst);
    };
    tokio::join!(traffic(), traffic(), migration);
    old.has_its_indexes().await;
    assert_eq!(old.number("SELECT count(*) FROM {schema}.saga WHERE name = 'traffic' AND status <> 3").await, 0);

    let builder = Engine::builder(store.clone()).register::<Delivery>(()).unwrap();
    let engine = builder.configure(|config| config.lease = Duration::from_secs(1)).start().await.unwrap();
    let sagas = engine.sagas::<Delivery>();
    let mut ends = BTreeMap::new();
    for key in [
        "completed",
        "refused",
        "parked",
        "retried",
        "undone",
        "reserving",
        "capturing",
        "delivering",
        "cancelled",
        "never begun",
        "killed three times",
    ] {
        let saga = sagas.find(key).await.unwrap().unwrap();
        ends.insert(
            key,
            timeout(PATIENCE, saga.outcome()).await.unwrap_or_else(|_| panic!("{key} never ends")).unwrap(),
        );
    }
    let completed = |text: &str| Outcome::Completed(format!("delivered {text}"));
    for (key, text) in [
        ("completed", "completed 7"),
        ("retried", "retried 7"),
        ("reserving", "reserving 8"),
        ("capturing", "capturing 7"),
        ("delivering", "delivering 7"),
        ("never begun", "never begun 8"),
    ] {
        assert_eq!(ends[key], completed(text), "{key}");
    }
    for key in ["refused", "undone", "cancelled"] {
        assert!(matches!(ends[key], Outcome::RolledBack(_)), "{key}: {:?}", ends[key]);
    }
    // Three workers of that release died with it.
    for key in ["parked", "killed three times"] {
        assert!(matches!(ends[key], Outcome::Parked(_)), "{key}: {:?}", ends[key]);
    }
    // An operator's word moves on what that release parked.
    let parked = sagas.find("parked").await.unwrap().unwrap();
    sagas.resume(parked.id(), "eve").await.unwrap();
    let began = Instant::now();
    while parked.outcome().await.unwrap() != completed("parked 7") {
        assert!(began.elapsed() < PATIENCE);
        sleep(AGAIN).await;
    }
    engine.shutdown(Duration::from_secs(1)).await;

    let pool = PgPool::connect(&old.url).await.unwrap();
    let outbox = PgOutbox::options(pool, "tests").schema(&old.schema).build().unwrap();
    let broker = Broker::new();
    let relay = outbox.relay(broker.clone()).start().await.unwrap();
    let began = Instant::now();
    while old.number("SELECT count(*) FROM {schema}.saga_outbox").await > 0 {
        assert!(began.elapsed() < PATIENCE);
        sleep(AGAIN).await;
    }
    relay.stop().await;
    assert!(broker.calls() > 0);
}

#[tokio::test]
async fn every_statement_of_release_0_1_is_planned_on_this_schema() {
    let old = Old::release().await;
    old.store().await.migrate().await.unwrap();
    let mut connection = PgConnection::connect(&old.url).await.unwrap();
    let mut count = 0;
    for file in fs::read_dir(fixtures().join("statements")).unwrap() {
        let name = file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned();
        let prepared = connection.prepare(old.sql(&name)).await;
        assert!(prepared.is_ok(), "{name}: {:?}", prepared.err());
        count += 1;
    }
    assert!(count > 40, "{count}");
}

/// What `migrate` of release 0.1 does on a schema that it finds.
async fn migrates_with_0_1(old: &Old) -> bool {
    let Old { schema, .. } = old;
    let prepare = format!(
        "CREATE SCHEMA IF NOT EXISTS {schema}; CREATE TABLE IF NOT EXISTS {schema}.saga_migration \
         (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now());"
    );
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&old.pool).await.unwrap();
    old.number("SELECT coalesce(max(version), 0)::bigint FROM {schema}.saga_migration").await == 8
}

#[tokio::test]
async fn release_0_1_starts_on_a_schema_of_this_one() {
    let old = Old::release().await;
    assert!(migrates_with_0_1(&old).await);
    old.store().await.migrate().await.unwrap();
    assert!(migrates_with_0_1(&old).await);
}

#[tokio::test]
async fn a_release_that_is_needed_and_not_known_here_is_named() {
    let old = Old::release().await;
    let store = old.store().await;
    store.migrate().await.unwrap();
    let newer = "WITH newer AS (INSERT INTO {schema}.saga_addition (version) VALUES (990) RETURNING 1) SELECT count(*) FROM newer";
    old.number(newer).await;
    store.migrate().await.unwrap();
    store.ready().await.unwrap();
    old.number(&newer.replace("saga_addition", "saga_migration")).await;
    let refused = store.migrate().await.unwrap_err();
    assert!(matches!(refused, SetupError::TooNew { found: 990, .. }), "{refused}");
    assert!(store.ready().await.unwrap_err().to_string().contains("upgrade the library"));
}

fn traffic() -> [DefinitionId; 1] {
    [DefinitionId { name: "traffic".into(), version: 1 }]
}

#[tokio::test]
async fn a_worker_of_release_0_1_that_dies_is_followed_by_one_of_this() {
    let old = Old::release().await;
    let store = old.store().await;
    store.migrate().await.unwrap();
    let worker = OldWorker::join(&old).await;
    let saga = worker.start(Some(worker.id)).await;
    for _ in 0..3 {
        store.sweep(100).await.unwrap();
    }
    assert!(worker.beat().await, "it lives");
    // It falls silent, and its lease is over.
    old.number("WITH late AS (UPDATE {schema}.saga_worker SET expires_at = now() - interval '1 second' RETURNING 1) SELECT count(*) FROM late").await;
    let heir = WorkerId::generate();
    store.join(heir, LONG, &traffic()).await.unwrap();
    let began = Instant::now();
    let record = loop {
        store.sweep(100).await.unwrap();
        if let Some(record) = store.claim(heir, &traffic(), Ripe::Due, Room::of(10)).await.unwrap().pop() {
            break record;
        }
        assert!(began.elapsed() < PATIENCE, "it is never found dead");
        sleep(AGAIN).await;
    };
    assert_eq!((record.saga.as_uuid(), record.lapses, record.survived), (saga, 1, vec![]));
    // What it sends after that does not count.
    assert!(!worker.end(saga, 1).await);
}

#[tokio::test]
async fn lapses_that_both_releases_counted_are_told_apart() {
    let old = Old::release().await;
    let store = old.store().await;
    store.migrate().await.unwrap();
    let traveller = OldWorker::join(&old).await;
    let saga = traveller.start(None).await;
    let by_0_1 = async |owner: WorkerId| {
        let sweep = sqlx::query(old.sql("sweep")).bind(vec![owner.as_uuid()]).bind(10_i64);
        assert_eq!(sweep.fetch_all(&old.pool).await.unwrap().len(), 1);
    };
    let claimed_by = async || {
        let worker = WorkerId::generate();
        store.join(worker, LONG, &traffic()).await.unwrap();
        let mut claimed = store.claim(worker, &traffic(), Ripe::Due, Room::of(10)).await.unwrap();
        assert_eq!(claimed.iter().map(|record| record.saga.as_uuid()).collect::<Vec<_>>(), [saga]);
        (worker, claimed.remove(0))
    };
    // Lost to this release, to the other one, and to this one again.
    let (first, _) = claimed_by().await;
    store.leave(first).await.unwrap();
    store.sweep(10).await.unwrap();
    let (second, _) = claimed_by().await;
    store.leave(second).await.unwrap();
    by_0_1(second).await;
    let (third, record) = claimed_by().await;
    assert_eq!((record.lapses, record.survived), (2, vec![]));
    store.leave(third).await.unwrap();
    store.sweep(10).await.unwrap();
    // The first one comes back, and the third; of the second one nobody knows.
    store.returned(first).await.unwrap();
    store.returned(second).await.unwrap();
    store.returned(third).await.unwrap();
    let (_, record) = claimed_by().await;
    assert_eq!((record.lapses, record.survived), (3, vec![1, 3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_waits_for_an_open_transaction_and_holds_up_nobody() {
    let old = Old::release().await;
    let store = old.store().await;
    let mut somebody = PgConnection::connect(&old.url).await.unwrap();
    let mut tx = somebody.begin().await.unwrap();
    let write = format!("UPDATE {}.saga SET changed_at = now() WHERE key = 'completed'", old.schema);
    sqlx::query(AssertSqlSafe(write)).execute(&mut *tx).await.unwrap();
    let migrating = tokio::spawn(async move { store.migrate().await });
    let worker = OldWorker::join(&old).await;
    let waits = "SELECT count(*) FROM pg_locks WHERE relation = '{schema}.saga'::regclass AND NOT granted";
    let began = Instant::now();
    while old.number(waits).await == 0 {
        assert!(began.elapsed() < PATIENCE, "it does not wait");
        sleep(Duration::from_millis(5)).await;
    }
    // All the time there are others, who come to their ends.
    for _ in 0..20 {
        worker.start(None).await;
        for (saga, epoch) in worker.claim().await {
            assert!(worker.end(saga, epoch).await);
        }
    }
    assert!(!migrating.is_finished());
    tx.commit().await.unwrap();
    migrating.await.unwrap().unwrap();
    old.has_its_indexes().await;
}

/// Their transactions overlap: there is no moment in which nobody uses the table.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_comes_to_its_end_while_handlers_are_at_work_all_the_time() {
    let old = Old::release().await;
    let store = old.store().await;
    let over = AtomicBool::new(false);
    let begin = format!(
        "BEGIN; INSERT INTO {}.saga_inbox (saga_id, step, generation, outcome) VALUES (gen_random_uuid(), 'step', 0, 0)",
        old.schema
    );
    let mut one = PgConnection::connect(&old.url).await.unwrap();
    let mut other = PgConnection::connect(&old.url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(begin.clone())).execute(&mut one).await.unwrap();
    let handlers = async {
        while !over.load(Ordering::SeqCst) {
            sqlx::raw_sql(AssertSqlSafe(begin.clone())).execute(&mut other).await.unwrap();
            sqlx::raw_sql("COMMIT").execute(&mut one).await.unwrap();
            std::mem::swap(&mut one, &mut other);
        }
    };
    let migration = async {
        timeout(PATIENCE, store.migrate()).await.expect("it never ends").unwrap();
        over.store(true, Ordering::SeqCst);
    };
    tokio::join!(handlers, migration);
    old.has_its_indexes().await;
}

/// A process that drops an index dies while it waits for those who use the table.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_was_dropped_by_half_is_dropped_by_the_next_migration() {
    let old = Old::release().await;
    let mut somebody = PgConnection::connect(&old.url).await.unwrap();
    let mut tx = somebody.begin().await.unwrap();
    let read = format!("SELECT FROM {}.saga_inbox", old.schema);
    sqlx::query(AssertSqlSafe(read)).execute(&mut *tx).await.unwrap();
    let mut dies = PgConnection::connect(&old.url).await.unwrap();
    sqlx::raw_sql("SET statement_timeout = 300").execute(&mut dies).await.unwrap();
    let drop = format!("DROP INDEX CONCURRENTLY {}.saga_inbox_received", old.schema);
    sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut dies).await.unwrap_err();
    let half =
        "SELECT count(*) FROM pg_index WHERE indexrelid = '{schema}.saga_inbox_received'::regclass AND NOT indisvalid";
    assert_eq!(old.number(half).await, 1);
    tx.rollback().await.unwrap();
    old.store().await.migrate().await.unwrap();
    old.has_its_indexes().await;
}

async fn eight_at_once(url: &str, schema: &str) {
    let stores = try_join_all((0..8).map(|_| PgStore::options(url).unwrap().schema(schema).connections(2).connect()));
    let stores = stores.await.unwrap();
    for migrated in join_all(stores.iter().map(PgStore::migrate)).await {
        migrated.unwrap();
    }
    for store in &stores {
        store.ready().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_processes_migrate_an_empty_database_at_once() {
    let postgres = testing::shared().await.unwrap();
    for _ in 0..5 {
        let (url, schema) = (postgres.url(), postgres.schema());
        eight_at_once(&url, &schema).await;
        let pool = PgPool::connect(&url).await.unwrap();
        Old { url, schema, pool }.has_its_indexes().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_processes_migrate_a_schema_of_release_0_1_at_once() {
    for _ in 0..3 {
        let old = Old::release().await;
        eight_at_once(&old.url, &old.schema).await;
        old.has_its_indexes().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_whose_building_was_broken_off_is_built_anew() {
    let old = Old::release().await;
    let store = old.store().await;
    // A snapshot that is older than the index has to go before it can be used.
    let mut reader = PgConnection::connect(&old.url).await.unwrap();
    let building = format!(
        "SELECT pid FROM pg_stat_progress_create_index WHERE relid = '{}.saga'::regclass AND phase LIKE 'waiting for%'",
        old.schema
    );
    for _ in 0..2 {
        let migrating = tokio::spawn({
            let store = store.clone();
            async move { store.migrate().await }
        });
        let mut tx = reader.begin().await.unwrap();
        sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class")
            .execute(&mut *tx)
            .await
            .unwrap();
        let began = Instant::now();
        let ended = loop {
            let pid: Option<i32> =
                sqlx::query_scalar(AssertSqlSafe(building.clone())).fetch_optional(&old.pool).await.unwrap();
            match pid {
                Some(pid) => {
                    // The one of the round before may still be there: until this one has ended.
                    sqlx::query("SELECT pg_terminate_backend($1)").bind(pid).execute(&old.pool).await.unwrap();
                }
                // Or it was quicker than the reader.
                None if migrating.is_finished() => break migrating.await.unwrap(),
                None => assert!(began.elapsed() < PATIENCE, "it builds nothing"),
            }
            sleep(Duration::from_millis(2)).await;
        };
        if let Err(error) = ended {
            assert!(matches!(error, SetupError::Migration { .. }), "{error}");
        }
        tx.rollback().await.unwrap();
    }
    store.migrate().await.unwrap();
    old.has_its_indexes().await;
}

/// A role that cannot see what others do, and a builder that lets its lock go before it has committed.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_another_role_is_building_is_waited_for() {
    let postgres = testing::Postgres::private().await.unwrap();
    let mut admin = PgConnection::connect(&postgres.url()).await.unwrap();
    for sql in ["CREATE ROLE app LOGIN", "CREATE DATABASE app OWNER app"] {
        sqlx::raw_sql(sql).execute(&mut admin).await.unwrap();
    }
    let store = PgStore::connect(&format!("postgres://app@127.0.0.1:{}/app", postgres.port())).await.unwrap();
    store.migrate().await.unwrap();
    let url = postgres.url();
    let url = format!("{}/app", url.rsplit_once('/').unwrap().0);
    let (mut admin, mut reader) =
        (PgConnection::connect(&url).await.unwrap(), PgConnection::connect(&url).await.unwrap());
    let sql = PgStore::migrations("saga");
    let build = sql.split(';').find(|sql| sql.contains("CREATE INDEX saga_outbox_parked_topic")).unwrap();
    let build = build.rsplit_once("CREATE INDEX").unwrap().1;
    let mine = " mine ON saga.saga_outbox_parked (created_at)";
    // The index itself, and another one on its table: who waited for that with a snapshot would end its building.
    for build in [build, build, build, mine] {
        let unbuilt = "DELETE FROM saga.saga_addition WHERE version = 12; DROP INDEX saga.saga_outbox_parked_topic";
        sqlx::raw_sql(unbuilt).execute(&mut admin).await.unwrap();
        let mut tx = reader.begin().await.unwrap();
        let snapshot = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class";
        sqlx::raw_sql(snapshot).execute(&mut *tx).await.unwrap();
        let build = format!("CREATE INDEX CONCURRENTLY {build}");
        let mut builder = PgConnection::connect(&url).await.unwrap();
        let building = tokio::spawn(async move { sqlx::raw_sql(AssertSqlSafe(build)).execute(&mut builder).await });
        let until = async |admin: &mut PgConnection, sql: &str| {
            let began = Instant::now();
            while !sqlx::query_scalar::<_, bool>(AssertSqlSafe(sql.to_owned())).fetch_one(&mut *admin).await.unwrap() {
                assert!(began.elapsed() < PATIENCE, "{sql}");
                sleep(Duration::from_millis(2)).await;
            }
        };
        let built =
            "SELECT EXISTS (SELECT FROM pg_stat_progress_create_index WHERE phase = 'waiting for old snapshots')";
        until(&mut admin, built).await;
        let migrating = tokio::spawn({
            let store = store.clone();
            async move { store.migrate().await.unwrap() }
        });
        let waits =
            "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'saga.saga_outbox_parked'::regclass AND NOT granted)";
        until(&mut admin, waits).await;
        let index = "SELECT indexrelid::bigint, indisvalid FROM pg_index WHERE indexrelid = to_regclass('saga.saga_outbox_parked_topic')";
        let found: Option<(i64, bool)> = sqlx::query_as(index).fetch_optional(&mut admin).await.unwrap();
        assert!(found.is_none_or(|(_, valid)| !valid));
        tx.rollback().await.unwrap();
        building.await.unwrap().unwrap();
        migrating.await.unwrap();
        store.ready().await.unwrap();
        let built: (i64, bool) = sqlx::query_as(index).fetch_one(&mut admin).await.unwrap();
        assert_eq!(built, (found.map_or(built.0, |(oid, _)| oid), true));
    }
}

#[tokio::test]
async fn a_name_that_something_else_has_is_an_error() {
    let old = Old::release().await;
    let view = format!("CREATE VIEW {}.saga_due_since AS SELECT 1", old.schema);
    sqlx::raw_sql(AssertSqlSafe(view)).execute(&old.pool).await.unwrap();
    let error = old.store().await.migrate().await.unwrap_err().to_string();
    assert!(error.starts_with("migration 11 of schema") && error.contains("already exists (42P07)"), "{error}");
}

#[tokio::test]
async fn what_is_printed_is_what_migrate_does() {
    let postgres = testing::shared().await.unwrap();
    let (url, schema) = (postgres.url(), postgres.schema());
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(PgStore::migrations(&schema))).execute(&mut connection).await.unwrap();
    let store = PgStore::options(&url).unwrap().schema(&schema).connect().await.unwrap();
    store.ready().await.unwrap();
    let migrated = common::fresh(|_, sql| sql).await;
    let shape = async |schema: &str| {
        let columns = "SELECT string_agg(table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable || ' ' || coalesce(column_default, ''), E'\\n' ORDER BY table_name, column_name)
            FROM information_schema.columns WHERE table_schema = $1";
        let indexes = "SELECT string_agg(indexdef, E'\\n' ORDER BY indexname) FROM pg_indexes WHERE schemaname = $1";
        let mut shape = String::new();
        for sql in [columns, indexes] {
            shape += &sqlx::query_scalar::<_, String>(sql).bind(schema).fetch_one(store.pool()).await.unwrap();
        }
        shape.replace(schema, "it")
    };
    assert_eq!(shape(&schema).await, shape(&migrated.schema).await);
    let upgraded = Old::release().await;
    upgraded.store().await.migrate().await.unwrap();
    assert_eq!(shape(&schema).await, shape(&upgraded.schema).await);
}
