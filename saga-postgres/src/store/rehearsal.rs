//! What the store needs, before an engine starts on it.

use super::PgStore;
use crate::{SetupError, rehearsal};
use saga_core::store::StoreError;
use tokio::time::timeout;

impl PgStore {
    /// Goes through every statement of the store.
    pub(super) async fn rehearse(&self) -> Result<(), StoreError> {
        let (route, statements) = (&self.inner.route, self.queries().all());
        let own = statements.into_iter().filter(|(name, _)| !name.starts_with("inbox_"));
        match timeout(route.patience(), rehearsal::of(route, &self.inner.schema, own)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(
                error @ (SetupError::NotMigrated { .. } | SetupError::TooNew { .. } | SetupError::Rights { .. }),
            )) => Err(StoreError::Unsuited(error.to_string())),
            Ok(Err(error)) => Err(StoreError::Unavailable(error.to_string())),
            Err(_) => Err(StoreError::Unavailable(format!("no answer within {:?}", route.patience()))),
        }
    }
}
