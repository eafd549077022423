//! Many writers, many keys, relays that are killed and frozen all the time: and each key is published in its order, whole.
//!
//! Relays are processes, and what counts is what arrives: a [`Tally`] is a receiver like any other, so the same drill runs over any transport.

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process};
use saga_core::{
    message::Message,
    participant::Event,
    transport::{Receiver, Unavailable, Verdict},
};
use saga_postgres::PgOutbox;
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions};
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{process::Child, time::sleep};

/// The topic that everything goes to.
pub(crate) const TOPIC: &str = "drill";
/// So many events of different keys are written in one transaction.
pub(crate) const IN_ONE: u64 = 10;
/// One transaction of so many is rolled back.
const ROLLED_BACK: u64 = 20;
/// For how long nothing may arrive.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is drilled.
#[derive(Clone, Copy)]
pub(crate) struct Drill {
    pub(crate) events: u64,
    pub(crate) keys: u64,
    pub(crate) writers: u64,
    /// How many relays run at once.
    pub(crate) relays: usize,
    /// How often one of them is killed, by SIGKILL.
    pub(crate) kills: u64,
    /// How often one of them is frozen, for longer than its lease.
    pub(crate) freezes: u64,
    /// Of the relays.
    pub(crate) lease: Duration,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) events: u64,
    pub(crate) keys: u64,
    pub(crate) writers: u64,
    pub(crate) relays: usize,
    pub(crate) kills: u64,
    pub(crate) freezes: u64,
    pub(crate) lost: u64,
    pub(crate) out_of_order: u64,
    pub(crate) duplicates: u64,
    pub(crate) left_in_the_table: i64,
    pub(crate) seconds: f64,
    pub(crate) events_per_s: f64,
}

/// The event: how often its key has been changed.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Changed(u64);

impl Event for Changed {
    const TYPE: &'static str = "drill.changed.v1";
    const TOPIC: &'static str = TOPIC;
}

/// Counts what arrives. The changes of a key are numbered from 1: what is next is a first occurrence, what was before is a repeat, and everything else is out of order.
#[derive(Default)]
pub(crate) struct Tally {
    keys: Mutex<HashMap<String, u64>>,
    firsts: AtomicU64,
    duplicates: AtomicU64,
    out_of_order: AtomicU64,
}

impl Tally {
    pub(crate) fn heard(&self, key: &str, data: &[u8]) {
        let number: u64 = serde_json::from_slice(data).expect("a number");
        let mut keys = self.keys.lock().expect("the tally");
        let last = keys.entry(key.to_owned()).or_default();
        let counter = match number {
            number if number == *last + 1 => &self.firsts,
            number if number <= *last => &self.duplicates,
            _ => &self.out_of_order,
        };
        *last = number.max(*last);
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn firsts(&self) -> u64 {
        self.firsts.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Receiver for Tally {
    async fn receive(&self, batch: &[Message]) -> Result<Vec<Verdict>, Unavailable> {
        batch.iter().for_each(|message| self.heard(&message.key, &message.data));
        Ok(vec![Verdict::Done; batch.len()])
    }
}

/// Runs it. `relay` starts a process with a relay, and what that publishes to [`TOPIC`] has to come to `tally`.
pub(crate) async fn run(
    drill: Drill,
    url: &str,
    schema: &str,
    relay: impl AsyncFn() -> Child,
    tally: Arc<Tally>,
) -> Report {
    let pool = PgPoolOptions::new().max_connections(drill.writers as u32 + 4).connect(url).await.expect("Postgres");
    let outbox = PgOutbox::options(pool.clone(), "drill").schema(schema).build().expect("an outbox");
    outbox.migrate().await.expect("tables");
    let table = format!("{schema}.drill");
    let create = format!(
        "CREATE TABLE {table} (key bigint PRIMARY KEY, changes bigint NOT NULL) WITH (fillfactor = 50);
         INSERT INTO {table} SELECT key, 0 FROM generate_series(0, {}) key",
        drill.keys - 1
    );
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&pool).await.expect("a table of keys");

    let began = Instant::now();
    let to_write = Arc::new(AtomicI64::new(drill.events as i64));
    let writers = (0..drill.writers).map(|writer| {
        tokio::spawn(write(outbox.clone(), pool.clone(), table.clone(), drill.keys, to_write.clone(), writer))
    });
    let writers: Vec<_> = writers.collect();
    let mut relays = VecDeque::new();
    for _ in 0..drill.relays {
        relays.push_back(relay().await);
    }
    let blows = drill.kills + drill.freezes;
    let (mut kills, mut freezes, mut frozen) = (0, 0, None);
    let (mut arrived, mut progress) = (0, Instant::now());
    while arrived < drill.events && progress.elapsed() < PATIENCE {
        if frozen.is_some_and(|(_, since): (Pid, Instant)| since.elapsed() > 2 * drill.lease) {
            let (pid, _) = frozen.take().expect("a frozen relay");
            signal(pid, Signal::CONT);
        }
        let due = arrived >= (kills + freezes + 1) * drill.events / (blows + 1) && kills + freezes < blows;
        // Spread over all the blows; and one frozen relay at a time, which is not killed meanwhile.
        let freeze = due && freezes * blows < (kills + freezes) * drill.freezes;
        if freeze && frozen.is_none() {
            let relay = relays.front().expect("a relay");
            frozen = pid(relay).map(|pid| (pid, Instant::now()));
            frozen.iter().for_each(|(pid, _)| signal(*pid, Signal::STOP));
            freezes += 1;
        } else if due && !freeze && (frozen.is_none() || relays.len() > 1) {
            let last = if frozen.is_some() { relays.pop_back() } else { relays.pop_front() };
            let mut killed = last.expect("a relay");
            killed.kill().await.expect("a kill");
            kills += 1;
            relays.push_back(relay().await);
        }
        sleep(Duration::from_millis(1)).await;
        if tally.firsts() > arrived {
            (arrived, progress) = (tally.firsts(), Instant::now());
        }
    }
    frozen.iter().for_each(|(pid, _)| signal(*pid, Signal::CONT));
    let took = began.elapsed();
    for writer in writers {
        writer.await.expect("a writer");
    }
    let left_in_the_table = empty(&pool, schema).await;
    drop(relays);
    Report {
        events: drill.events,
        keys: drill.keys,
        writers: drill.writers,
        relays: drill.relays,
        kills,
        freezes,
        lost: drill.events - tally.firsts(),
        out_of_order: tally.out_of_order.load(Ordering::Relaxed),
        duplicates: tally.duplicates.load(Ordering::Relaxed),
        left_in_the_table,
        seconds: took.as_secs_f64(),
        events_per_s: drill.events as f64 / took.as_secs_f64(),
    }
}

fn pid(relay: &Child) -> Option<Pid> {
    relay.id().and_then(|id| Pid::from_raw(id as i32))
}

fn signal(pid: Pid, signal: Signal) {
    kill_process(pid, signal).expect("a relay that has not ended by itself");
}

/// Writes until there is nothing left to write: each transaction changes a few keys, which locks them, and tells of it.
async fn write(outbox: PgOutbox, pool: PgPool, table: String, keys: u64, to_write: Arc<AtomicI64>, writer: u64) {
    let change = format!(
        "WITH locked AS MATERIALIZED (SELECT key FROM {table} WHERE key = ANY($1) ORDER BY key FOR NO KEY UPDATE)
         UPDATE {table} t SET changes = changes + 1 FROM locked l WHERE t.key = l.key RETURNING t.key, t.changes"
    );
    let mut round = writer;
    loop {
        let mine =
            IN_ONE.min(keys).min(u64::try_from(to_write.fetch_sub(IN_ONE as i64, Ordering::Relaxed)).unwrap_or(0));
        if mine == 0 {
            return;
        }
        let mut written = false;
        while !written {
            round = round.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let first = (round >> 33) % keys;
            let chosen: Vec<i64> = (0..mine).map(|n| ((first + n * (keys / mine)) % keys) as i64).collect();
            let mut tx = pool.begin().await.expect("a transaction");
            let changed: Vec<(i64, i64)> =
                sqlx::query_as(AssertSqlSafe(change.clone())).bind(chosen).fetch_all(&mut *tx).await.expect("changes");
            for (key, changes) in changed {
                let told = outbox.publish(&mut tx, &format!("key-{key}"), &Changed(changes as u64)).await;
                told.expect("an event");
            }
            match (round >> 20) % ROLLED_BACK {
                0 => tx.rollback().await.expect("a rollback"),
                _ => {
                    tx.commit().await.expect("a commit");
                    written = true;
                }
            }
        }
    }
}

/// How many rows are still there when the last has had some time to go.
async fn empty(pool: &PgPool, schema: &str) -> i64 {
    let began = Instant::now();
    loop {
        let sql = format!("SELECT count(*) FROM {schema}.saga_outbox");
        let left: i64 = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(pool).await.expect("a count");
        if left == 0 || began.elapsed() > Duration::from_secs(20) {
            return left;
        }
        sleep(Duration::from_millis(20)).await;
    }
}
