//! One environment: a database for sagas, its books, and the nodes at work.

use crate::{
    Result,
    books::{Books, Verdict},
    node::Node,
    place::Place,
    workload::Settings,
    world::World,
};
use saga_postgres::PgStore;
use sqlx::{PgPool, postgres::PgPoolOptions};
use std::{path::PathBuf, time::Duration};

/// A row of the user's own, written in the transaction that starts a saga. Everybody may.
const USERS_TABLE: &str = "
    CREATE SCHEMA IF NOT EXISTS shop;
    CREATE TABLE IF NOT EXISTS shop.purchase (key text PRIMARY KEY, announced boolean NOT NULL);
    GRANT USAGE ON SCHEMA shop TO PUBLIC;
    GRANT ALL ON shop.purchase TO PUBLIC;";

/// How long a workload may take to be started, when nothing stands in its way. Machines may be busy.
pub const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take until all of it has ended, from then on.
pub const ENDS_WITHIN: Duration = Duration::from_secs(40);

/// An environment.
pub struct Stage {
    pub place: Place,
    pub books: Books,
    pub nodes: Vec<Node>,
    /// Nodes that were killed, or left: their callers are gone.
    lost: Vec<String>,
    logs: PathBuf,
    admin: String,
    started: usize,
}

impl Stage {
    /// Sets it up, except for the sagas' schema. `admin` is a way to the database past everything, with every right.
    pub async fn open(world: &World, place: Place, admin: &str) -> Result<Self> {
        let (name, logs) = world.logs()?;
        users_table(admin).await?;
        let books = Books::open(&world.books, &name).await?;
        Ok(Self { place, books, nodes: vec![], lost: vec![], logs, admin: admin.into(), started: 0 })
    }

    /// Connects as the nodes do.
    pub async fn connect(&self) -> Result<PgStore> {
        self.place.connect().await
    }

    /// As the nodes would do at their start.
    pub async fn migrate(&self) -> Result<()> {
        Ok(self.connect().await?.migrate().await?)
    }

    /// One more node, with settings as they are usual here.
    pub async fn node(&mut self) -> Result<()> {
        self.node_with(|_| {}).await
    }

    /// One more node, with some settings changed.
    pub async fn node_with(&mut self, change: impl FnOnce(&mut Settings)) -> Result<()> {
        self.started += 1;
        let mut settings = Settings {
            name: format!("node{}", self.started),
            users: self.place.url.clone(),
            relay: Some(self.place.past_pooler.clone().unwrap_or_else(|| self.place.url.clone())),
            ledger: self.books.url.clone(),
            sagas: 30,
            every: 80,
            rest_after: u64::MAX,
            patience: 20,
            connections: 4,
            lease: 2_000,
        };
        change(&mut settings);
        self.nodes.push(Node::start(&self.place, &settings, &self.logs).await?);
        Ok(())
    }

    /// Kills the last node that was started.
    pub async fn kill_last(&mut self) -> Result<()> {
        let node = self.nodes.pop().ok_or("there is no node to kill")?;
        self.lost.push(node.kill().await?);
        Ok(())
    }

    /// The database is somewhere else from now on.
    pub fn moved_to(&mut self, admin: &str) {
        self.admin = admin.into();
    }

    /// Two nodes in a quiet environment, from the first saga to the verdict.
    pub async fn two_nodes(&mut self) -> Result<Verdict> {
        self.node().await?;
        self.node().await?;
        self.finish().await
    }

    /// Waits until all of what was begun has ended.
    pub async fn until_ended(&self) -> Result<()> {
        let pool = pool(&self.admin).await?;
        self.books.until_ended(&pool, &self.place.schema, &self.lost, ENDS_WITHIN).await?;
        pool.close().await;
        Ok(())
    }

    /// Waits until all sagas have been started and have ended, and asks the books.
    pub async fn finish(&mut self) -> Result<Verdict> {
        let mut wrong = vec![];
        for node in &mut self.nodes {
            wrong.extend(node.until_submitted(STARTS_WITHIN).await.err().map(|error| error.to_string()));
        }
        self.until_ended().await?;
        let pool = pool(&self.admin).await?;
        let mut verdict = self.books.verdict(&pool, &self.place.schema, &self.lost).await?;
        pool.close().await;
        for node in self.nodes.drain(..) {
            wrong.extend(node.stop().await.err().map(|error| error.to_string()));
        }
        verdict.wrong.splice(..0, wrong);
        Ok(verdict)
    }
}

/// Makes the users' table.
pub async fn users_table(admin: &str) -> Result<()> {
    let pool = pool(admin).await?;
    sqlx::raw_sql(USERS_TABLE).execute(&pool).await?;
    pool.close().await;
    Ok(())
}

/// A few connections, for whoever looks. What a database or a role brings along is not for them.
pub async fn pool(url: &str) -> Result<PgPool> {
    let options = PgPoolOptions::new().max_connections(2).acquire_timeout(Duration::from_secs(20));
    let options = options.after_connect(|connection, _| {
        let plain = "SET default_transaction_isolation = 'read committed'; SET statement_timeout = 0;
            SET idle_in_transaction_session_timeout = 0; SET idle_session_timeout = 0";
        Box::pin(async move { sqlx::raw_sql(plain).execute(connection).await.map(drop) })
    });
    Ok(options.connect(url).await?)
}
