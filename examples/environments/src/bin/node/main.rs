//! A node of one release, for `scripts/side-by-side`: it is compiled twice, against this checkout and against an older
//! one, from this directory. So it uses only what both of them have.

#![allow(unreachable_pub, missing_docs, reason = "a program has nobody outside")]

mod workload;

use clap::Parser;
use saga_postgres::PgStore;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use workload::{Result, Settings, serve};

#[derive(Parser)]
struct Arguments {
    /// Where the sagas are.
    #[arg(long)]
    store: String,
    #[command(flatten)]
    settings: Settings,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// As every service does at its start: migrate, then serve.
async fn run(Arguments { store, settings }: Arguments) -> Result<()> {
    let store = PgStore::connect(&store).await?;
    store.migrate().await?;
    serve(store, settings).await
}
