//! A shop in four services, whose orders survive a crash. See the README.

#![allow(unreachable_pub, reason = "a program has nobody outside")]

mod barrier;
mod books;
mod client;
mod databases;
mod delivery;
mod inventory;
mod order;
mod payment;
mod process;
mod saga;
mod serve;
mod service;
mod tour;
mod wire;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// A shop in four services, whose orders survive a crash.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Three orders with three fates, then the books (the default).
    Tour,
    /// Keeps the shop open, and prints where everything listens.
    Serve {
        /// The services listen at this port + 2, 4, 5 and 6; 0 is for any free ports.
        #[arg(long, default_value_t = 8080, value_parser = clap::value_parser!(u16).range(..65_000))]
        port_base: u16,
    },
    /// Compares the books of an open shop; exits with 1 if they do not balance.
    Books {
        #[arg(long, default_value = "http://127.0.0.1:8082")]
        order: String,
        #[command(flatten)]
        others: order::Participants,
    },
    /// One service, as a process of its own.
    #[command(subcommand)]
    Service(Service),
}

#[derive(Subcommand)]
enum Service {
    Order {
        #[command(flatten)]
        place: service::Place,
        #[command(flatten)]
        participants: order::Participants,
    },
    Inventory(service::Place),
    Payment(service::Place),
    Delivery(service::Place),
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,sqlx=error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(Arguments::parse().command.unwrap_or(Command::Tour)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Tour => tour::tour().await,
        Command::Serve { port_base } => serve::serve(port_base).await,
        Command::Books { order, others } => books::close(&order, &others).await,
        Command::Service(Service::Order { place, participants }) => order::serve(&place, participants).await,
        Command::Service(Service::Inventory(place)) => {
            service::serve(inventory::router(&place.database).await?, &place).await
        }
        Command::Service(Service::Payment(place)) => {
            service::serve(payment::router(&place.database).await?, &place).await
        }
        Command::Service(Service::Delivery(place)) => {
            service::serve(delivery::router(&place.database).await?, &place).await
        }
    }
}
