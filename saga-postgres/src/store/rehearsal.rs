//! What the store needs, before an engine starts on it.

use super::PgStore;
use crate::{SetupError, rehearsal};
use saga_core::store::StoreError;
use tokio::time::timeout;

impl PgStore {
    /// Goes through every statement of the store.
    pub(super) async fn rehearse(&self) -> Result<(), StoreError> {
        let (mut taken, patience) = (self.inner.connections.take().await?, self.inner.route.patience());
        let statements = self.queries().all();
        let own: Vec<_> = statements.into_iter().filter(|(name, _)| !name.starts_with("inbox_")).collect();
        let answer = timeout(patience, async {
            let tried = rehearsal::of(taken.begin().await?, &self.inner.schema, &own).await;
            taken.end(tried.map_err(unsuited)).await
        });
        let answer = answer.await;
        taken.settle(answer, patience)
    }
}

fn unsuited(error: SetupError) -> StoreError {
    match error {
        SetupError::Postgres { .. } => StoreError::Unavailable(error.to_string()),
        error => StoreError::Unsuited(error.to_string()),
    }
}
