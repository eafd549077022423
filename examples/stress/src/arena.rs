//! Where it all happens: a Postgres of our own, and a broker that can be stopped.

use crate::{
    Result,
    node::Places,
    purchase::{COMMANDS, LEDGER, REPLIES},
};
use saga_kafka::{KafkaTransport, TopicSpec};
use saga_postgres::{PgInbox, PgStore, testing::Postgres};
use sqlx::{PgPool, postgres::PgPoolOptions};
use std::{env, path::PathBuf, time::Duration};
use tokio::process::Command;

pub struct Arena {
    pub postgres: Postgres,
    pub places: Places,
    pub sagas: PgPool,
    pub ledger: PgPool,
}

impl Arena {
    /// Makes topics, with so many partitions each, databases and tables.
    pub async fn open(brokers: &str, partitions: i32) -> Result<Self> {
        let postgres = Postgres::builder().setting("max_connections", "300").start().await?;
        postgres.create_database("sagas").await?;
        postgres.create_database("ledger").await?;
        let (sagas, ledger) = (postgres.url_for("sagas"), postgres.url_for("ledger"));
        let places = Places { brokers: brokers.into(), sagas, ledger };
        let topics = COMMANDS.iter().chain(&[REPLIES]).map(|topic| TopicSpec::new(*topic).partitions(partitions));
        KafkaTransport::new(brokers)?.ensure_topics(&topics.collect::<Vec<_>>()).await?;
        PgStore::connect(&places.sagas).await?.migrate().await?;
        let pool = |url: String| {
            PgPoolOptions::new().max_connections(8).acquire_timeout(Duration::from_secs(60)).connect_lazy(&url)
        };
        let (sagas, ledger) = (pool(places.sagas.clone())?, pool(places.ledger.clone())?);
        PgInbox::new(ledger.clone()).migrate().await?;
        sqlx::raw_sql(LEDGER).execute(&ledger).await?;
        Ok(Self { postgres, places, sagas, ledger })
    }

    pub async fn close(self) {
        self.sagas.close().await;
        self.ledger.close().await;
        self.postgres.stop().await;
    }
}

/// The broker that `scripts/kafka` runs, in the directory that it says.
pub struct Broker {
    script: PathBuf,
    directory: String,
}

impl Broker {
    /// The one of `scripts/kafka run -- ..`.
    pub fn of_the_script() -> Result<Self> {
        let directory = env::var("KAFKA_DIR").map_err(|_| {
            "this run stops and starts the broker: call it as `scripts/kafka run -- cargo run --release -p stress -- ..`"
        })?;
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../scripts/kafka");
        Ok(Self { script, directory })
    }

    pub async fn stop(&self, hard: bool) -> Result<()> {
        let kill: &[&str] = if hard { &["--kill"] } else { &[] };
        self.call("stop", kill).await
    }

    pub async fn start(&self) -> Result<()> {
        self.call("start", &[]).await
    }

    async fn call(&self, verb: &str, more: &[&str]) -> Result<()> {
        let mut command = Command::new("bash");
        let output = command.arg(&self.script).args([verb, "--dir", &self.directory]).args(more).output().await?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("scripts/kafka {verb}: {}", String::from_utf8_lossy(&output.stderr)).into()),
        }
    }
}
