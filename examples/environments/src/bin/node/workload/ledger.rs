//! What really happened, told by those to whom it happened. It lies on a server of its own, which no environment
//! touches, and does not depend on anything that the engine believes.

use saga_core::SagaId;
use serde::Serialize;
use sqlx::{PgPool, postgres::PgPoolOptions};
use std::time::Duration;

/// The ledger's tables.
#[allow(dead_code, reason = "only one of the two programs makes ledgers")]
pub const TABLES: &str = "
    -- What participants were asked for: one row for each payload of a key, so that there is one for each key.
    CREATE TABLE asked (key text, payload text, PRIMARY KEY (key, payload));
    -- The barrier, shared by do and undo: one row for each key, locked by whoever comes.
    CREATE TABLE effect (key text PRIMARY KEY, saga uuid NOT NULL, step text NOT NULL, undone boolean NOT NULL);
    -- What callers were promised, and the outcome that they were told.
    CREATE TABLE promise (key text PRIMARY KEY, node text NOT NULL, saga uuid NOT NULL, outcome text);
    -- Events that left.
    CREATE TABLE heard (key text PRIMARY KEY);
    -- Calls that were answered with an error, or with nothing in time.
    CREATE TABLE refusal (node text NOT NULL, call text NOT NULL, error text NOT NULL);
";

/// Does it, unless it was undone before.
const DO: &str = "
    INSERT INTO effect VALUES ($1, $2, $3, false) ON CONFLICT (key) DO UPDATE SET saga = effect.saga RETURNING NOT undone";

/// Leaves a tombstone, so that nothing will come either.
const UNDO: &str = "INSERT INTO effect VALUES ($1, $2, $3, true) ON CONFLICT (key) DO UPDATE SET undone = true";

/// The world that steps act upon.
#[derive(Clone, Debug)]
pub struct Ledger {
    pool: PgPool,
    node: String,
}

impl Ledger {
    pub fn connect(url: &str, node: &str) -> Result<Self, sqlx::Error> {
        let pool = PgPoolOptions::new().max_connections(6).acquire_timeout(Duration::from_secs(60));
        Ok(Self { pool: pool.connect_lazy(url)?, node: node.into() })
    }

    pub async fn asked(&self, key: &str, payload: &impl Serialize) -> Result<(), sqlx::Error> {
        let payload = serde_json::to_string(payload).map_err(|error| sqlx::Error::Encode(error.into()))?;
        let sql = sqlx::query("INSERT INTO asked VALUES ($1, $2) ON CONFLICT DO NOTHING").bind(key).bind(payload);
        sql.execute(&self.pool).await.map(drop)
    }

    /// Whether the effect stands, now or before: not if it was undone already.
    pub async fn takes_effect(&self, key: &str, saga: SagaId, step: &str) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar(DO).bind(key).bind(saga.as_uuid()).bind(step).fetch_one(&self.pool).await
    }

    pub async fn undoes(&self, key: &str, saga: SagaId, step: &str) -> Result<(), sqlx::Error> {
        sqlx::query(UNDO).bind(key).bind(saga.as_uuid()).bind(step).execute(&self.pool).await.map(drop)
    }

    /// The engine has said that a saga was started.
    pub async fn promised(&self, key: &str, saga: SagaId) -> Result<(), sqlx::Error> {
        let sql = sqlx::query("INSERT INTO promise VALUES ($1, $2, $3)").bind(key).bind(&self.node);
        sql.bind(saga.as_uuid()).execute(&self.pool).await.map(drop)
    }

    /// The engine has said how a saga ended.
    pub async fn told(&self, key: &str, outcome: &str) -> Result<(), sqlx::Error> {
        let sql = sqlx::query("UPDATE promise SET outcome = $2 WHERE key = $1").bind(key).bind(outcome);
        sql.execute(&self.pool).await.map(drop)
    }

    /// An event has arrived, maybe again.
    pub async fn heard(&self, key: &str) -> Result<(), sqlx::Error> {
        sqlx::query("INSERT INTO heard VALUES ($1) ON CONFLICT DO NOTHING")
            .bind(key)
            .execute(&self.pool)
            .await
            .map(drop)
    }

    /// A call ended with an error.
    pub async fn refused(&self, call: &str, error: &str) -> Result<(), sqlx::Error> {
        let sql = sqlx::query("INSERT INTO refusal VALUES ($1, $2, $3)").bind(&self.node).bind(call).bind(error);
        sql.execute(&self.pool).await.map(drop)
    }
}
