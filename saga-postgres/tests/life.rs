//! Who is alive, who is dead, and who is blamed for what: a worker that could not speak is no worker that died.
#![cfg(all(feature = "testing", unix))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod wire;

use chrono::{DateTime, Utc};
use common::{Setup, WAITS, definition, fresh, start};
use saga_core::{
    Cx, Engine, Out, Outcome, Saga, SagaBuilder, StepError, WorkerId,
    machine::Status,
    store::{Append, Mail, Record, Ripe, Room, Start, Store, Then},
};
use saga_postgres::{PgStore, testing};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use wire::Wire;

/// Of the engines. Short, so that a test takes seconds.
const LEASE: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);
/// Whatever is to happen happens within this time, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(20);

/// One step that takes until it is let go.
struct Slow;

struct Gate {
    calls: AtomicU32,
    open: watch::Sender<bool>,
}

impl Gate {
    fn new() -> Arc<Self> {
        Arc::new(Self { calls: AtomicU32::new(0), open: watch::Sender::new(false) })
    }

    fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Saga for Slow {
    const NAME: &'static str = "slow";
    const VERSION: u32 = 1;
    type Input = u32;
    type Output = u32;
    type Deps = Gate;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, u32> {
        saga.pivot("ask_the_bank").run(ask)
    }
}

async fn ask(cx: Cx<Gate>, input: u32) -> Result<u32, StepError> {
    cx.calls.fetch_add(1, Ordering::SeqCst);
    let _ = cx.open.subscribe().wait_for(|open| *open).await;
    Ok(input)
}

async fn engine(store: &PgStore, gate: &Arc<Gate>) -> Engine {
    let builder = Engine::builder(store.clone()).register::<Slow>(gate.clone()).unwrap();
    builder.configure(|config| config.lease = LEASE).start().await.unwrap()
}

/// A store in a schema that is there, over a wire.
async fn over_a_wire(schema: &str) -> (PgStore, Wire) {
    let postgres = testing::shared().await.unwrap();
    let wire = Wire::to(postgres.port()).await;
    let options = PgStore::options(&wire.url(&postgres.url(), postgres.port())).unwrap().schema(schema);
    (options.patience(Duration::from_secs(2)).connect().await.unwrap(), wire)
}

async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        sleep(AGAIN).await;
    }
}

/// Waits until a query answers with true.
async fn until(store: &PgStore, sql: String) {
    eventually(&sql, async || {
        let answer: Option<bool> =
            sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_one(store.pool()).await.unwrap();
        answer == Some(true)
    })
    .await;
}

async fn run(store: &PgStore, sql: String) {
    sqlx::query(AssertSqlSafe(sql)).execute(store.pool()).await.unwrap();
}

async fn number(store: &PgStore, sql: String) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(store.pool()).await.unwrap()
}

/// How many lapses were counted, and how many of them were survived.
fn lapses(record: &Record) -> (u32, usize) {
    (record.lapses, record.survived.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn outages_longer_than_a_lease_blame_nobody() {
    let Setup { store: watching, schema, .. } = fresh(|_, sql| sql).await;
    let (store, wire) = over_a_wire(&schema).await;
    let gate = Gate::new();
    let engine = engine(&store, &gate).await;
    let mut sagas = vec![];
    for n in 0..20 {
        sagas.push(engine.sagas::<Slow>().submit(n.to_string(), n).await.unwrap());
    }
    eventually("all begin", async || gate.calls() >= 20).await;
    for outage in 1..=4 {
        wire.down();
        until(&watching, format!("SELECT bool_and(expires_at < now()) FROM {schema}.saga_worker")).await;
        let before = gate.calls();
        wire.restore();
        // All at once: none is a suspect, which would run alone.
        eventually("all go on", async || gate.calls() >= before + 20).await;
        assert!(before >= 20 * outage);
    }
    gate.open.send_replace(true);
    for (n, saga) in (0..).zip(&sagas) {
        assert_eq!(timeout(PATIENCE, saga.outcome()).await.unwrap().unwrap(), Outcome::Completed(n));
        let record = watching.read(saga.id()).await.unwrap().unwrap();
        // On a slow machine there may have been more.
        let (counted, survived) = lapses(&record);
        assert!(counted >= 4 && counted as usize == survived, "{counted} lapses, {survived} of them survived");
    }
    engine.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lapse_of_a_silent_worker_does_not_count_once_it_comes_back() {
    let Setup { store: other, schema, .. } = fresh(|_, sql| sql).await;
    let (store, wire) = over_a_wire(&schema).await;
    let gate = Gate::new();
    let silent = engine(&store, &gate).await;
    let saga = silent.sagas::<Slow>().submit("k", 7).await.unwrap();
    eventually("it begins", async || gate.calls() >= 1).await;
    let former = number(&other, format!("SELECT count(*) FROM {schema}.saga_worker")).await;
    assert_eq!(former, 1);
    wire.silence();
    let heir = engine(&other, &gate).await;
    eventually("the other one takes over", async || gate.calls() >= 2).await;
    let (counted, survived) = lapses(&other.read(saga.id()).await.unwrap().unwrap());
    assert!(counted as usize > survived);
    wire.restore();
    eventually("it comes back", async || {
        let (counted, survived) = lapses(&other.read(saga.id()).await.unwrap().unwrap());
        counted as usize == survived
    })
    .await;
    gate.open.send_replace(true);
    assert_eq!(timeout(PATIENCE, saga.outcome()).await.unwrap().unwrap(), Outcome::Completed(7));
    silent.kill().await;
    heir.kill().await;
}

/// A saga kills three processes, one after the other.
async fn it_is_parked_after_three_deaths(store: &PgStore) {
    let gate = Gate::new();
    let client = Engine::builder(store.clone()).start().await.unwrap();
    let saga = client.sagas::<Slow>().submit("poison", 1).await.unwrap();
    for death in 1..=3 {
        let victim = engine(store, &gate).await;
        eventually("it begins", async || gate.calls() >= death).await;
        victim.kill().await;
    }
    let last = engine(store, &gate).await;
    let outcome = timeout(PATIENCE, saga.outcome()).await.expect("it is never parked").unwrap();
    assert!(matches!(outcome, Outcome::Parked { .. }), "{outcome:?}");
    let (counted, survived) = lapses(&store.read(saga.id()).await.unwrap().unwrap());
    assert_eq!(counted as usize - survived, 3);
    last.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_that_three_workers_died_with_is_parked() {
    let Setup { store, .. } = fresh(|_, sql| sql).await;
    it_is_parked_after_three_deaths(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_that_three_workers_died_with_is_parked_beside_a_silent_one() {
    let Setup { store, schema, .. } = fresh(|_, sql| sql).await;
    let (other, wire) = over_a_wire(&schema).await;
    let silent = engine(&other, &Gate::new()).await;
    wire.silence();
    it_is_parked_after_three_deaths(&store).await;
    drop(silent);
}

#[tokio::test]
async fn a_worker_whose_lease_ends_in_a_future_that_does_not_come_is_found_dead() {
    let Setup { store, schema, .. } = fresh(|_, sql| sql).await;
    let dead = WorkerId::generate();
    store.join(dead, Duration::from_millis(400), &[definition()]).await.unwrap();
    let saga = start(&store, "k", Some(dead)).await;
    // It beat at a server whose clock was an hour ahead of this one's.
    run(&store, format!("UPDATE {schema}.saga_worker SET expires_at = expires_at + interval '1 hour'")).await;
    eventually("it is found dead", async || store.sweep(10).await.unwrap() == 1).await;
    let heir = WorkerId::generate();
    store.join(heir, LONG, &[definition()]).await.unwrap();
    let claimed = store.claim(heir, &[definition()], Ripe::Due, Room::of(10)).await.unwrap();
    assert_eq!(claimed.iter().map(|record| record.saga).collect::<Vec<_>>(), [saga]);
}

#[tokio::test]
async fn what_was_put_back_in_a_future_that_does_not_come_is_due_again() {
    let Setup { store, schema, .. } = fresh(|_, sql| sql).await;
    let (due, waiting) = (start(&store, "due", None).await, start(&store, "waiting", None).await);
    // As a server has it whose clock was an hour ahead: one was due at once, the other one in ten minutes.
    run(
        &store,
        format!(
            "UPDATE {schema}.saga SET due_at = due_at + interval '1 hour', due_from = due_from + interval '1 hour'"
        ),
    )
    .await;
    run(&store, format!("UPDATE {schema}.saga SET due_at = due_at + interval '10 minutes' WHERE key = 'waiting'"))
        .await;
    let worker = WorkerId::generate();
    store.join(worker, LONG, &[definition()]).await.unwrap();
    assert!(store.claim(worker, &[definition()], Ripe::Due, Room::of(10)).await.unwrap().is_empty());
    store.sweep(10).await.unwrap();
    let claimed = store.claim(worker, &[definition()], Ripe::Due, Room::of(10)).await.unwrap();
    assert_eq!(claimed.iter().map(|record| record.saga).collect::<Vec<_>>(), [due]);
    let left = format!(
        "SELECT (due_at - now()) BETWEEN '9 minutes' AND '10 minutes' FROM {schema}.saga WHERE id = '{waiting}'"
    );
    until(&store, left).await;
}

#[tokio::test]
async fn a_clock_that_jumps_forward_lapses_nobody_who_beats() {
    let Setup { store, schema, .. } = fresh(|_, sql| sql).await;
    let (worker, lease) = (WorkerId::generate(), Duration::from_millis(300));
    store.join(worker, lease, &[definition()]).await.unwrap();
    let saga = start(&store, "k", Some(worker)).await;
    let began = Instant::now();
    // Whatever this machine is at: between two looks there is a beat.
    while began.elapsed() < 5 * lease {
        assert!(store.beat(worker, lease).await.unwrap(), "it was buried");
        run(&store, format!("UPDATE {schema}.saga_worker SET expires_at = expires_at - interval '1 hour'")).await;
        assert_eq!(store.sweep(10).await.unwrap(), 0);
        sleep(AGAIN).await;
    }
    assert_eq!(lapses(&store.read(saga).await.unwrap().unwrap()), (0, 0));
}

#[tokio::test]
async fn the_age_of_a_saga_does_not_run_backwards_with_the_clock() {
    let Setup { store, schema, .. } = fresh(|_, sql| sql).await;
    let worker = WorkerId::generate();
    store.join(worker, LONG, &[definition()]).await.unwrap();
    let saga = start(&store, "k", Some(worker)).await;
    store.append(worker, &[common::entry(saga, 1, 1)]).await.unwrap();
    // Written by a server whose clock was an hour ahead.
    run(&store, format!("UPDATE {schema}.saga_journal SET at = at + interval '1 hour'")).await;
    let hour = Duration::from_secs(3600);
    store.leave(worker).await.unwrap();
    assert_eq!(store.sweep(10).await.unwrap(), 1);
    let claimed = store.claim(worker, &[definition()], Ripe::Due, Room::of(10)).await.unwrap();
    assert!(claimed[0].age >= hour, "{:?}", claimed[0].age);
    // And one that was started in the future has no age below zero.
    run(&store, format!("UPDATE {schema}.saga SET started_at = started_at + interval '3 hours'")).await;
    let record = store.read(saga).await.unwrap().unwrap();
    assert_eq!((record.age, record.status), (Duration::ZERO, Status::Running));
}

#[tokio::test]
async fn whoever_comes_back_waits_for_nobody_who_holds_a_row() {
    let Setup { store, url, schema } = fresh(|_, sql| sql).await;
    let gate = Gate::new();
    let (over, wire) = over_a_wire(&schema).await;
    let engine = engine(&over, &gate).await;
    let saga = engine.sagas::<Slow>().submit("held by somebody", 1).await.unwrap();
    let other = engine.sagas::<Slow>().submit("held by nobody", 2).await.unwrap();
    eventually("both begin", async || gate.calls() >= 2).await;
    let mut somebody = PgConnection::connect(&url).await.unwrap();
    let mut tx = somebody.begin().await.unwrap();
    let lock = format!("SELECT FROM {schema}.saga WHERE id = '{}' FOR UPDATE", saga.id());
    sqlx::query(AssertSqlSafe(lock)).execute(&mut *tx).await.unwrap();
    let before = format!("SELECT owner FROM {schema}.saga WHERE id = '{}'", other.id());
    let before: uuid::Uuid = sqlx::query_scalar(AssertSqlSafe(before)).fetch_one(store.pool()).await.unwrap();
    wire.down();
    until(&store, format!("SELECT expires_at < now() FROM {schema}.saga_worker WHERE id = '{before}'")).await;
    wire.restore();
    eventually("it goes on with the other saga", async || gate.calls() >= 3).await;
    tx.rollback().await.unwrap();
    eventually("and with the one that was held", async || gate.calls() >= 4).await;
    eventually("which nobody is blamed for", async || {
        let (counted, survived) = lapses(&store.read(saga.id()).await.unwrap().unwrap());
        counted as usize == survived
    })
    .await;
    engine.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_sent_before_it_came_back_and_arrives_after_that_blames_nobody() {
    let Setup { store, schema, .. } = fresh(|_, sql| sql).await;
    let (over, wire) = over_a_wire(&schema).await;
    let gate = Gate::new();
    let engine = engine(&over, &gate).await;
    let first = engine.sagas::<Slow>().submit("first", 1).await.unwrap();
    eventually("it begins", async || gate.calls() >= 1).await;
    let owner = format!("SELECT owner FROM {schema}.saga WHERE id = '{}'", first.id());
    let former: uuid::Uuid = sqlx::query_scalar(AssertSqlSafe(owner)).fetch_one(store.pool()).await.unwrap();
    wire.down();
    until(&store, format!("SELECT expires_at < now() FROM {schema}.saga_worker WHERE id = '{former}'")).await;
    wire.restore();
    eventually("it has come back", async || gate.calls() >= 2).await;
    until(&store, format!("SELECT NOT EXISTS (SELECT FROM {schema}.saga_worker WHERE id = '{former}')")).await;
    // A start (or a claim) that was on its way all the time.
    let late = Start { name: Slow::NAME.into(), ..common::new_start("late", Some(former.into())) };
    store.start(std::slice::from_ref(&late)).await.unwrap();
    eventually("it is run", async || gate.calls() >= 3).await;
    eventually("nobody is blamed", async || {
        let (counted, survived) = lapses(&store.read(late.saga).await.unwrap().unwrap());
        counted > 0 && counted as usize == survived
    })
    .await;
    engine.kill().await;
}

#[test]
fn a_worker_whose_runtime_has_ended_is_dead() {
    let tests = tokio::runtime::Runtime::new().unwrap();
    let (store, schema, service, engine) = tests.block_on(async {
        let Setup { store, schema, .. } = fresh(|_, sql| sql).await;
        let service = tokio::runtime::Runtime::new().unwrap();
        let own = schema.clone();
        let engine = service.spawn(async move {
            let postgres = testing::shared().await.unwrap();
            let store = PgStore::options(&postgres.url()).unwrap().schema(own).connect().await.unwrap();
            engine(&store, &Gate::new()).await
        });
        let engine = engine.await.unwrap();
        (store, schema, service, engine)
    });
    // Not the engine, which somebody keeps in a static.
    service.shutdown_background();
    tests.block_on(until(
        &store,
        format!("SELECT bool_and(expires_at < now() - interval '1 second') FROM {schema}.saga_worker"),
    ));
    drop(engine);
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn engines_that_come_and_go_leave_nothing_behind() {
    let Setup { schema, .. } = fresh(|_, sql| sql).await;
    let (store, wire) = over_a_wire(&schema).await;
    let beating = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.starts_with("saga-heartbeat")).count()
    };
    for n in 0..100 {
        let engine = engine(&store, &Gate::new()).await;
        match n % 4 {
            0 => drop(engine),
            1 => engine.kill().await,
            2 => engine.shutdown(Duration::ZERO).await,
            _ => drop(tokio::spawn(async move { engine.shutdown(LONG).await })),
        }
    }
    // Other tests of this process have one each.
    eventually("their threads end", async || beating() < 30).await;
    let open =
        format!("SELECT count(*) < 30 FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE '%{schema}%'");
    until(&store, open).await;
    drop(wire);
}

#[tokio::test]
async fn a_row_that_somebody_holds_keeps_nobody_from_being_found_dead() {
    let Setup { store, url, schema } = fresh(|_, sql| sql).await;
    let lease = Duration::from_millis(300);
    let (held, dead) = (WorkerId::generate(), WorkerId::generate());
    for worker in [held, dead] {
        store.join(worker, lease, &[definition()]).await.unwrap();
    }
    let ended = start(&store, "ended", Some(held)).await;
    let mail = Mail { saga: ended, message: "late".into(), body: b"{}".to_vec() };
    store.post(std::slice::from_ref(&mail)).await.unwrap();
    let end =
        Append { status: Some(Status::Completed), then: Then::Release { due_in: None }, ..common::entry(ended, 1, 1) };
    store.append(held, &[end]).await.unwrap();
    let saga = start(&store, "k", Some(dead)).await;
    let mut somebody = PgConnection::connect(&url).await.unwrap();
    for held in [format!("saga_mailbox WHERE saga_id = '{ended}'"), format!("saga_worker WHERE id = '{held}'")] {
        let mut tx = somebody.begin().await.unwrap();
        sqlx::query(AssertSqlSafe(format!("SELECT FROM {schema}.{held} FOR UPDATE"))).execute(&mut *tx).await.unwrap();
        eventually("the dead one is found", async || {
            let _ = store.sweep(10).await;
            store.owned(dead).await.unwrap().is_empty()
        })
        .await;
        tx.rollback().await.unwrap();
        run(&store, format!("UPDATE {schema}.saga SET owner = '{dead}', due_at = NULL WHERE id = '{saga}'")).await;
        store.join(dead, lease, &[definition()]).await.unwrap();
    }
    eventually("and the late mail is dropped", async || {
        let _ = store.sweep(10).await;
        number(&store, format!("SELECT count(*) FROM {schema}.saga_mailbox")).await == 0
    })
    .await;
}

/// Of a claim that was not answered, say.
#[tokio::test]
async fn what_is_owned_at_a_shutdown_is_lost_by_no_death() {
    let Setup { store, schema, .. } = fresh(|_, sql| sql).await;
    let gate = Gate::new();
    let engine = Engine::builder(store.clone()).register::<Slow>(gate.clone()).unwrap();
    let engine = engine.configure(|config| config.lease = LONG).start().await.unwrap();
    let client = Engine::builder(store.clone()).start().await.unwrap();
    client.sagas::<Slow>().submit("k", 1).await.unwrap();
    // It has looked for work, and gives back what it does not know of in half a lease.
    eventually("it is found", async || gate.calls() > 0).await;
    gate.open.send_replace(true);
    // Its definition is not known to the engine.
    let saga = start(&store, "k", None).await;
    run(
        &store,
        format!(
            "UPDATE {schema}.saga SET due_at = NULL, due_from = NULL,
                 owner = (SELECT id FROM {schema}.saga_worker WHERE cardinality(names) > 0)
             WHERE id = '{saga}'"
        ),
    )
    .await;
    engine.shutdown(LONG).await;
    assert_eq!(lapses(&store.read(saga).await.unwrap().unwrap()), (1, 1));
}

/// A look that gets no answer says nothing about what was due meanwhile.
#[tokio::test]
async fn what_was_due_during_an_outage_is_claimed_by_the_first_look_after_it() {
    let Setup { store, schema, .. } = fresh(|_, sql| sql).await;
    let worker = WorkerId::generate();
    store.join(worker, LONG, &[definition()]).await.unwrap();
    let claim = async || store.claim(worker, &[definition()], Ripe::Due, Room::of(10)).await;
    assert!(claim().await.unwrap().is_empty());
    run(&store, format!("ALTER TABLE {schema}.saga_snapshot RENAME TO away")).await;
    // Longer than between two looks that read everything.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        assert!(claim().await.is_err());
        sleep(AGAIN).await;
    }
    let saga = start(&store, "k", None).await;
    run(&store, format!("UPDATE {schema}.saga SET due_at = now() - interval '1 minute' WHERE id = '{saga}'")).await;
    run(&store, format!("ALTER TABLE {schema}.away RENAME TO saga_snapshot")).await;
    assert_eq!(claim().await.unwrap().len(), 1);
}

/// A person wants something of it, and it can be parked no more than it is.
#[tokio::test]
async fn a_parked_saga_with_mail_is_claimed_however_often_it_lapsed() {
    let Setup { store, schema, .. } = fresh(|_, sql| sql).await;
    let worker = WorkerId::generate();
    store.join(worker, LONG, &[definition()]).await.unwrap();
    let (saga, other) = (start(&store, "k", None).await, start(&store, "other", None).await);
    let lost = "due_at = NULL, due_from = NULL, lapses = 3, lost_with = array_fill(gen_random_uuid(), ARRAY[3])";
    run(&store, format!("UPDATE {schema}.saga SET {lost}, status = CASE WHEN id = '{saga}' THEN 2 ELSE 0 END")).await;
    let mail = [saga, other].map(|saga| Mail { saga, message: "m".into(), body: b"{}".to_vec() });
    store.post(&mail).await.unwrap();
    let room = Room { lapses: 0, ..Room::of(10) };
    let claimed = store.claim(worker, &[definition()], Ripe::Mailed, room).await.unwrap();
    assert_eq!(claimed.iter().map(|record| record.saga).collect::<Vec<_>>(), [saga]);
    // What was survived does not count.
    run(&store, format!("UPDATE {schema}.saga SET lost_with = '{{NULL,NULL,NULL}}' WHERE id = '{other}'")).await;
    let claimed = store.claim(worker, &[definition()], Ripe::Mailed, room).await.unwrap();
    assert_eq!(claimed.iter().map(|record| record.saga).collect::<Vec<_>>(), [other]);
}

/// Makes both wait at an advisory lock, between their snapshot and what they do.
fn paused(name: &str, sql: String) -> String {
    match name {
        "beat" => sql.replace("WHERE id = $1", &format!("WHERE id = $1 AND {WAITS} IS NOT NULL")),
        "bury" => sql.replacen("    FROM ", &format!("    FROM {WAITS} AS pause, "), 1),
        _ => sql,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_beat_and_a_burial_at_the_same_moment_agree() {
    let Setup { store: slow, url, schema } = fresh(paused).await;
    // Its statements do not wait.
    let store = PgStore::options(&url).unwrap().schema(&schema).connect().await.unwrap();
    let lease = Duration::from_millis(300);
    let statement = |name: &str| slow.statements().into_iter().find(|(known, _)| *known == name).unwrap().1;
    let mut gate = PgConnection::connect(&url).await.unwrap();
    let (shut, open) = ("SELECT pg_advisory_lock(4711)", "SELECT pg_advisory_unlock(4711)");
    let worker = WorkerId::generate();
    store.join(worker, lease, &[definition()]).await.unwrap();
    let saga = start(&store, "k", Some(worker)).await;

    // A burial is under way when the worker beats.
    let seen = format!("SELECT expires_at FROM {schema}.saga_worker");
    let seen: DateTime<Utc> = sqlx::query_scalar(AssertSqlSafe(seen)).fetch_one(store.pool()).await.unwrap();
    sqlx::query(shut).execute(&mut gate).await.unwrap();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let bury = sqlx::query(AssertSqlSafe(statement("bury"))).bind(vec![worker.as_uuid()]).bind(vec![seen]);
    let burial = tokio::spawn(async move { bury.execute(&mut connection).await.unwrap().rows_affected() });
    common::until_somebody_waits_for_an_advisory_lock(&mut gate).await;
    assert!(store.beat(worker, lease).await.unwrap());
    sqlx::query(open).execute(&mut gate).await.unwrap();
    assert_eq!(burial.await.unwrap(), 0, "who beats was buried");

    // A beat is under way when the worker is buried.
    sqlx::query(shut).execute(&mut gate).await.unwrap();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let beat = sqlx::query(AssertSqlSafe(statement("beat"))).bind(worker.as_uuid()).bind(60_000_i64);
    let beat = tokio::spawn(async move { beat.fetch_all(&mut connection).await.unwrap().len() });
    common::until_somebody_waits_for_an_advisory_lock(&mut gate).await;
    eventually("it is buried", async || store.sweep(10).await.unwrap() == 1).await;
    sqlx::query(open).execute(&mut gate).await.unwrap();
    assert_eq!(beat.await.unwrap(), 0, "who was buried beats");
    assert_eq!(lapses(&store.read(saga).await.unwrap().unwrap()), (1, 0));
}
