//! A load run: many users, each of whom acts once a second, and two service levels: how soon an order is answered, and how soon it has its final state.
//!
//! Durations count from when a user meant to act, not from when the last answer let it: a shop that is slow makes those wait who come after. When an order got its final state is
//! what the shop says (`endedAt`), asked for a user's orders at once, now and then; so run it where the shop's clock is.

mod report;
mod user;

use crate::{Result, books, order::Books};
use report::{Report, percentile};
use reqwest::Client;
use serde::de::DeserializeOwned;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    task::JoinSet,
    time::{interval, sleep},
};
use user::User;

/// For load alone: its stock, and the money of these users, do not run out.
pub const PRODUCT: i64 = 1_000;
pub const FIRST_USER: i64 = 1_001;
pub const MOST_USERS: i64 = 1_000;

/// How long orders may take to end after the last one was placed.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, clap::Args)]
pub struct Options {
    /// How many users there are; each acts once a second.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(i64).range(1..=MOST_USERS))]
    users: i64,
    /// How long it takes until all of them are there.
    #[arg(long, default_value = "10s", value_parser = duration)]
    ramp: Duration,
    /// How long they all stay.
    #[arg(long, default_value = "30s", value_parser = duration)]
    hold: Duration,
    /// Where they order.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Who they say they are: a bearer token that may order for everybody.
    #[arg(long, env = "TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The result as JSON on stdout; progress is on stderr.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    books: books::Places,
}

fn duration(text: &str) -> Result<Duration> {
    let (number, unit) = text.split_at(text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len()));
    let unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return Err("a duration is a number with ms, s or m, as 30s".into()),
    };
    Ok(Duration::from_millis(number.parse::<u32>().map(u64::from)? * unit))
}

/// What the users saw.
#[derive(Default)]
struct Seen {
    users: i64,
    answers: Vec<Answer>,
    /// How often a user did not act at all, because the shop was too slow.
    missed: usize,
    /// By their ids.
    orders: HashMap<String, Order>,
    /// Of answers that were not as they should be: what was wrong.
    failed: Vec<String>,
    last_answer: Option<SystemTime>,
}

/// A good one.
struct Answer {
    at: Instant,
    took: Duration,
}

/// An order that was answered.
struct Order {
    meant: SystemTime,
    ended: Option<(String, SystemTime)>,
}

/// Orders, waits until the last has ended, and compares the books. Nobody else may order meanwhile: then each order is there once. An error if anything was not as it should be.
pub async fn run(options: Options) -> Result<()> {
    // No idle connection is given up before its user acts again.
    let http = Client::builder().pool_idle_timeout(Duration::from_secs(60)).timeout(Duration::from_secs(30)).build()?;
    let before: Books = read(&http, &options.books.order).await?;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let began = Instant::now();
    let until = began + options.ramp + options.hold;
    let mut users = JoinSet::new();
    for number in 0..options.users {
        let user = User::new(FIRST_USER + number, &options, http.clone(), seen.clone());
        let starts = began + options.ramp.mul_f64(number as f64 / options.users as f64);
        users.spawn(user.act(starts, until));
    }
    let progress = tokio::spawn(tell_progress(seen.clone()));
    let users = users.join_all().await;
    progress.abort();
    when_all_have_ended(&http, &options.books.order).await?;
    let mut asking = JoinSet::new();
    for user in users {
        asking.spawn(async move { user.look_up().await });
    }
    asking.join_all().await;

    let after: Books = read(&http, &options.books.order).await?;
    let report = Report::of(&options, began, &lock(&seen), after.unfinished);
    let lines = books::compare(&options.books).await?;
    let balanced = books::balance(&lines);
    match options.json {
        true => println!("{}", report.json(balanced)),
        false => {
            report.print();
            books::print(&lines);
        }
    }
    let placed =
        after.confirmed + after.cancelled + after.unfinished - before.confirmed - before.cancelled - before.unfinished;
    match (report.is_good(placed), balanced) {
        (Ok(()), true) => Ok(()),
        (Ok(()), false) => Err("the books do not balance".into()),
        (Err(why), _) => Err(why.into()),
    }
}

/// A line a second.
async fn tell_progress(seen: Arc<Mutex<Seen>>) {
    let mut seconds = interval(Duration::from_secs(1));
    seconds.tick().await;
    let mut told = 0;
    for second in 1.. {
        seconds.tick().await;
        let seen = lock(&seen);
        let mut new: Vec<Duration> = seen.answers[told..].iter().map(|answer| answer.took).collect();
        told = seen.answers.len();
        let p95 =
            percentile(&mut new, 0.95).map_or_else(|| "-".into(), |p95| format!("{:.0}", p95.as_secs_f64() * 1e3));
        eprintln!(
            "{second:>4} s {:>5} users {:>6} answers/s, p95 {p95:>5} ms {:>5} failed",
            seen.users,
            new.len(),
            seen.failed.len()
        );
    }
}

async fn when_all_have_ended(http: &Client, order: &str) -> Result<()> {
    let began = Instant::now();
    while read::<Books>(http, order).await?.unfinished > 0 && began.elapsed() < PATIENCE {
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

async fn read<T: DeserializeOwned>(http: &Client, service: &str) -> Result<T> {
    Ok(http.get(format!("{service}/consistency")).send().await?.error_for_status()?.json().await?)
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
