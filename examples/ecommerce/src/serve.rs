//! The shop, open until it is told to close: in one process, or with a process for each service.

use crate::{
    Result,
    broker::{Broker, Connection},
    databases::Databases,
    delivery,
    gateway::{self, LocalKey, Rules},
    inventory, notification,
    opening::Services,
    order::{self, Way},
    payment,
    process::Process,
    product,
    service::{Door, PORT_BASE, Site, told_to_stop},
    telemetry, user,
};
use saga_core::transport::Transport;
use std::sync::Arc;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Where the services listen.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Ports {
    /// The services listen at this port (the gateway), and + 1, 2, 4, 5, 6, 7 and 8; 0 is for any free ports.
    #[arg(long = "port-base", env = "PORT_BASE", default_value_t = PORT_BASE, value_parser = clap::value_parser!(u16).range(..65_000))]
    base: u16,
}

impl Ports {
    /// Any free ones.
    pub const ANY: Self = Self { base: 0 };

    pub const fn of(self, offset: u16) -> u16 {
        if self.base == 0 { 0 } else { self.base + offset }
    }
}

pub async fn serve(way: Way, ports: Ports, processes: bool, databases: String, rules: Rules) -> Result<()> {
    let (rules, key) = rules.or_local_key()?;
    let mut postgres = Databases::start(databases).await?;
    let broker = Broker::start().await?;
    println!("{}\n{}\n{}\n", postgres.in_use(), broker.in_use(), way.told());
    match processes {
        true => with_a_process_each(&mut postgres, &broker, way, ports, rules, key).await?,
        false => in_one_process(&mut postgres, &broker, way, ports, rules, key).await?,
    }
    postgres.stop().await;
    Ok(())
}

async fn in_one_process(
    postgres: &mut Databases,
    broker: &Broker,
    way: Way,
    ports: Ports,
    rules: Rules,
    key: Option<LocalKey>,
) -> Result<()> {
    let (stop, mut opened) = (CancellationToken::new(), vec![]);
    let mut open = async |name: &'static str, offset| {
        let database = postgres.of(name).await?;
        let site = Site { door: Door::at(ports.of(offset), stop.clone()).await?, database };
        opened.push((name, site.door.url()?, site.database.clone()));
        Ok::<_, crate::Error>(site)
    };
    let user = open(user::NAME, user::OFFSET).await?;
    let order = open(order::NAME, order::OFFSET).await?;
    let inventory = open(inventory::NAME, inventory::OFFSET).await?;
    let payment = open(payment::NAME, payment::OFFSET).await?;
    let delivery = open(delivery::NAME, delivery::OFFSET).await?;
    let product = open(product::NAME, product::OFFSET).await?;
    let notification = open(notification::NAME, notification::OFFSET).await?;
    let others = order::Others {
        user: user.door.url()?,
        inventory: inventory.door.url()?,
        payment: payment.door.url()?,
        delivery: delivery.door.url()?,
        product: product.door.url()?,
    };
    let behind = gateway::Services {
        user: user.door.url()?,
        order: order.door.url()?,
        inventory: inventory.door.url()?,
        payment: payment.door.url()?,
        delivery: delivery.door.url()?,
        product: product.door.url()?,
        notification: notification.door.url()?,
    };
    let door = Door::at(ports.of(gateway::OFFSET), stop.clone()).await?;
    let gateway = door.url()?;

    let kafka = broker.connection();
    let mut services = JoinSet::new();
    services.spawn(telemetry::of(user::NAME, user::serve(user)));
    services.spawn(telemetry::of(product::NAME, product::serve(product)));
    services.spawn(telemetry::of(inventory::NAME, on_kafka(kafka.clone(), inventory, inventory::serve)));
    services.spawn(telemetry::of(payment::NAME, on_kafka(kafka.clone(), payment, payment::serve)));
    services.spawn(telemetry::of(delivery::NAME, on_kafka(kafka.clone(), delivery, delivery::serve)));
    services.spawn(telemetry::of(notification::NAME, on_kafka(kafka.clone(), notification, notification::serve)));
    let take_orders = async move |site, kafka| order::serve(site, kafka, others, way).await;
    services.spawn(telemetry::of(order::NAME, on_kafka(kafka, order, take_orders)));
    services.spawn(telemetry::of(gateway::NAME, gateway::serve(door, behind, rules)));
    tokio::select! {
        up = are_up(&opened) => up?,
        Some(ended) = services.join_next() => return ended?,
    }
    for (name, url, database) in &opened {
        told(name, url, std::process::id(), database);
    }
    invite(&gateway, std::process::id(), key)?;
    tokio::select! {
        () = told_to_stop() => {}
        Some(ended) = services.join_next() => ended??,
    }
    stop.cancel();
    while let Some(ended) = services.join_next().await {
        ended??;
    }
    Ok(())
}

/// Each has a connection of its own to the broker.
async fn on_kafka<F: Future<Output = Result<()>>>(
    kafka: Connection,
    site: Site,
    serve: impl FnOnce(Site, Arc<dyn Transport>) -> F,
) -> Result<()> {
    serve(site, kafka.transport().await?).await
}

async fn with_a_process_each(
    postgres: &mut Databases,
    broker: &Broker,
    way: Way,
    ports: Ports,
    rules: Rules,
    key: Option<LocalKey>,
) -> Result<()> {
    let services = Services::start(postgres, broker, way, ports).await?;
    for service in services.all() {
        told(service.name, &service.url, service.id(), &service.database);
    }
    let gateway = services.gateway(ports, rules.arguments()).await?;
    invite(&gateway.url, gateway.id(), key)?;
    println!("kill -9 a process while you do: it is started again.");

    let (closing, closed) = watch::channel(());
    let mut kept = JoinSet::new();
    for service in services.into_all().into_iter().chain([gateway]) {
        kept.spawn(keep(service, closed.clone()));
    }
    tokio::select! {
        () = told_to_stop() => {}
        Some(failed) = kept.join_next() => failed??,
    }
    closing.send_replace(());
    while let Some(stopped) = kept.join_next().await {
        stopped??;
    }
    Ok(())
}

/// A service answers when it is ready: until then, its callers wait.
async fn are_up(opened: &[(&str, String, String)]) -> Result<()> {
    for (_, url, _) in opened {
        reqwest::get(format!("{url}/health/live")).await?.error_for_status()?;
    }
    Ok(())
}

fn told(name: &str, url: &str, process: u32, database: &str) {
    println!("{name:<12} {url}  process {process:<8} {database}");
}

/// The gateway is the door; what is behind it can be asked directly as well, without a token.
fn invite(gateway: &str, process: u32, key: Option<LocalKey>) -> Result<()> {
    println!("{:<12} {gateway}  process {process}\n", gateway::NAME);
    let token = match key {
        Some(key) => {
            println!("{}\n", key.told(gateway)?);
            " -H \"Authorization: Bearer $BUYER\""
        }
        None => "",
    };
    println!(
        "Try it; Ctrl-C closes the shop.\n\
         curl {gateway}/products\n\
         curl '{gateway}/orders?wait=5s'{token} --json '{{\"userId\":1,\"productId\":1,\"quantity\":1}}'\n\
         curl '{gateway}/orders?userId=1'{token}"
    );
    Ok(())
}

/// Starts a service again when it ends, until the shop closes.
async fn keep(mut service: Process, mut closed: watch::Receiver<()>) -> Result<()> {
    loop {
        tokio::select! {
            _ = closed.changed() => return service.stop().await,
            ended = service.ended() => {
                println!("{} ended ({})", service.name, ended?);
                service.start_again().await?;
                println!("{} is back, as process {}", service.name, service.id());
            }
        }
    }
}
