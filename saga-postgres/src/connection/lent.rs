//! Connections of a user's pool.

use sqlx::{PgConnection, PgPool, Postgres, pool::PoolConnection};
use std::{
    io,
    ops::{Deref, DerefMut},
    time::Duration,
};
use tokio::{runtime::Handle, time::timeout};

/// A connection of a user's pool. It goes back only when it is [given back](Self::give_back); otherwise it is closed,
/// so that a call which is dropped in the middle leaves neither a place of the pool taken nor a transaction open.
pub(crate) struct Lent {
    connection: Option<PoolConnection<Postgres>>,
}

impl Lent {
    /// How long anything may take that is not the user's own work.
    pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

    /// # Errors
    /// When the pool has none within its own time or ours.
    pub(crate) async fn from(pool: &PgPool) -> Result<Self, sqlx::Error> {
        let connection = in_time(pool.acquire()).await?;
        Ok(Self { connection: Some(connection) })
    }

    /// All that was asked was answered.
    ///
    /// The pool asks the server for a sign of life before it takes a connection back, for however long that takes. What
    /// does not answer is closed here.
    pub(crate) fn give_back(mut self) {
        if let Some(mut connection) = self.connection.take() {
            let returning = connection.return_to_pool();
            if let Ok(runtime) = Handle::try_current() {
                runtime.spawn(timeout(Self::PATIENCE, returning));
            }
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(connection.detach());
        }
    }
}

impl Deref for Lent {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        #[allow(clippy::expect_used, reason = "it is taken by what takes `self`")]
        self.connection.as_ref().expect("a lent connection")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut PgConnection {
        #[allow(clippy::expect_used, reason = "it is taken by what takes `self`")]
        self.connection.as_mut().expect("a lent connection")
    }
}

/// What the database does, unless it takes too long: then nothing is known.
pub(crate) async fn in_time<T>(doing: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    let patience = Lent::PATIENCE;
    let late = |_| sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {patience:?}")));
    timeout(patience, doing).await.unwrap_or_else(|elapsed| Err(late(elapsed)))
}
