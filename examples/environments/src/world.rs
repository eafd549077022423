//! What all environments share: the programs that were found, and the server that holds the ledgers.

use crate::Result;
use saga_postgres::testing::Postgres;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// What all environments share.
pub struct World {
    /// The ledgers' server, which nothing happens to.
    pub books: Postgres,
    /// Where `scripts/ensure-environments` put what it fetched, and where logs go.
    tools: PathBuf,
    row: Mutex<(usize, String)>,
}

impl World {
    /// Starts the ledgers' server.
    pub async fn open(tools: &Path) -> Result<Self> {
        let books = Postgres::builder().setting("synchronous_commit", "off").start().await?;
        let tools = std::path::absolute(tools)?;
        let _ = fs::remove_dir_all(tools.join("logs"));
        Ok(Self { books, tools, row: Mutex::default() })
    }

    /// The next environment begins.
    pub fn begin(&self, environment: &str) {
        let mut row = self.row.lock().unwrap_or_else(PoisonError::into_inner);
        let word = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        *row = (row.0 + 1, environment.chars().map(word).collect());
    }

    /// A name for this environment's ledger, and a directory for its logs.
    pub fn logs(&self) -> Result<(String, PathBuf)> {
        let row = self.row.lock().unwrap_or_else(PoisonError::into_inner);
        let logs = self.tools.join("logs").join(&row.1);
        fs::create_dir_all(&logs)?;
        Ok((format!("ledger_{}", row.0), logs))
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
