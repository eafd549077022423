//! Sagas beside a transaction that stays open: nothing that has ended since can be vacuumed.

use super::{
    admin, median, quantile,
    service::{Service, Until},
};
use crate::{Result, stage::pool};
use saga_postgres::testing::Postgres;
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{sleep, sleep_until};

/// So many times customers come, at equal distances.
const TIMES: u32 = 20;
/// Of those, so many are the beginning, and as many the end.
const PART: usize = 5;
const CUSTOMERS: usize = 32;
/// How long it is looked at what an idle service does.
const IDLE: Duration = Duration::from_secs(15);

/// A look that finds nothing takes no longer, in milliseconds, as a rule; or it is made so seldom, since it reads all
/// that there is, that it takes so many of a second.
const LOOK: f64 = 2.0;
const SELDOM: f64 = 1.0;
/// Of its beginning, the throughput at the end.
const SHARE: f64 = 0.8;

#[derive(Debug, clap::Args)]
pub struct Plan {
    /// How long the transaction is open.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// How many sagas run beside it.
    #[arg(long, default_value_t = 20_000)]
    sagas: usize,
}

/// What is not as it should be.
pub async fn run(plan: &Plan) -> Result<Vec<String>> {
    let postgres = Postgres::private().await?;
    let log = postgres.data_dir().ok_or("a server that is not private")?.join("server.log");
    let url = postgres.url();
    let service = Arc::new(Service::open(&url, "saga").await?);
    let a_part = Until::Sagas(plan.sagas / TIMES as usize);
    service.serve(CUSTOMERS, a_part).await?;
    let before = looks(&url, &log).await?;

    let pool = pool(&url).await?;
    let mut held = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    sqlx::raw_sql("SELECT 1").execute(&mut *held).await?;
    let (began, mut rates) = (Instant::now(), vec![]);
    println!("| second | sagas/s | submit p99 ms | end p99 ms | event p99 ms |\n|---|---|---|---|---|");
    for time in 0..TIMES {
        let begins = began + Duration::from_secs(plan.seconds) * time / TIMES;
        sleep_until(begins.into()).await;
        let second = began.elapsed().as_secs_f64();
        let of = service.serve(CUSTOMERS, a_part).await?;
        println!(
            "| {second:.0} | {:.0} | {:.1} | {:.1} | {:.1} |",
            of.sagas_per_s, of.submit_p99, of.end_p99, of.lag_p99
        );
        rates.push(of.sagas_per_s);
    }
    sleep_until((began + Duration::from_secs(plan.seconds)).into()).await;
    let after = looks(&url, &log).await?;
    held.rollback().await?;
    pool.close().await;

    let mut missed = vec![];
    println!("\n| statement of an idle service | p50 ms before | p50 ms at the end | slowest ms | ms a second |");
    println!("|---|---|---|---|---|");
    for (statement, times) in after {
        let then = median(before.get(&statement).cloned().unwrap_or_default());
        let (now, slowest) = (median(times.clone()), quantile(times.clone(), 1.0));
        let a_second = times.iter().sum::<f64>() / IDLE.as_secs_f64();
        println!("| {statement} | {then:.2} | {now:.2} | {slowest:.1} | {a_second:.1} |");
        if now > LOOK && a_second > SELDOM {
            missed.push(format!("{statement}: {now:.2} ms, {a_second:.1} ms a second"));
        }
    }
    let (first, last) = (median(rates[..PART].to_vec()), median(rates[rates.len() - PART..].to_vec()));
    println!("\nsagas/s at the end, of the beginning: {:.2}", last / first);
    if last < SHARE * first {
        missed.push(format!("{last:.0} sagas/s at the end, {first:.0} at the beginning"));
    }
    if let Ok(service) = Arc::try_unwrap(service) {
        service.close().await;
    }
    postgres.stop().await;
    Ok(missed)
}

/// How long each statement of an idle service takes, in milliseconds, by what it says of itself first.
async fn looks(url: &str, log: &Path) -> Result<BTreeMap<String, Vec<f64>>> {
    // What customers left behind is over.
    sleep(Duration::from_secs(10)).await;
    let from = fs::read_to_string(log)?.len();
    admin(url, "ALTER SYSTEM SET log_min_duration_statement = 0").await?;
    admin(url, "SELECT pg_reload_conf()").await?;
    sleep(IDLE).await;
    admin(url, "ALTER SYSTEM RESET log_min_duration_statement").await?;
    admin(url, "SELECT pg_reload_conf()").await?;
    let mut looks: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for line in fs::read_to_string(log)?.get(from..).unwrap_or_default().lines() {
        if let Some((statement, time)) = executed(line) {
            looks.entry(statement.to_owned()).or_default().push(time);
        }
    }
    match looks.len() {
        0 => Err("the server logged no statement".into()),
        _ => Ok(looks),
    }
}

/// `.. duration: 0.123 ms  execute name: -- What it does. More of it.`
fn executed(line: &str) -> Option<(&str, f64)> {
    let (time, executed) = line.split_once("duration: ")?.1.split_once(" ms  execute ")?;
    let says = executed.split_once(": -- ")?.1;
    Some((says.split('.').next()?, time.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::executed;

    #[test]
    fn a_line_of_the_log_says_what_was_executed_and_how_long_it_took() {
        let line =
            "2026-01-01 UTC [7] LOG:  duration: 0.123 ms  execute sqlx_s_1: -- What a worker owns. Served by it.";
        assert_eq!(executed(line), Some(("What a worker owns", 0.123)));
        assert_eq!(executed("LOG:  duration: 0.1 ms  bind sqlx_s_1: -- What a worker owns."), None);
    }
}
