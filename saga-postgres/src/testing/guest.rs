//! A database of our own on a server that is not.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::{StartError, database};

const PREFIX: &str = "saga_test_";
/// A database of a handle that was never dropped is taken away by whoever comes this much later.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// A database that is dropped with its handle, best effort.
#[derive(Debug)]
pub(super) struct Guest {
    server_url: String,
    database: String,
}

impl Guest {
    pub(super) async fn arrive(server_url: &str) -> Result<Self, StartError> {
        sweep(server_url).await.map_err(StartError::Connect)?;
        // The id tells when it was made, see `age`.
        let database = format!("{PREFIX}{}", Uuid::now_v7().simple());
        let guest = Self { server_url: server_url.to_owned(), database };
        database::create(server_url, &guest.database)
            .await
            .map_err(|source| StartError::CreateDatabase { name: guest.database.clone(), source })?;
        Ok(guest)
    }

    pub(super) fn database(&self) -> &str {
        &self.database
    }
}

impl Drop for Guest {
    /// On a thread and a runtime of its own: there may be none here, or one that must not be blocked on.
    fn drop(&mut self) {
        let (url, name) = (self.server_url.clone(), self.database.clone());
        let work = move || -> Result<(), sqlx::Error> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(database::drop_forced(&url, &name))
        };
        let dropped = thread::Builder::new().spawn(work).map(thread::JoinHandle::join);
        if !matches!(dropped, Ok(Ok(Ok(())))) {
            tracing::warn!(database = self.database, outcome = ?dropped, "cannot drop a test database");
        }
    }
}

/// Drops what handles that were never dropped left behind, such as those of [`shared`](super::shared).
async fn sweep(url: &str) -> Result<(), sqlx::Error> {
    for name in database::idle(url, PREFIX).await? {
        if age(&name).is_some_and(|age| age > STALE) {
            tracing::info!(name, "dropping a stale test database");
            if let Err(error) = database::drop_unused(url, &name).await {
                tracing::debug!(%error, name, "left to its owner, or to another sweep");
            }
        }
    }
    Ok(())
}

/// How long ago a database was made, if we made it.
fn age(name: &str) -> Option<Duration> {
    let id = Uuid::try_parse(name.strip_prefix(PREFIX)?).ok()?;
    let (seconds, nanos) = id.get_timestamp()?.to_unix();
    let made = UNIX_EPOCH + Duration::new(seconds, nanos);
    SystemTime::now().duration_since(made).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_have_an_age() {
        assert!(age("saga_test_orders").is_none());
        assert!(age("shop").is_none());
        assert!(age(&format!("saga_test_{}", Uuid::new_v4().simple())).is_none());
        let fresh = format!("saga_test_{}", Uuid::now_v7().simple());
        assert!(age(&fresh).is_some_and(|age| age < STALE));
        assert!(age("saga_test_018bcfe5680070008000000000000000").is_some_and(|age| age > STALE));
    }
}
