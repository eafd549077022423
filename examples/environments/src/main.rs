//! Sagas on real servers, poolers and networks. See the README.

#![allow(unreachable_pub, missing_docs, reason = "a program has nobody outside")]

mod books;
mod cost;
mod node;
mod place;
mod pooler;
mod program;
mod proxy;
mod rows;
mod side_by_side;
mod stage;
mod standby;
mod table;
mod world;

// It lies beside the program that is also compiled against the previous release.
#[path = "bin/node/workload/mod.rs"]
mod workload;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use workload::Result;

/// Sagas on real servers, poolers and networks, with a ledger as the judge.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One environment after the other.
    Try(table::Plan),
    /// Two releases on one schema, under traffic. Call it by `scripts/side-by-side`.
    SideBySide(side_by_side::Plan),
    /// What the past, strangers and weight cost, in figures.
    #[command(subcommand)]
    Cost(cost::Plan),
    /// A process with heavy sagas.
    #[command(hide = true)]
    Heavy {
        #[command(flatten)]
        work: cost::weight::Work,
    },
    /// A process of a run.
    #[command(hide = true)]
    Node {
        #[command(flatten)]
        place: place::Place,
        #[command(flatten)]
        settings: workload::Settings,
    },
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    let run = async {
        match Arguments::parse().command {
            Command::Try(plan) => table::run(&plan).await,
            Command::SideBySide(plan) => side_by_side::run(&plan).await,
            Command::Cost(plan) => cost::run(&plan).await,
            Command::Heavy { work } => cost::weight::serve(&work).await,
            Command::Node { place, settings } => node::run(&place, settings).await,
        }
    };
    // Whoever is dropped takes along what it has started.
    let done = tokio::select! {
        done = run => done,
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
