//! Opening the shop with each service as a process of its own.

use crate::{
    Result,
    broker::Broker,
    databases::Databases,
    delivery, gateway, inventory, notification,
    order::{self, Way},
    payment,
    process::Process,
    product,
    serve::Ports,
    user,
};

pub struct Services {
    pub user: Process,
    pub order: Process,
    pub inventory: Process,
    pub payment: Process,
    pub delivery: Process,
    pub product: Process,
    pub notification: Process,
}

impl Services {
    pub async fn start(postgres: &mut Databases, broker: &Broker, way: Way, ports: Ports) -> Result<Self> {
        let mut start = async |name, offset, arguments| {
            Ok::<_, crate::Error>(Process::start(name, ports.of(offset), postgres.of(name).await?, arguments))
        };
        let kafka = broker.arguments();
        let (user, inventory, payment, delivery, product, notification) = tokio::try_join!(
            start(user::NAME, user::OFFSET, vec![]).await?,
            start(inventory::NAME, inventory::OFFSET, kafka.clone()).await?,
            start(payment::NAME, payment::OFFSET, kafka.clone()).await?,
            start(delivery::NAME, delivery::OFFSET, kafka.clone()).await?,
            start(product::NAME, product::OFFSET, vec![]).await?,
            start(notification::NAME, notification::OFFSET, kafka.clone()).await?,
        )?;
        let others = [&user, &inventory, &payment, &delivery, &product];
        let others = others.map(|service| format!("--{}={}", service.name, service.url));
        let arguments = kafka.into_iter().chain(others).chain([way.argument()]).collect();
        let order = start(order::NAME, order::OFFSET, arguments).await?.await?;
        Ok(Self { user, order, inventory, payment, delivery, product, notification })
    }

    /// The one door for clients, which is told where all of them are.
    pub async fn gateway(&self, ports: Ports, rules: Vec<String>) -> Result<Process> {
        let behind = self.all().map(|service| format!("--{}={}", service.name, service.url));
        let arguments = behind.into_iter().chain(rules).collect();
        Process::start(gateway::NAME, ports.of(gateway::OFFSET), String::new(), arguments).await
    }

    pub fn all(&self) -> [&Process; 7] {
        let Self { user, order, inventory, payment, delivery, product, notification } = self;
        [user, order, inventory, payment, delivery, product, notification]
    }

    pub fn into_all(self) -> [Process; 7] {
        let Self { user, order, inventory, payment, delivery, product, notification } = self;
        [user, order, inventory, payment, delivery, product, notification]
    }
}
