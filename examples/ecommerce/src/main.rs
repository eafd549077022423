//! A shop in eight services, whose orders survive a crash. See the README.

#![allow(unreachable_pub, reason = "a program has nobody outside")]

mod account;
mod books;
mod breaker;
mod broker;
mod client;
mod databases;
mod delivery;
mod figures;
mod gateway;
mod identity;
mod inventory;
mod load;
mod money;
mod notification;
mod opening;
mod order;
mod payment;
mod picture;
mod problem;
mod process;
mod product;
mod saga;
mod serve;
mod service;
mod telemetry;
mod together;
mod tour;
mod twice;
mod user;

use clap::{Parser, Subcommand};
use order::Way;
use std::{process::ExitCode, sync::Arc};

/// A sixth less work for the processor than with the system's allocator, under the load run.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T, E = Error> = std::result::Result<T, E>;

/// A shop in eight services, whose orders survive a crash.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    telemetry: telemetry::Options,
}

#[derive(Subcommand)]
enum Command {
    /// Seven scenes, each with a picture of what happened, then the books (the default). Exits with 1 if anything was not as it should be.
    Tour {
        #[command(flatten)]
        transport: Transport,
        /// Draws Mermaid diagrams.
        #[arg(long)]
        mermaid: bool,
    },
    /// Keeps the shop open, and prints where everything listens; or one of its services.
    #[command(args_conflicts_with_subcommands = true)]
    Serve {
        #[command(flatten)]
        transport: Transport,
        #[command(flatten)]
        ports: serve::Ports,
        /// Each service is a process of its own, which is started again when it ends; else all are in this one.
        #[arg(long)]
        processes: bool,
        /// The databases' names begin with this: a server may have those of several shops.
        #[arg(long, env = "DATABASES", default_value = "ecommerce")]
        databases: String,
        #[command(flatten)]
        rules: Box<gateway::Rules>,
        #[command(subcommand)]
        service: Option<Box<Service>>,
    },
    /// Compares the books of an open shop; exits with 1 if they do not balance.
    Books(books::Places),
    /// Many users order in an open shop, once a second each; then the books. Exits with 1 if anything was not as it should be.
    Load(load::Options),
}

#[derive(clap::Args)]
struct Transport {
    /// How commands get to the services. Events go over Kafka in any case: the one in KAFKA_BROKERS, else a mock in this process.
    #[arg(long = "transport", value_enum, default_value_t = Way::Kafka)]
    way: Way,
}

/// One service, as a process of its own.
#[derive(Subcommand)]
enum Service {
    /// The one door for clients; it has no database.
    Gateway {
        #[command(flatten)]
        address: service::Address,
        #[command(flatten)]
        services: gateway::Services,
        #[command(flatten)]
        rules: gateway::Rules,
    },
    User(service::Place),
    Order {
        #[command(flatten)]
        on_kafka: OnKafka,
        #[command(flatten)]
        others: order::Others,
        #[command(flatten)]
        transport: Transport,
    },
    Inventory(OnKafka),
    Payment(OnKafka),
    Delivery(OnKafka),
    Product(service::Place),
    Notification(OnKafka),
}

#[derive(clap::Args)]
struct OnKafka {
    #[command(flatten)]
    place: service::Place,
    #[command(flatten)]
    broker: broker::Connection,
}

impl OnKafka {
    async fn open(self, offset: u16) -> Result<(service::Site, Arc<dyn saga_core::transport::Transport>)> {
        Ok((self.place.open(offset).await?, self.broker.transport().await?))
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { command, telemetry } = Arguments::parse();
    let command = command.unwrap_or(Command::Tour { transport: Transport { way: Way::Kafka }, mermaid: false });
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

async fn run(command: Command, telemetry: telemetry::Options) -> Result<()> {
    telemetry.start(match &command {
        Command::Serve { service: Some(service), .. } => service.name(),
        _ => "ecommerce",
    })?;
    match command {
        Command::Tour { transport, mermaid } => tour::tour(transport.way, mermaid).await,
        Command::Serve { service: Some(service), .. } => telemetry::of(service.name(), service.serve()).await,
        Command::Serve { transport, ports, processes, databases, rules, service: None } => {
            serve::serve(transport.way, ports, processes, databases, *rules).await
        }
        Command::Books(places) => books::close(&places).await,
        Command::Load(options) => load::run(options).await,
    }
}

impl Service {
    const fn name(&self) -> &'static str {
        match self {
            Self::Gateway { .. } => gateway::NAME,
            Self::User(_) => user::NAME,
            Self::Order { .. } => order::NAME,
            Self::Inventory(_) => inventory::NAME,
            Self::Payment(_) => payment::NAME,
            Self::Delivery(_) => delivery::NAME,
            Self::Product(_) => product::NAME,
            Self::Notification(_) => notification::NAME,
        }
    }

    async fn serve(self) -> Result<()> {
        match self {
            Self::Gateway { address, services, rules } => {
                gateway::serve(address.open(gateway::OFFSET).await?, services, rules).await
            }
            Self::User(place) => user::serve(place.open(user::OFFSET).await?).await,
            Self::Order { on_kafka, others, transport } => {
                let (site, kafka) = on_kafka.open(order::OFFSET).await?;
                order::serve(site, kafka, others, transport.way).await
            }
            Self::Inventory(on_kafka) => {
                let (site, kafka) = on_kafka.open(inventory::OFFSET).await?;
                inventory::serve(site, kafka).await
            }
            Self::Payment(on_kafka) => {
                let (site, kafka) = on_kafka.open(payment::OFFSET).await?;
                payment::serve(site, kafka).await
            }
            Self::Delivery(on_kafka) => {
                let (site, kafka) = on_kafka.open(delivery::OFFSET).await?;
                delivery::serve(site, kafka).await
            }
            Self::Product(place) => product::serve(place.open(product::OFFSET).await?).await,
            Self::Notification(on_kafka) => {
                let (site, kafka) = on_kafka.open(notification::OFFSET).await?;
                notification::serve(site, kafka).await
            }
        }
    }
}
