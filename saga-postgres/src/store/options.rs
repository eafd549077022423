//! How a store is connected.

use super::{Inner, PgStore};
use crate::{
    SetupError,
    connection::{Connections, Keeps, Route, Settings, servers},
    hints::Hints,
    migrations,
    queries::Queries,
};
use sqlx::postgres::PgPoolOptions;
use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

/// How a [`PgStore`] is connected. From [`PgStore::options`].
#[derive(Clone, Debug)]
pub struct PgStoreOptions {
    url: String,
    direct: Option<String>,
    keeps: Keeps,
    schema: String,
    connections: u32,
    patience: Duration,
    edit: fn(&str, String) -> String,
}

impl PgStoreOptions {
    pub(super) fn new(url: &str) -> Self {
        Self {
            url: url.into(),
            direct: None,
            keeps: Keeps::Sessions,
            schema: "saga".into(),
            connections: 12,
            patience: Duration::from_secs(10),
            edit: |_, sql| sql,
        }
    }

    /// The schema that holds the tables. Several engines, tenants or services can live in one database, in a schema
    /// each. Defaults to `saga`.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// The size of the store's own pool. Defaults to 12: the engine's writers, its loops, and a few for callers. Beside
    /// it the store opens three: for the heartbeat, for sending hints, for hearing them.
    pub const fn connections(mut self, connections: u32) -> Self {
        self.connections = connections;
        self
    }

    /// How long one statement may take until its connection is given up and its outcome is unknown. Defaults to 10
    /// seconds. The server ends a statement after 30 seconds, whatever this is.
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The URL leads to a pooler in *transaction mode*, which shares the server's sessions between transactions. Each
    /// statement then has a transaction of its own that brings its settings with it, and none is prepared by name:
    /// three round trips more for each. Hints cannot be heard through such a pooler: give a [direct](Self::direct) way
    /// for them, or processes find work by their polls alone.
    pub const fn transaction_pooler(mut self) -> Self {
        self.keeps = Keeps::Transactions;
        self
    }

    /// A URL that leads to the server itself, past a pooler: for the heartbeat, for hints (`LISTEN`), and for
    /// migrations.
    pub fn direct(mut self, url: impl Into<String>) -> Self {
        self.direct = Some(url.into());
        self
    }

    /// For this crate's own tests: changes statements, to show what breaks without a rule.
    #[doc(hidden)]
    pub const fn edit_sql(mut self, edit: fn(&str, String) -> String) -> Self {
        self.edit = edit;
        self
    }

    /// Connects, and makes sure that the connections are what the store needs.
    ///
    /// # Errors
    /// [`SetupError::SchemaName`], [`SetupError::Url`]; [`SetupError::Unreachable`], [`SetupError::ReadOnly`],
    /// [`SetupError::NoPrimary`] when there is no connection to the primary to be had; [`SetupError::Pooler`] when the
    /// URL leads through a pooler in transaction mode and [`transaction_pooler`](Self::transaction_pooler) was not
    /// called; [`SetupError::Version`].
    pub async fn connect(self) -> Result<PgStore, SetupError> {
        migrations::check_name(&self.schema)?;
        let way = |url: &str, keeps| {
            servers(url).map(|servers| Route::new(servers, Settings::of_the_store(), keeps, self.patience))
        };
        let route = way(&self.url, self.keeps)?;
        let aside = self.direct.as_deref().map(|url| way(url, Keeps::Sessions)).transpose()?;
        for asked in [Some(&route), aside.as_ref()].into_iter().flatten() {
            if asked.keeps() == Keeps::Sessions {
                asked.must_keep_sessions().await?;
            }
        }
        let route = Arc::new(route);
        let aside = aside.map_or_else(|| route.clone(), Arc::new);
        // A server that cannot be reached is reported now.
        let mut first = aside.open().await?;
        supported(first.connection().server_version_num())?;
        let own = Connections::new(route.clone(), self.connections, self.patience);
        let pool = PgPoolOptions::new().max_connections(self.connections).acquire_timeout(self.patience);
        let pool = match self.keeps {
            Keeps::Transactions => pool,
            Keeps::Sessions => route.settings().on(pool),
        };
        let pool = pool.connect_lazy_with(route.server().clone());
        let queries = Queries::new(&self.schema, self.edit);
        let hints = Hints::new();
        let channel = format!("{}_hints", self.schema);
        let sending = tokio::spawn(hints.clone().gather(route.clone(), queries.notify.clone(), channel.clone()));
        let listening = tokio::spawn(hints.clone().listen(aside.clone(), channel));
        let tasks = [sending.abort_handle(), listening.abort_handle()];
        let inner = Inner {
            connections: own,
            route,
            aside,
            pool,
            schema: self.schema,
            queries,
            hints,
            tasks,
            watch: Default::default(),
            dead: Default::default(),
            heads: Default::default(),
            letters: Default::default(),
            portion: Default::default(),
            sent: AtomicU64::new(0),
        };
        Ok(PgStore { inner: Arc::new(inner) })
    }
}

/// The rules are tried with these.
fn supported(version: Option<u32>) -> Result<(), SetupError> {
    const OLDEST: u32 = 150_000;
    match version {
        Some(found) if found < OLDEST => Err(SetupError::Version { found: found / 10_000 }),
        _ => Ok(()),
    }
}
