//! What really happened, told by those to whom it happened: every attempt, and what is left of it.
//!
//! The tables lie in the same Postgres as the sagas, and are reached directly, past the proxy. What is written there, as a
//! participant with a barrier would write it, does not depend on anything that the engine believes.

use super::{dice::Dice, now};
use saga_core::SagaId;
use serde::Serialize;
use sqlx::{PgPool, postgres::PgPoolOptions};
use std::time::Duration;
use tokio::time::sleep;

const TABLES: &str = "
    CREATE SCHEMA ledger;
    -- One row for each attempt that began. Times are microseconds, as the worker's own clock says; `ended` is written together with the effect.
    CREATE TABLE ledger.attempt (
        id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        key     text NOT NULL,
        saga    uuid NOT NULL,
        step    text NOT NULL,
        undo    boolean NOT NULL,
        number  integer NOT NULL,
        payload text NOT NULL,
        pid     integer NOT NULL,
        started bigint NOT NULL,
        ended   bigint,
        refused boolean
    );
    CREATE INDEX under_way ON ledger.attempt (pid) WHERE ended IS NULL;
    -- The barrier, shared by do and undo: one row for each key, locked by whoever comes.
    CREATE TABLE ledger.effect (key text PRIMARY KEY, times integer NOT NULL, undone boolean NOT NULL);
    -- Rows of a user's own, written in the transaction that starts a saga.
    CREATE TABLE ledger.purchase (key text PRIMARY KEY);
";

const BEGIN: &str = "
    INSERT INTO ledger.attempt (key, saga, step, undo, number, payload, pid, started)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id";

const END: &str = "UPDATE ledger.attempt SET ended = $2 WHERE id = $1";

/// Does it, unless it was done or undone before.
const DO: &str = "
    WITH barrier AS (
        INSERT INTO ledger.effect (key, times, undone) VALUES ($3, 1, false)
        ON CONFLICT (key) DO UPDATE SET times = effect.times + 1
        RETURNING undone
    )
    UPDATE ledger.attempt SET ended = $2, refused = barrier.undone FROM barrier WHERE id = $1 RETURNING refused";

/// Leaves a tombstone, so that nothing will come either.
const UNDO: &str = "
    WITH barrier AS (
        INSERT INTO ledger.effect (key, times, undone) VALUES ($3, 0, true)
        ON CONFLICT (key) DO UPDATE SET undone = true
    )
    UPDATE ledger.attempt SET ended = $2 WHERE id = $1";

/// The world that steps act upon.
#[derive(Debug)]
pub(crate) struct Ledger {
    pool: PgPool,
    pid: i32,
    pub(crate) dice: Dice,
    /// How many percent of the attempts find the participant busy, and how many lose its answer.
    pub(crate) trouble: u64,
    /// How many percent of the attempts take up to 400 milliseconds; the others take up to 20.
    pub(crate) slow: u64,
    /// How long poison takes to work.
    pub(crate) poison: Duration,
}

/// Which attempt this is.
#[derive(Debug)]
pub(crate) struct Call<'c> {
    pub(crate) key: &'c str,
    pub(crate) saga: SagaId,
    pub(crate) step: &'c str,
    pub(crate) undo: bool,
    pub(crate) number: u32,
}

/// An attempt that has begun.
#[derive(Debug)]
pub(crate) struct Attempt<'l> {
    ledger: &'l Ledger,
    id: i64,
}

impl Ledger {
    pub(crate) async fn connect(url: &str) -> Self {
        let options = PgPoolOptions::new().max_connections(12).after_connect(|connection, _| {
            Box::pin(async {
                // Postgres does not crash in these tests.
                sqlx::query("SET synchronous_commit = off").execute(connection).await.map(drop)
            })
        });
        let pid = std::process::id();
        Self {
            pool: options.connect(url).await.unwrap(),
            pid: pid.cast_signed(),
            dice: Dice::new(now().unsigned_abs() ^ u64::from(pid)),
            trouble: 3,
            slow: 60,
            poison: Duration::ZERO,
        }
    }

    pub(crate) async fn create(pool: &PgPool) {
        sqlx::raw_sql(TABLES).execute(pool).await.unwrap();
    }

    pub(crate) async fn begin(&self, call: Call<'_>, payload: &impl Serialize) -> Result<Attempt<'_>, sqlx::Error> {
        let payload = serde_json::to_string(payload).unwrap();
        let sql = sqlx::query_scalar(BEGIN).bind(call.key).bind(call.saga.as_uuid()).bind(call.step).bind(call.undo);
        let sql = sql.bind(call.number.cast_signed()).bind(payload).bind(self.pid).bind(now());
        Ok(Attempt { ledger: self, id: sql.fetch_one(&self.pool).await? })
    }

    /// Takes its time.
    pub(crate) async fn work(&self) {
        let range = if self.dice.percent(self.slow) { 50..400 } else { 1..20 };
        sleep(self.dice.millis(range)).await;
    }

    pub(crate) fn is_in_trouble(&self) -> bool {
        self.dice.percent(self.trouble)
    }
}

impl Attempt<'_> {
    /// Nothing happened.
    pub(crate) async fn ends(self) -> Result<(), sqlx::Error> {
        sqlx::query(END).bind(self.id).bind(now()).execute(&self.ledger.pool).await.map(drop)
    }

    /// Whether it took effect, now or before: not if it was undone already.
    pub(crate) async fn takes_effect(self, key: &str) -> Result<bool, sqlx::Error> {
        let sql = sqlx::query_scalar::<_, bool>(DO).bind(self.id).bind(now()).bind(key);
        sql.fetch_one(&self.ledger.pool).await.map(|refused| !refused)
    }

    pub(crate) async fn undoes(self, key: &str) -> Result<(), sqlx::Error> {
        sqlx::query(UNDO).bind(self.id).bind(now()).bind(key).execute(&self.ledger.pool).await.map(drop)
    }
}

/// How many attempts of a process have begun and not ended.
pub(crate) async fn under_way(pool: &PgPool, pid: i32) -> i64 {
    let sql = "SELECT count(*) FROM ledger.attempt WHERE pid = $1 AND ended IS NULL";
    sqlx::query_scalar(sql).bind(pid).fetch_one(pool).await.unwrap()
}

pub(crate) const PATIENCE: Duration = Duration::from_secs(600);
