//! The ledger of one environment, and what it says when all is over.

use crate::{Result, workload::TABLES};
use saga_postgres::testing::Postgres;
use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use tokio::time::sleep;
use uuid::Uuid;

/// How often somebody looks whether something has happened.
pub const POLL: Duration = Duration::from_millis(50);

/// Every step of the saga.
const EFFECTS: [&str; 4] = ["authorize", "charge", "deliver", "reserve"];

/// A ledger.
pub struct Books {
    pub url: String,
    pool: PgPool,
}

/// What the books say.
#[derive(Debug, Default)]
pub struct Verdict {
    pub completed: usize,
    pub rolled_back: usize,
    pub parked: usize,
    pub unfinished: usize,
    /// Calls that ended with an error, or with nothing, and were made again.
    pub refused: BTreeMap<String, usize>,
    /// What is wrong, in words.
    pub wrong: Vec<String>,
}

impl Books {
    /// New books, with a name of their own.
    pub async fn open(server: &Postgres, name: &str) -> Result<Self> {
        server.create_database(name).await?;
        let url = server.url_for(name);
        let pool = PgPoolOptions::new().max_connections(2).connect(&url).await?;
        sqlx::raw_sql(TABLES).execute(&pool).await?;
        Ok(Self { url, pool })
    }

    /// How many sagas callers know to be started.
    pub async fn promised(&self) -> Result<i64> {
        Ok(sqlx::query_scalar("SELECT count(*) FROM promise").fetch_one(&self.pool).await?)
    }

    /// Waits until callers know so many sagas to be started.
    pub async fn until_promised(&self, sagas: i64, patience: Duration) -> Result<()> {
        let began = Instant::now();
        while self.promised().await? < sagas {
            if began.elapsed() > patience {
                let done = self.promised().await?;
                return Err(format!("{done} sagas were started within {patience:?}, not {sagas}").into());
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits until every saga has ended, every caller that is left knows how, and every event has arrived; not for
    /// longer than `patience`. Callers of `lost` nodes are not asked.
    pub async fn until_ended(&self, sagas: &PgPool, schema: &str, lost: &[String], patience: Duration) -> Result<()> {
        let began = Instant::now();
        let unfinished = format!("SELECT count(*) FROM \"{schema}\".saga WHERE status < 2");
        let untold = "SELECT count(*) FROM promise WHERE outcome IS NULL AND node <> ALL ($1)";
        while began.elapsed() < patience {
            let unfinished: i64 = sqlx::query_scalar(AssertSqlSafe(unfinished.as_str())).fetch_one(sagas).await?;
            let untold: i64 = sqlx::query_scalar(untold).bind(lost).fetch_one(&self.pool).await?;
            let announced = "SELECT count(*) FROM shop.purchase WHERE announced";
            let announced: i64 = sqlx::query_scalar(announced).fetch_one(sagas).await?;
            let heard: i64 = sqlx::query_scalar("SELECT count(*) FROM heard").fetch_one(&self.pool).await?;
            if unfinished == 0 && untold == 0 && heard >= announced {
                break;
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Lays the ledger beside the sagas.
    pub async fn verdict(&self, sagas: &PgPool, schema: &str, lost: &[String]) -> Result<Verdict> {
        let mut verdict = Verdict::default();
        let rows = format!("SELECT id, key, status FROM \"{schema}\".saga");
        let rows: Vec<(Uuid, String, i16)> = sqlx::query_as(AssertSqlSafe(rows)).fetch_all(sagas).await?;
        let effects = "SELECT saga, step FROM effect WHERE NOT undone ORDER BY step";
        let effects: Vec<(Uuid, String)> = sqlx::query_as(effects).fetch_all(&self.pool).await?;
        let mut standing: BTreeMap<Uuid, Vec<String>> = BTreeMap::new();
        for (saga, step) in effects {
            standing.entry(saga).or_default().push(step);
        }
        let mut ends = BTreeMap::new();
        for (saga, key, status) in &rows {
            let stands = standing.remove(saga).unwrap_or_default();
            let (end, count, right) = match status {
                3 => ("completed", &mut verdict.completed, stands == EFFECTS),
                4 => ("rolled back", &mut verdict.rolled_back, stands.is_empty()),
                2 => ("parked", &mut verdict.parked, false),
                _ => ("unfinished", &mut verdict.unfinished, false),
            };
            *count += 1;
            ends.insert(*saga, end);
            if !right {
                verdict.wrong.push(format!("{key} is {end}, and of its effects stand {stands:?}"));
            }
        }
        verdict.wrong.extend(standing.iter().map(|(saga, stands)| format!("no saga {saga}, but {stands:?} stand")));
        self.promises(&mut verdict, &ends, lost).await?;
        self.users_rows(&mut verdict, sagas, &rows).await?;
        let twice = "SELECT key, count(*) FROM asked GROUP BY key HAVING count(*) > 1";
        let twice: Vec<(String, i64)> = sqlx::query_as(twice).fetch_all(&self.pool).await?;
        verdict.wrong.extend(twice.iter().map(|(key, payloads)| format!("{key} was asked with {payloads} payloads")));
        let refused = "SELECT call || ': ' || error, count(*) FROM refusal GROUP BY 1";
        let refused: Vec<(String, i64)> = sqlx::query_as(refused).fetch_all(&self.pool).await?;
        verdict.refused.extend(refused.into_iter().map(|(call, times)| (call, usize::try_from(times).unwrap_or(0))));
        Ok(verdict)
    }

    /// Every saga that was promised is there, and its caller was told what became of it.
    async fn promises(&self, verdict: &mut Verdict, ends: &BTreeMap<Uuid, &str>, lost: &[String]) -> Result<()> {
        let promises = "SELECT key, node, saga, outcome FROM promise";
        let promises: Vec<(String, String, Uuid, Option<String>)> =
            sqlx::query_as(promises).fetch_all(&self.pool).await?;
        if promises.is_empty() {
            verdict.wrong.push("no saga was started".into());
        }
        for (key, node, saga, outcome) in promises {
            match (ends.get(&saga), outcome) {
                (None, _) => verdict.wrong.push(format!("{key} was promised, and is not there")),
                (Some(end), Some(told)) if *end != told => {
                    verdict.wrong.push(format!("{key} is {end}, its caller was told {told}"));
                }
                (Some(&"unfinished"), None) | (Some(_), Some(_)) => {}
                (Some(end), None) if !lost.contains(&node) => {
                    verdict.wrong.push(format!("{key} is {end}, and its caller still waits"));
                }
                (Some(_), None) => {}
            }
        }
        Ok(())
    }

    /// A saga that was started in a user's transaction is there if, and only if, the user's row is; and its event
    /// arrived.
    async fn users_rows(&self, verdict: &mut Verdict, sagas: &PgPool, rows: &[(Uuid, String, i16)]) -> Result<()> {
        let purchases: Vec<(String, bool)> =
            sqlx::query_as("SELECT key, announced FROM shop.purchase").fetch_all(sagas).await?;
        let in_transactions = |key: &&str| {
            let number = key.rsplit('-').next().and_then(|number| number.parse::<u64>().ok());
            number.is_some_and(|number| number.is_multiple_of(3))
        };
        let started = rows.iter().map(|(_, key, _)| key.as_str()).filter(in_transactions).collect();
        let bought: BTreeSet<&str> = purchases.iter().map(|(key, _)| key.as_str()).collect();
        let odd = bought.symmetric_difference(&started);
        verdict.wrong.extend(odd.map(|key| format!("{key} and the user's row do not stand or fall together")));
        let heard: Vec<String> = sqlx::query_scalar("SELECT key FROM heard").fetch_all(&self.pool).await?;
        let heard: BTreeSet<&str> = heard.iter().map(String::as_str).collect();
        let announced = purchases.iter().filter(|(_, announced)| *announced).map(|(key, _)| key.as_str()).collect();
        let odd = heard.symmetric_difference(&announced);
        verdict.wrong.extend(odd.map(|key| format!("{key} and its event do not stand or fall together")));
        Ok(())
    }
}

impl Verdict {
    /// How often a call had to be made again.
    pub fn repeated(&self) -> usize {
        self.refused.values().sum()
    }
}
