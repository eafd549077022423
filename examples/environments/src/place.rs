//! Where a store is reached, and how it is told.

use crate::Result;
use saga_postgres::{PgStore, PgStoreOptions};

/// The way to the sagas' database.
#[derive(Clone, Debug, clap::Args)]
pub struct Place {
    /// Where the store and the users' transactions connect to.
    #[arg(long)]
    pub url: String,
    /// Said if, and only if, `url` goes through a pooler in transaction mode: a URL that goes past it.
    #[arg(long)]
    pub past_pooler: Option<String>,
    /// The schema.
    #[arg(long, default_value = "saga")]
    pub schema: String,
}

impl Place {
    /// Where a server itself is reached.
    pub fn server(url: impl Into<String>) -> Self {
        Self { url: url.into(), past_pooler: None, schema: "saga".into() }
    }

    /// Behind a pooler in transaction mode.
    pub fn transaction_pooler(url: impl Into<String>, past_pooler: impl Into<String>) -> Self {
        Self { past_pooler: Some(past_pooler.into()), ..Self::server(url) }
    }

    /// The options of a store here. All stores of all environments are connected with what this returns.
    pub fn options(&self) -> Result<PgStoreOptions> {
        let options = PgStore::options(&self.url)?.schema(&self.schema);
        Ok(match &self.past_pooler {
            Some(direct) => options.transaction_pooler().direct(direct),
            None => options,
        })
    }

    /// Connects.
    pub async fn connect(&self) -> Result<PgStore> {
        Ok(self.options()?.connect().await?)
    }
}
