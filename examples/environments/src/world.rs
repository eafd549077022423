//! What all environments share: the programs that were found, and the server that holds the ledgers.

use crate::Result;
use saga_postgres::testing::Postgres;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

/// What all environments share.
pub struct World {
    /// The ledgers' server, which nothing happens to.
    pub books: Postgres,
    /// Where `scripts/ensure-environments` put what it fetched, and where logs go.
    tools: PathBuf,
    opened: AtomicUsize,
}

impl World {
    /// Starts the ledgers' server.
    pub async fn open(tools: &Path) -> Result<Self> {
        let books = Postgres::builder().setting("synchronous_commit", "off").start().await?;
        let tools = std::path::absolute(tools)?;
        let _ = fs::remove_dir_all(tools.join("logs"));
        Ok(Self { books, tools, opened: AtomicUsize::new(0) })
    }

    /// A new name, and a directory for the logs of whoever has it.
    pub fn name(&self) -> Result<(String, PathBuf)> {
        let name = format!("ledger_{}", self.opened.fetch_add(1, Ordering::Relaxed) + 1);
        let logs = self.tools.join("logs").join(&name);
        fs::create_dir_all(&logs)?;
        Ok((name, logs))
    }

    /// The newest Postgres that can be had.
    pub fn newest_postgres(&self) -> Result<PathBuf> {
        self.fetched("postgres/package/native/bin")
    }

    /// A PgBouncer that can keep track of prepared statements.
    pub fn newer_pgbouncer(&self) -> Result<PathBuf> {
        self.fetched("pgbouncer/root")
    }

    fn fetched(&self, what: &str) -> Result<PathBuf> {
        let path = self.tools.join(what);
        match path.exists() {
            true => Ok(path),
            false => Err(format!("{} is not there: see scripts/ensure-environments --long", path.display()).into()),
        }
    }
}
