//! Sagas over a real Kafka: what they cost, and what they survive. See the README.

#![allow(unreachable_pub, missing_docs, reason = "a program has nobody outside")]

mod arena;
mod faults;
mod figures;
mod mischief;
mod node;
mod outbox;
mod purchase;
mod verdict;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// Sagas over a real Kafka: what they cost, and what they survive.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Brokers, databases and processes go away and come back. Call it by `scripts/kafka run --`.
    Faults {
        #[arg(long, env = "KAFKA_BROKERS")]
        brokers: String,
        #[command(flatten)]
        plan: faults::Plan,
    },
    /// Latency and throughput of a saga of three commands.
    Figures {
        #[arg(long, env = "KAFKA_BROKERS")]
        brokers: String,
        #[command(flatten)]
        plan: figures::Plan,
    },
    /// A process of a run.
    #[command(hide = true)]
    Node {
        role: node::Role,
        #[command(flatten)]
        places: node::Places,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let done = match Arguments::parse().command {
        Command::Faults { brokers, plan } => faults::run(&brokers, &plan).await,
        Command::Figures { brokers, plan } => figures::run(&brokers, &plan).await,
        Command::Node { role, places } => node::run(role, &places).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
