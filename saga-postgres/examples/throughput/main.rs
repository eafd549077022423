//! How many sagas a second, and what one costs: the engine on a real Postgres with its default durability, beside two limits of
//! that same Postgres measured in the same run.
//!
//! `cargo run --release -p saga-postgres --all-features --example throughput` prints a table, `--json` one object.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a program that measures may stop")]

mod commands;
mod limits;
mod processors;

use clap::Parser;
use commands::ThreeCommands;
use saga_core::{
    Cx, Engine, Out, Outcome, Saga, SagaBuilder, StepError,
    transport::{LocalTransport, Transport},
};
use saga_postgres::{PgStore, testing::Postgres};
use serde::Serialize;
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// Measures sagas of four no-op steps, each durable.
#[derive(Parser)]
struct Options {
    /// Sagas of three commands to a participant in this process, in the place of those.
    #[arg(long)]
    commands: bool,
    /// Sagas in flight, one run each.
    #[arg(long, value_delimiter = ',', default_value = "1,32,128,1024")]
    in_flight: Vec<usize>,
    /// How long each run takes.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// How often all runs are made; the figures are medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// One JSON object instead of the table.
    #[arg(long)]
    json: bool,
}

struct FourSteps;

impl Saga for FourSteps {
    const NAME: &'static str = "throughput";
    const VERSION: u32 = 1;
    type Input = ();
    type Output = ();
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        saga.effect_free("one").run(nothing);
        saga.effect_free("two").run(nothing);
        saga.effect_free("three").run(nothing);
        saga.effect_free("four").run(nothing)
    }
}

async fn nothing(_: Cx<()>, (): ()) -> Result<(), StepError> {
    Ok(())
}

#[derive(Clone, Serialize)]
struct Run {
    in_flight: usize,
    sagas_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    commits_per_saga: f64,
    statements_per_saga: f64,
    wal_bytes_per_saga: f64,
    dead_tuples_per_saga: f64,
    /// Processor time, of this process and of the server.
    own_us_per_saga: f64,
    server_us_per_saga: f64,
    peak_rss_mb: f64,
}

#[derive(Serialize)]
struct Limits {
    /// How long five commits of one row each take one after the other.
    five_commits_ms: f64,
    a_sagas_per_s: f64,
    b_sagas_per_s: f64,
}

#[derive(Serialize)]
struct Report {
    runs: Vec<Run>,
    limits: Limits,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    let postgres = Postgres::private().await.expect("a private Postgres");
    let url = postgres.url();
    let store = PgStore::options(&url).unwrap().schema("engine").connect().await.unwrap();
    store.migrate().await.unwrap();
    PgStore::options(&url).unwrap().schema("limits").connect().await.unwrap().migrate().await.unwrap();
    let time = Duration::from_secs(options.seconds);
    let (mut five, mut a, mut b, mut runs) = (vec![], vec![], vec![], vec![]);
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        five.push(1000.0 / limits::measure(&url, "limits", include_str!("limit_a.sql"), 1, time).await);
        a.push(limits::measure(&url, "limits", include_str!("limit_a.sql"), 32, time).await);
        b.push(200.0 * limits::measure(&url, "limits", include_str!("limit_b.sql"), 4, time).await);
        for &in_flight in &options.in_flight {
            runs.push(match options.commands {
                false => measure::<FourSteps>(&store, Arc::new(LocalTransport::default()), in_flight, time).await,
                true => {
                    let transport = Arc::new(LocalTransport::default());
                    let participating = commands::participate(transport.clone()).await;
                    let run = measure::<ThreeCommands>(&store, transport, in_flight, time).await;
                    participating.stop().await;
                    run
                }
            });
        }
    }
    let of = |in_flight: usize| {
        let runs: Vec<Run> = runs.iter().filter(|run| run.in_flight == in_flight).cloned().collect();
        let median_of = |field: fn(&Run) -> f64| median(runs.iter().map(field).collect());
        Run {
            in_flight,
            sagas_per_s: median_of(|run| run.sagas_per_s),
            p50_ms: median_of(|run| run.p50_ms),
            p99_ms: median_of(|run| run.p99_ms),
            commits_per_saga: median_of(|run| run.commits_per_saga),
            statements_per_saga: median_of(|run| run.statements_per_saga),
            wal_bytes_per_saga: median_of(|run| run.wal_bytes_per_saga),
            dead_tuples_per_saga: median_of(|run| run.dead_tuples_per_saga),
            own_us_per_saga: median_of(|run| run.own_us_per_saga),
            server_us_per_saga: median_of(|run| run.server_us_per_saga),
            peak_rss_mb: median_of(|run| run.peak_rss_mb),
        }
    };
    let report = Report {
        runs: options.in_flight.iter().copied().map(of).collect(),
        limits: Limits { five_commits_ms: median(five), a_sagas_per_s: median(a), b_sagas_per_s: median(b) },
    };
    match options.json {
        true => println!("{}", serde_json::to_string(&report).unwrap()),
        false => {
            let of =
                if options.commands { "three commands to a participant in this process" } else { "four no-op steps" };
            print(&report, of, postgres.version());
        }
    }
    postgres.stop().await;
}

/// One run: so many sagas in flight, each followed by the next, until the time is over.
async fn measure<S: Saga<Input = (), Output = (), Deps = ()>>(
    store: &PgStore,
    transport: Arc<dyn Transport>,
    in_flight: usize,
    time: Duration,
) -> Run {
    // Linux only; elsewhere the figure is the peak of the whole process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let engine = Engine::builder(store.clone())
        .configure(|config| config.sagas = 2 * in_flight.max(512))
        .transport("throughput", transport)
        .register::<S>(())
        .unwrap()
        .start()
        .await
        .unwrap();
    let sagas = engine.sagas::<S>();
    let latencies = Arc::new(Mutex::new(vec![]));
    let run = format!("{in_flight}-{}", saga_core::SagaId::generate());
    let before = Counters::read(store).await;
    let began = Instant::now();
    let clients = (0..in_flight).map(|client| {
        let (sagas, latencies, run) = (sagas.clone(), latencies.clone(), run.clone());
        tokio::spawn(async move {
            let mut mine = vec![];
            while began.elapsed() < time {
                let submitted = Instant::now();
                let saga = sagas.submit(format!("{run}-{client}-{}", mine.len()), ()).await.unwrap();
                assert_eq!(saga.outcome().await.unwrap(), Outcome::Completed(()));
                mine.push(submitted.elapsed());
            }
            latencies.lock().unwrap().extend(mine);
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    let took = began.elapsed().as_secs_f64();
    let after = Counters::read(store).await;
    engine.shutdown(Duration::from_secs(5)).await;
    let mut latencies = std::mem::take(&mut *latencies.lock().unwrap());
    latencies.sort_unstable();
    let count = latencies.len() as f64;
    let at = |share: f64| latencies[((count - 1.0) * share) as usize].as_secs_f64() * 1000.0;
    let per_saga = |counter: fn(&Counters) -> f64| (counter(&after) - counter(&before)) / count;
    Run {
        in_flight,
        sagas_per_s: count / took,
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        commits_per_saga: per_saga(|counters| counters.commits),
        statements_per_saga: per_saga(|counters| counters.statements),
        wal_bytes_per_saga: per_saga(|counters| counters.wal),
        dead_tuples_per_saga: per_saga(|counters| counters.dead),
        own_us_per_saga: per_saga(|counters| counters.own),
        server_us_per_saga: per_saga(|counters| counters.server),
        peak_rss_mb: peak_rss_mb(),
    }
}

struct Counters {
    commits: f64,
    statements: f64,
    wal: f64,
    dead: f64,
    /// Microseconds of processor time.
    own: f64,
    server: f64,
}

impl Counters {
    /// What the server has counted. Its backends report when they are idle, at most once a second: so it waits a little first.
    async fn read(store: &PgStore) -> Self {
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let sql = "SELECT (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database())::float8, \
                   pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8, \
                   (SELECT sum(n_tup_upd + n_tup_del) FROM pg_stat_user_tables WHERE schemaname = 'engine')::float8, \
                   pg_backend_pid()";
        let (commits, wal, dead, backend): (f64, f64, f64, i32) =
            sqlx::query_as(sql).fetch_one(store.pool()).await.unwrap();
        let (own, server) = (processors::own(), processors::server(backend));
        Self { commits, statements: store.statements_sent() as f64, wal, dead, own, server }
    }
}

fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn print(report: &Report, of: &str, version: &str) {
    let Limits { five_commits_ms: five, a_sagas_per_s: a, b_sagas_per_s: b } = report.limits;
    println!("Sagas of {of}, each durable, on PostgreSQL {version} with fsync and synchronous_commit on.\n");
    println!(
        "in flight   sagas/s    p50 ms    p99 ms  commits  statements  WAL bytes  dead tuples  own µs  server µs  peak MB   of (a)   of (b)"
    );
    for run in &report.runs {
        println!(
            "{:>9} {:>9.0} {:>9.2} {:>9.2} {:>8.2} {:>11.2} {:>10.0} {:>12.2} {:>7.0} {:>10.0} {:>8.0} {:>7.2}x {:>7.2}x",
            run.in_flight,
            run.sagas_per_s,
            run.p50_ms,
            run.p99_ms,
            run.commits_per_saga,
            run.statements_per_saga,
            run.wal_bytes_per_saga,
            run.dead_tuples_per_saga,
            run.own_us_per_saga,
            run.server_us_per_saga,
            run.peak_rss_mb,
            run.sagas_per_s / a,
            run.sagas_per_s / b,
        );
    }
    println!(
        "\nThe columns from commits to server µs are per saga; µs are processor time of this process and of Postgres."
    );
    println!(
        "alone     {five:>9.2} ms a saga: the same rows, five commits one after the other, no engine, 1 connection"
    );
    println!("limit (a) {a:>9.0} sagas/s: the same rows, one transaction a step, no engine, 32 connections");
    println!(
        "limit (b) {b:>9.0} sagas/s: the same rows by the group-commit statement alone, 200 sagas a statement, 4 connections"
    );
}
