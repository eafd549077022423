//! The shop, open until it is told to close.

use crate::{
    Result, broker::Broker, databases::Databases, opening::Services, order::Way, process::Process,
    service::told_to_stop,
};
use tokio::{sync::watch, task::JoinSet};

pub async fn serve(way: Way, port_base: u16) -> Result<()> {
    let mut postgres = Databases::start("ecommerce").await?;
    let broker = Broker::start().await?;
    let services = Services::start(&mut postgres, &broker, way, port_base).await?;

    println!("{}\n{}\n{}\n", postgres.in_use(), broker.in_use(), way.told());
    for service in services.all() {
        println!("{:<12} {}  process {:<8} {}", service.name, service.url, service.id(), service.database);
    }
    println!(
        "\nTry it, and kill -9 a process while you do: it is started again.\n\
         curl {0}/orders --json '{{\"userId\":1,\"productId\":1,\"quantity\":1}}'\n\
         curl '{0}/orders?userId=1'\n\
         curl {1}/inventory/1\n\
         Ctrl-C closes the shop.",
        services.order.url, services.inventory.url
    );

    let (closing, closed) = watch::channel(());
    let mut kept = JoinSet::new();
    for service in services.into_all() {
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
    postgres.stop().await;
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
