use std::path::PathBuf;

use super::{Postgres, StartError};

/// How a private server is to be. Made by [`Postgres::builder`].
///
/// ```no_run
/// # async fn example() -> Result<(), saga_postgres::testing::StartError> {
/// use saga_postgres::testing::Postgres;
///
/// // A server whose data is still there when the program is run again.
/// let postgres = Postgres::builder().data_dir("target/shop-data").database("shop").start().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "call start()"]
pub struct Builder {
    pub(super) data_dir: Option<PathBuf>,
    pub(super) port: Option<u16>,
    pub(super) settings: Vec<(String, String)>,
    pub(super) database: Option<String>,
    pub(super) binaries: Option<PathBuf>,
}

impl Builder {
    /// Where the data lives. A directory given here is made if it does not exist, *kept* when the server stops, and
    /// used again at the next start. It must be on a file system that takes a Unix socket (else say `.setting("unix_socket_directories", "")`), and empty or a data directory of the same major version of Postgres.
    /// When this process is root, an empty one is given to the user the server runs as.
    ///
    /// Defaults to a new temporary directory that is removed with the server.
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(path.into());
        self
    }

    /// The port to listen on, on 127.0.0.1. Starting fails with [`StartError::PortTaken`] if it is in use.
    ///
    /// Defaults to a free one.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// A server setting, as in `postgresql.conf`. Of two values for one name, the later wins.
    ///
    /// Defaults: `max_connections` 200, `listen_addresses` 127.0.0.1, a Unix socket in the data directory; everything else,
    /// durability included (`fsync` and `synchronous_commit` are on), as Postgres has it.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// The database that [`Postgres::url`] names; created if it does not exist.
    ///
    /// Defaults to `postgres`.
    pub fn database(mut self, name: impl Into<String>) -> Self {
        self.database = Some(name.into());
        self
    }

    /// The directory that holds `initdb` and `postgres`, for tests against a certain version.
    ///
    /// Defaults to the first found in PATH, then the highest version where packages put it.
    pub fn binaries(mut self, directory: impl Into<PathBuf>) -> Self {
        self.binaries = Some(directory.into());
        self
    }

    /// Starts the server and waits, at most 30 seconds, until it accepts connections.
    ///
    /// # Errors
    ///
    /// See [`StartError`]. Whatever was begun is undone.
    pub async fn start(self) -> Result<Postgres, StartError> {
        Postgres::start_private(self).await
    }
}
