//! What a service pays for its past, for what is somebody else's, and for weight: in figures, with what they may be at
//! most.

mod full;
mod held;
mod service;
pub mod weight;

use crate::{Result, stage::pool};
use sqlx::AssertSqlSafe;
use std::time::Duration;

/// What is measured.
#[derive(Debug, clap::Subcommand)]
pub enum Plan {
    /// Sagas beside a transaction that stays open: throughput from its beginning to its end, and looks that find nothing.
    Held(held::Plan),
    /// A schema that is full of what has ended, of what waits and of strangers' things, beside an empty one.
    Full(full::Plan),
    /// Heavy sagas through a slow network: taken over from a node that died, and made at once.
    Weight,
}

/// Measures. An error if a figure is not as it should be.
pub async fn run(plan: &Plan) -> Result<()> {
    let missed = match plan {
        Plan::Held(plan) => held::run(plan).await?,
        Plan::Full(plan) => full::run(plan).await?,
        Plan::Weight => {
            let mut missed = vec![];
            for task in [weight::TAKEN_OVER, weight::AT_ONCE] {
                let found = weight::run(&task).await?;
                println!("{}", found.says);
                missed.extend(found.missed);
            }
            missed
        }
    };
    match missed.is_empty() {
        true => Ok(()),
        false => Err(missed.join("; ").into()),
    }
}

/// Runs SQL, past everything.
async fn admin(url: &str, sql: &str) -> Result<()> {
    let pool = pool(url).await?;
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&pool).await?;
    pool.close().await;
    Ok(())
}

fn millis(time: Duration) -> f64 {
    1000.0 * time.as_secs_f64()
}

/// The value that this share of them does not exceed. Not a number if there are none.
fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1) as f64;
    values.get((last * share).round() as usize).copied().unwrap_or(f64::NAN)
}

fn median(values: Vec<f64>) -> f64 {
    quantile(values, 0.5)
}
