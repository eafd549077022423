//! Events through the outbox while its relays are killed: is each key published in its order, whole? And how fast is a relay?
//!
//! `cargo run --release -p saga-postgres --all-features --example outbox_order -- --events 1000000 --kills 50` prints a table, `--json` one object.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a program that measures may stop")]

mod drill;
mod node;
mod speed;
mod wire;

use clap::Parser;
use drill::{Drill, Tally};
use node::Orders;
use saga_postgres::testing::Postgres;
use serde::Serialize;
use speed::Speed;
use std::{process::ExitCode, sync::Arc, time::Duration};

/// Eight writers, a thousand keys, relays that are killed.
#[derive(Parser)]
struct Options {
    /// How many events are written.
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// Of how many keys.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(drill::IN_ONE..))]
    keys: u64,
    /// By how many writers at once.
    #[arg(long, default_value_t = 8)]
    writers: u64,
    /// How many relays run at once.
    #[arg(long, default_value_t = 2)]
    relays: usize,
    /// How often one of them is killed.
    #[arg(long, default_value_t = 50)]
    kills: u64,
    /// How often one of them is frozen, for longer than its lease.
    #[arg(long, default_value_t = 10)]
    freezes: u64,
    /// How long the broker takes for every hundred events, in milliseconds.
    #[arg(long, default_value_t = 2)]
    pause_ms: u64,
    /// How many events wait when the speed of a relay is measured.
    #[arg(long, default_value_t = 200_000)]
    backlog: u64,
    /// How many lanes the relay has whose speed is measured.
    #[arg(long, default_value_t = 2)]
    lanes: u16,
    /// One JSON object instead of the table.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    order: drill::Report,
    speed: Speed,
}

fn main() -> ExitCode {
    if node::work() {
        return ExitCode::SUCCESS;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(run(Options::parse()))
}

async fn run(options: Options) -> ExitCode {
    let postgres = Postgres::private().await.expect("a private Postgres");
    let (url, schema, lease) = (postgres.url(), "drill".to_owned(), Duration::from_secs(1));
    let tally = Arc::new(Tally::default());
    let broker = wire::listen(tally.clone(), Duration::from_millis(options.pause_ms)).await;
    let Options { events, keys, writers, relays, kills, freezes, .. } = options;
    let drill = Drill { events, keys, writers, relays, kills, freezes, lease };
    let orders = Orders { url: url.clone(), schema: schema.clone(), broker, lease };
    let order = drill::run(drill, &url, &schema, async || node::launch(&[], &orders).await, tally).await;
    let speed = speed::measure(&url, options.backlog, options.lanes).await;
    let report = Report { order, speed };
    match options.json {
        true => println!("{}", serde_json::to_string(&report).unwrap()),
        false => print(&report, postgres.version()),
    }
    postgres.stop().await;
    let drill::Report { lost, out_of_order, left_in_the_table, .. } = report.order;
    match (lost, out_of_order, left_in_the_table) {
        (0, 0, 0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn print(Report { order, speed }: &Report, version: &str) {
    println!("The outbox on PostgreSQL {version}\n");
    println!(
        "{} events of {} keys by {} writers, {} relay processes at once, {} killed, {} frozen: {:.1} s",
        order.events, order.keys, order.writers, order.relays, order.kills, order.freezes, order.seconds
    );
    println!("  lost          {:>9}", order.lost);
    println!("  out of order  {:>9}", order.out_of_order);
    println!("  repeats       {:>9}", order.duplicates);
    println!("  left behind   {:>9}", order.left_in_the_table);
    println!("\nOne relay, a broker that answers at once");
    println!("  a backlog of {} events: {:.0} a second", speed.backlog, speed.drained_per_s);
    println!(
        "  from the insert to the answer, at {:.0} transactions a second: p50 under {:.1} ms, p99 under {:.1} ms",
        speed.paced_per_s, speed.p50_ms, speed.p99_ms
    );
}
