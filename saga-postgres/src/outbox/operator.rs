//! What operators see and do.

use super::{OutboxError, PgOutbox, SHARDS};
use crate::connection::{Lent, in_time};
use chrono::{DateTime, Utc};
use sqlx::{Connection, Postgres, Row, Transaction, postgres::PgRow};
use std::time::Duration;
use uuid::Uuid;

/// What waits in an outbox. From [`PgOutbox::lag`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lag {
    /// How many events wait for a relay or for the broker.
    pub waiting: u64,
    /// How old the oldest of them is; `None` if there are none.
    pub oldest: Option<Duration>,
    /// How many are parked because the broker refused them.
    pub parked: u64,
    /// How many wait behind a parked one.
    pub behind: u64,
}

/// An event that the broker refused. From [`PgOutbox::parked`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// Its id.
    pub id: Uuid,
    /// Its topic.
    pub topic: String,
    /// Its key.
    pub key: String,
    /// Its type.
    pub kind: String,
    /// What the broker said.
    pub reason: String,
    /// When it was written.
    pub created_at: DateTime<Utc>,
    /// When it was refused.
    pub parked_at: DateTime<Utc>,
    /// How many wait behind it.
    pub behind: u64,
}

/// How many events are given back in one transaction.
const AT_A_TIME: i64 = 500;

/// What follows a lock has to see what was committed before it was granted.
const READ_COMMITTED: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

impl PgOutbox {
    /// How much waits, and for how long: what to watch. It counts what waits, so ask a few times a minute and not more.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn lag(&self) -> Result<Lag, OutboxError> {
        let mut lent = Lent::from(&self.inner.pool).await?;
        let row = in_time(self.query(&self.inner.queries.lag).fetch_one(&mut *lent)).await?;
        lent.give_back();
        let oldest: Option<f64> = row.try_get("oldest")?;
        Ok(Lag {
            waiting: count(row.try_get("waiting")?),
            oldest: oldest.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()),
            parked: count(row.try_get("parked")?),
            behind: count(row.try_get("behind")?),
        })
    }

    /// The parked events, at most so many, those first that have been parked longest.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn parked(&self, limit: u32) -> Result<Vec<Parked>, OutboxError> {
        let mut lent = Lent::from(&self.inner.pool).await?;
        let sql = self.query(&self.inner.queries.parked).bind(i64::from(limit));
        let rows = in_time(sql.fetch_all(&mut *lent)).await?;
        lent.give_back();
        let parked = |row: &PgRow| {
            Ok(Parked {
                id: row.try_get("id")?,
                topic: row.try_get("aggregatetype")?,
                key: row.try_get("aggregateid")?,
                kind: row.try_get("type")?,
                reason: row.try_get("reason")?,
                created_at: row.try_get("created_at")?,
                parked_at: row.try_get("parked_at")?,
                behind: count(row.try_get("behind")?),
            })
        };
        rows.iter().map(parked).collect()
    }

    /// Has a parked event tried again; what is behind it follows when the broker has it. Waits until no relay is at its shard. `false` if there
    /// is no such parked event.
    ///
    /// # Errors
    /// When the database does not answer: then it may be done or not, and doing it again is right.
    pub async fn unpark(&self, id: Uuid) -> Result<bool, OutboxError> {
        let mut lent = Lent::from(&self.inner.pool).await?;
        let mut tx = self.lock_parked(&mut lent, id).await?;
        let unpark = self.query(&self.inner.queries.unpark).bind(id);
        let unparked = in_time(unpark.execute(&mut *tx)).await?;
        self.commit_in_time(tx).await?;
        lent.give_back();
        Ok(unparked.rows_affected() > 0)
    }

    /// [Unparks](Self::unpark) all events of a topic, some at a time: after a topic that could not be written was put right.
    /// Answers how many there were.
    ///
    /// # Errors
    /// When the database does not answer: then a part of it may be done, and doing it again is right.
    pub async fn unpark_topic(&self, topic: &str) -> Result<u64, OutboxError> {
        let mut unparked = 0;
        let mut lent = Lent::from(&self.inner.pool).await?;
        for shard in 0..SHARDS {
            let mut behind = Some(0_i64);
            while let Some(last) = behind {
                let mut tx = in_time(lent.begin_with(READ_COMMITTED)).await?;
                let lock = self.query(&self.inner.queries.lock_shard).bind(i32::from(shard));
                in_time(lock.execute(&mut *tx)).await?;
                let unpark = self.query(&self.inner.queries.unpark_topic).bind(shard).bind(topic);
                let row = in_time(unpark.bind(last).bind(AT_A_TIME).fetch_one(&mut *tx)).await?;
                self.commit_in_time(tx).await?;
                let some: i64 = row.try_get("unparked")?;
                unparked += count(some);
                behind = row.try_get("last")?;
            }
        }
        lent.give_back();
        Ok(unparked)
    }

    /// Gives up a parked event: it is deleted, and no relay finds it any more. What is behind it goes on. Waits until no relay is at its shard. `false` if there is no
    /// such parked event.
    ///
    /// # Errors
    /// When the database does not answer: then it may be done or not, and doing it again is right.
    pub async fn discard(&self, id: Uuid) -> Result<bool, OutboxError> {
        let mut lent = Lent::from(&self.inner.pool).await?;
        let mut tx = self.lock_parked(&mut lent, id).await?;
        let discard = self.query(&self.inner.queries.discard).bind(id);
        let rows = in_time(discard.fetch_all(&mut *tx)).await?;
        let (mut topics, mut keys): (Vec<String>, Vec<String>) = (vec![], vec![]);
        for row in &rows {
            topics.push(row.try_get("aggregatetype")?);
            keys.push(row.try_get("aggregateid")?);
        }
        let free = self.query(&self.inner.queries.free).bind(topics).bind(keys);
        in_time(free.execute(&mut *tx)).await?;
        self.commit_in_time(tx).await?;
        lent.give_back();
        Ok(!rows.is_empty())
    }

    /// A relay that saw the key parked puts more events behind it: no longer, once this returns.
    async fn lock_parked<'l>(&self, lent: &'l mut Lent, id: Uuid) -> Result<Transaction<'l, Postgres>, sqlx::Error> {
        let mut tx = in_time(lent.begin_with(READ_COMMITTED)).await?;
        in_time(self.query(&self.inner.queries.lock_parked).bind(id).execute(&mut *tx)).await?;
        Ok(tx)
    }

    async fn commit_in_time(&self, tx: Transaction<'_, Postgres>) -> Result<(), sqlx::Error> {
        in_time(self.commit(tx)).await
    }
}

fn count(counted: i64) -> u64 {
    counted.unsigned_abs()
}
