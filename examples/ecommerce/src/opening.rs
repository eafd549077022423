//! Opening the shop: databases, the broker, and each service as a process of its own.

use crate::{
    Result,
    broker::Broker,
    databases::Databases,
    delivery, inventory, notification,
    order::{self, Way},
    payment,
    process::Process,
};

pub struct Services {
    pub order: Process,
    pub inventory: Process,
    pub payment: Process,
    pub delivery: Process,
    pub notification: Process,
}

impl Services {
    /// Each at this port plus a number of its own, or at any free one if it is 0.
    pub async fn start(postgres: &mut Databases, broker: &Broker, way: Way, port_base: u16) -> Result<Self> {
        let port = |offset| if port_base == 0 { 0 } else { port_base + offset };
        let known = broker.arguments();
        let inventory = Process::start(inventory::NAME, port(4), postgres.of(inventory::NAME).await?, known.clone());
        let payment = Process::start(payment::NAME, port(5), postgres.of(payment::NAME).await?, known.clone());
        let delivery = Process::start(delivery::NAME, port(6), postgres.of(delivery::NAME).await?, known.clone());
        let notification =
            Process::start(notification::NAME, port(8), postgres.of(notification::NAME).await?, known.clone());
        let (inventory, payment, delivery, notification) =
            tokio::try_join!(inventory, payment, delivery, notification)?;
        let others = [&inventory, &payment, &delivery].map(|service| format!("--{}={}", service.name, service.url));
        let known = known.into_iter().chain(others).chain([way.argument()]).collect();
        let order = Process::start(order::NAME, port(2), postgres.of(order::NAME).await?, known).await?;
        Ok(Self { order, inventory, payment, delivery, notification })
    }

    pub fn all(&self) -> [&Process; 5] {
        [&self.order, &self.inventory, &self.payment, &self.delivery, &self.notification]
    }

    pub fn into_all(self) -> [Process; 5] {
        [self.order, self.inventory, self.payment, self.delivery, self.notification]
    }
}
