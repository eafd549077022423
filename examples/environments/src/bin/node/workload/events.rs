//! Events of the users' transactions: they leave through the outbox, and whoever hears them writes that into the
//! ledger.

use super::{Result, ledger::Ledger};
use async_trait::async_trait;
use saga_core::{
    participant::Event,
    transport::{Consumer, Outgoing, PublishError, Receiver, Subscription, Transport, TransportError},
};
use saga_postgres::{PgOutbox, outbox::Relay};
use serde::{Deserialize, Serialize};
use sqlx::{
    PgConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use std::sync::Arc;

/// Somebody has bought something.
#[derive(Serialize, Deserialize)]
struct Purchased;

impl Event for Purchased {
    const TYPE: &'static str = "purchased.v1";
    const TOPIC: &'static str = "shop.events";
}

/// An outbox with its relay.
pub struct Events {
    outbox: PgOutbox,
    relay: Relay,
}

impl Events {
    /// A relay that connects to this URL.
    pub async fn start(url: &str, schema: &str, ledger: Ledger) -> Result<Self> {
        // As for the users' connections.
        let options = url.parse::<PgConnectOptions>()?.extra_float_digits(None);
        let pool = PgPoolOptions::new().max_connections(2).connect_lazy_with(options);
        let outbox = PgOutbox::options(pool, "shop").schema(schema).build()?;
        let relay = outbox.relay(Arc::new(Listeners(ledger))).start().await?;
        Ok(Self { outbox, relay })
    }

    /// Says in a transaction that a key was bought.
    pub async fn purchased(&self, tx: &mut PgConnection, key: &str) -> Result<()> {
        Ok(self.outbox.publish(tx, key, &Purchased).await?)
    }

    pub async fn stop(self) {
        self.relay.stop().await;
    }
}

/// A topic that nobody takes anything of.
const AWAY: &str = "away";

/// Stands for the broker, and for everybody behind it.
struct Listeners(Ledger);

#[async_trait]
impl Transport for Listeners {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        let mut answers = vec![];
        for Outgoing { topic, message } in batch {
            if topic == AWAY {
                answers.push(Err(PublishError::Unavailable("it is away".into())));
                continue;
            }
            let heard = self.0.heard(&message.key).await;
            answers.push(heard.map_err(|error| PublishError::Unavailable(error.to_string())));
        }
        answers
    }

    async fn subscribe(&self, _: Subscription, _: Arc<dyn Receiver>) -> Result<Box<dyn Consumer>, TransportError> {
        Err(TransportError("there is nothing to be heard here".into()))
    }

    fn system(&self) -> &'static str {
        "ledger"
    }

    fn max_message_bytes(&self) -> usize {
        1_000_000
    }
}
