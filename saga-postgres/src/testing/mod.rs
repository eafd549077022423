//! A throw-away Postgres for tests, benchmarks and demonstrations. Needs the cargo feature `testing`; Unix only.
//!
//! ```no_run
//! use saga_postgres::testing;
//!
//! #[tokio::test]
//! async fn an_order_is_kept() -> Result<(), Box<dyn std::error::Error>> {
//!     let postgres = testing::shared().await?; // one server for all tests of this binary
//!     let schema = postgres.schema(); // a namespace for this test alone
//!     // ... connect to postgres.url(), create and use the schema ...
//!     Ok(())
//! }
//! # fn main() {}
//! ```
//!
//! | you want | use |
//! |---|---|
//! | many tests on one server | [`shared`] and [`Postgres::schema`] |
//! | a server of one's own, to restart or crash | [`Postgres::private`] |
//! | another port, settings, data that stays | [`Postgres::builder`] |
//! | the server in `DATABASE_URL` if there is one | [`Postgres::start`] |
//!
//! # Which Postgres
//!
//! With `DATABASE_URL` set, [`shared`] and [`Postgres::start`] use that server. Otherwise, and always with
//! [`Postgres::private`], a server is started from the `initdb` and `postgres` in PATH, else from the highest version
//! where packages put it. That takes about half a second. It listens on 127.0.0.1 and on a Unix socket only, trusts everyone there, and is
//! as durable as any Postgres, so what is measured on it is true. Nothing is downloaded. Root may use it: the server
//! then runs as user `postgres`, else `nobody`.
//!
//! # What is left behind
//!
//! Nothing of a private server, however the process ends: return, panic, Ctrl-C, SIGKILL. A small shell process waits
//! for that, stops the server and removes its directory, usually within a second. A directory given to
//! [`Builder::data_dir`] is kept, of course. Only when that shell is killed as well (a container that ends, a
//! machine that fails) does a `saga-postgres-*` directory stay in the temporary directory.
//!
//! On a server in `DATABASE_URL`, each handle has a database `saga_test_<id>`, dropped with the handle, best effort.
//! The one of [`shared`], and those of killed processes, stay until the first start at least a day later.

mod account;
mod binaries;
mod builder;
mod cluster;
mod database;
mod error;
mod guest;
mod keeper;
mod process;
mod scratch;
mod url;

use std::fmt;
use std::path::Path;

use sqlx::postgres::PgConnectOptions;
use tokio::sync::OnceCell;
use uuid::Uuid;

use cluster::Cluster;
use guest::Guest;

pub use builder::Builder;
pub use error::StartError;

/// The one Postgres of this process: started by [`Postgres::start`] on first use, stopped when the process ends.
///
/// It outlives the runtime of the test that came first. Tests that share it stay apart by using a
/// [`schema`](Postgres::schema) each. It cannot be restarted; for that, take a [`private`](Postgres::private) one.
///
/// # Errors
///
/// See [`StartError`]. The next call tries again.
///
/// ```no_run
/// # async fn example() -> Result<(), saga_postgres::testing::StartError> {
/// let postgres = saga_postgres::testing::shared().await?;
/// println!("{}", postgres.url());
/// # Ok(()) }
/// ```
pub async fn shared() -> Result<&'static Postgres, StartError> {
    static SHARED: OnceCell<Postgres> = OnceCell::const_new();
    SHARED.get_or_try_init(Postgres::start).await
}

/// A Postgres to test with. Dropping it stops it; see the [module](self) for what is left behind.
///
/// Dropping blocks the thread while the server shuts down: some 50 ms as a rule, 20 seconds at the very most.
/// In async code, [`stop`](Postgres::stop) does the same without blocking.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use saga_postgres::testing::Postgres;
///
/// let mut postgres = Postgres::private().await?;
/// let pool = sqlx::PgPool::connect(&postgres.url()).await?;
/// sqlx::query("CREATE TABLE kept (id int)").execute(&pool).await?;
/// postgres.crash().await?;
/// sqlx::query("SELECT * FROM kept").fetch_all(&pool).await?;
/// # Ok(()) }
/// ```
pub struct Postgres {
    home: Home,
    /// Of the server, with a database that is surely there.
    server_url: String,
    port: u16,
    version: String,
}

enum Home {
    Private { cluster: Box<Cluster>, database: String },
    Guest(Guest),
}

impl Postgres {
    /// The server in the environment variable `DATABASE_URL` if it is set and not empty, as by [`on`](Self::on);
    /// else a private one, as by [`private`](Self::private).
    ///
    /// # Errors
    ///
    /// See [`StartError`].
    pub async fn start() -> Result<Self, StartError> {
        match std::env::var("DATABASE_URL") {
            Ok(url) if !url.is_empty() => Self::on(&url).await,
            _ => Self::private().await,
        }
    }

    /// A new private server with the defaults of [`Builder`].
    ///
    /// # Errors
    ///
    /// See [`StartError`].
    pub async fn private() -> Result<Self, StartError> {
        Self::builder().start().await
    }

    /// For a private server that differs from the defaults.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A new database on a running server (Postgres 13 or later), whose user must have the right `CREATEDB`.
    ///
    /// The database is dropped with the handle, even if somebody is still connected to it. That is best effort:
    /// a failure is logged.
    ///
    /// # Errors
    ///
    /// [`StartError::Connect`] and [`StartError::CreateDatabase`].
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), saga_postgres::testing::StartError> {
    /// use saga_postgres::testing::Postgres;
    ///
    /// let postgres = Postgres::on("postgres://tester@db.example/postgres").await?;
    /// assert!(!postgres.is_private());
    /// # Ok(()) }
    /// ```
    pub async fn on(url: &str) -> Result<Self, StartError> {
        let options: PgConnectOptions = url.parse().map_err(StartError::Connect)?;
        let version = database::version(url).await.map_err(StartError::Connect)?;
        let guest = Guest::arrive(url).await?;
        Ok(Self { server_url: url.to_owned(), port: options.get_port(), version, home: Home::Guest(guest) })
    }

    async fn start_private(builder: Builder) -> Result<Self, StartError> {
        let database = builder.database.clone().unwrap_or_else(|| "postgres".to_owned());
        let cluster = Cluster::start(builder).await?;
        let port = cluster.port();
        let server_url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        let version = database::version(&server_url).await.map_err(StartError::Connect)?;
        if let Err(source) = database::create(&server_url, &database).await {
            return Err(StartError::CreateDatabase { name: database, source });
        }
        let home = Home::Private { cluster: Box::new(cluster), database };
        Ok(Self { home, server_url, port, version })
    }

    /// How to connect to this handle's database: `postgres://postgres@127.0.0.1:<port>/<database>` for a private
    /// server; for another, its own URL with our database in it.
    pub fn url(&self) -> String {
        self.url_for(self.database())
    }

    /// How to connect to another database of this server. Does not create it.
    pub fn url_for(&self, database: &str) -> String {
        url::with_database(&self.server_url, database)
    }

    /// As [`url_for`](Self::url_for), but through the Unix socket of a private server, which costs both sides less than TCP.
    pub fn socket_url_for(&self, database: &str) -> String {
        let url = self.url_for(database);
        match &self.home {
            Home::Private { cluster, .. } => {
                cluster.socket().map_or(url.clone(), |socket| url::with_socket(&url, socket))
            }
            Home::Guest(_) => url,
        }
    }

    /// Creates a database unless it exists. On a server that is not private it stays there: it is yours to drop.
    ///
    /// # Errors
    ///
    /// Whatever the server objects.
    pub async fn create_database(&self, name: &str) -> Result<(), sqlx::Error> {
        database::create(&self.server_url, name).await
    }

    /// A name for a schema that nobody else uses, such as `saga_3f2a...`. Does not create it.
    pub fn schema(&self) -> String {
        format!("saga_{}", Uuid::new_v4().simple())
    }

    /// The port the server listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where a private server has its data, and its log in `server.log`; `None` if the server is not private.
    pub fn data_dir(&self) -> Option<&Path> {
        match &self.home {
            Home::Private { cluster, .. } => Some(cluster.data_dir()),
            Home::Guest(_) => None,
        }
    }

    /// The server's version as it says itself, such as `15.14 (Debian 15.14-0+deb12u1)`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether the server was started here and stops with this handle.
    pub fn is_private(&self) -> bool {
        matches!(self.home, Home::Private { .. })
    }

    /// Stops a private server in order and starts it again, on the same port, with its data.
    /// Clients lose their connections.
    ///
    /// # Errors
    ///
    /// [`StartError::NotPrivate`], else why it did not come up again; one may try again.
    pub async fn restart(&mut self) -> Result<(), StartError> {
        self.cluster()?.restart(process::FAST).await
    }

    /// Ends a private server as a power failure would, nothing flushed, nobody told, and starts it again on the same
    /// port. It recovers what was committed.
    ///
    /// # Errors
    ///
    /// [`StartError::NotPrivate`], else why it did not come up again; one may try again.
    pub async fn crash(&mut self) -> Result<(), StartError> {
        self.cluster()?.restart(process::IMMEDIATE).await
    }

    /// Stops a private server and removes its directory unless it was given; drops the database on another server.
    /// The same as dropping the handle, but without blocking the thread.
    pub async fn stop(self) {
        if let Err(error) = tokio::task::spawn_blocking(move || drop(self)).await {
            tracing::warn!(%error, "a test server did not stop in order");
        }
    }

    fn database(&self) -> &str {
        match &self.home {
            Home::Private { database, .. } => database,
            Home::Guest(guest) => guest.database(),
        }
    }

    fn cluster(&mut self) -> Result<&mut Cluster, StartError> {
        match &mut self.home {
            Home::Private { cluster, .. } => Ok(cluster),
            Home::Guest(_) => Err(StartError::NotPrivate),
        }
    }
}

/// Leaves out URLs: they may hold a password.
impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres")
            .field("port", &self.port)
            .field("database", &self.database())
            .field("data_dir", &self.data_dir())
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}
