//! A shop in five services, whose orders survive a crash. See the README.

#![allow(unreachable_pub, reason = "a program has nobody outside")]

mod account;
mod books;
mod broker;
mod client;
mod databases;
mod delivery;
mod figures;
mod inventory;
mod load;
mod notification;
mod opening;
mod order;
mod payment;
mod process;
mod saga;
mod serve;
mod service;
mod telemetry;
mod tour;

use clap::{Parser, Subcommand};
use order::Way;
use std::process::ExitCode;

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// A shop in five services, whose orders survive a crash.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    telemetry: telemetry::Options,
}

#[derive(Subcommand)]
enum Command {
    /// Three orders with three fates, then the books (the default).
    Tour(Transport),
    /// Keeps the shop open, and prints where everything listens.
    Serve {
        #[command(flatten)]
        transport: Transport,
        /// The services listen at this port + 2, 4, 5, 6 and 8; 0 is for any free ports.
        #[arg(long, default_value_t = 8080, value_parser = clap::value_parser!(u16).range(..65_000))]
        port_base: u16,
    },
    /// Compares the books of an open shop; exits with 1 if they do not balance.
    Books(books::Places),
    /// Many users order in an open shop, once a second each; then the books. Exits with 1 if anything was not as it should be.
    Load(load::Options),
    /// One service, as a process of its own.
    #[command(subcommand)]
    Service(Service),
}

#[derive(clap::Args)]
struct Transport {
    /// How commands get to the services. Events go over Kafka in any case: the one in KAFKA_BROKERS, else a mock in this process.
    #[arg(long = "transport", value_enum, default_value_t = Way::Kafka)]
    way: Way,
}

#[derive(Subcommand)]
enum Service {
    Order {
        #[command(flatten)]
        place: service::Place,
        #[command(flatten)]
        participants: order::Participants,
        #[command(flatten)]
        transport: Transport,
    },
    Inventory(service::Place),
    Payment(service::Place),
    Delivery(service::Place),
    Notification(service::Place),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { command, telemetry } = Arguments::parse();
    let command = command.unwrap_or(Command::Tour(Transport { way: Way::Kafka }));
    let ended = run(command, telemetry).await;
    telemetry::stop();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Service {
    const fn name(&self) -> &'static str {
        match self {
            Self::Order { .. } => order::NAME,
            Self::Inventory(_) => inventory::NAME,
            Self::Payment(_) => payment::NAME,
            Self::Delivery(_) => delivery::NAME,
            Self::Notification(_) => notification::NAME,
        }
    }

    async fn serve(self) -> Result<()> {
        match self {
            Self::Order { place, participants, transport } => order::serve(&place, participants, transport.way).await,
            Self::Inventory(place) => inventory::serve(&place).await,
            Self::Payment(place) => payment::serve(&place).await,
            Self::Delivery(place) => delivery::serve(&place).await,
            Self::Notification(place) => notification::serve(&place).await,
        }
    }
}

async fn run(command: Command, telemetry: telemetry::Options) -> Result<()> {
    telemetry.start(if let Command::Service(service) = &command { service.name() } else { "ecommerce" })?;
    match command {
        Command::Tour(transport) => tour::tour(transport.way).await,
        Command::Serve { transport, port_base } => serve::serve(transport.way, port_base).await,
        Command::Books(places) => books::close(&places).await,
        Command::Load(options) => load::run(options).await,
        Command::Service(service) => telemetry::of(service.name(), service.serve()).await?,
    }
}
