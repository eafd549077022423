use crate::{PgStore, store::Whose};
use async_trait::async_trait;
use saga_core::{
    Error, Saga, SagaId, Sagas, Started,
    store::{Posted, Start, StoreError},
};
use sqlx::PgConnection;

/// Starts and cancels sagas inside the user's own transaction: the saga stands, or the request does, if and only if that transaction commits.
///
/// ```no_run
/// use saga_core::{Saga, Sagas};
/// use saga_postgres::{InTransaction, PgStore};
/// # async fn place<Order: Saga<Input = u32>>(pool: sqlx::PgPool, store: PgStore, orders: Sagas<Order>) -> Result<(), Box<dyn std::error::Error>> {
/// let mut tx = pool.begin().await?;
/// let order = orders.submit_in(&store, &mut tx, "order-4711", 4711).await?;
/// if order.is_new() {
///     sqlx::query("INSERT INTO orders (id) VALUES (4711)").execute(&mut *tx).await?;
/// }
/// tx.commit().await?; // in both cases, and before anything else is asked of the database
/// store.wake(); // optional: otherwise the saga begins at the next poll
/// # Ok(()) }
/// ```
#[async_trait]
pub trait InTransaction<S: Saga> {
    /// [`Sagas::submit`], in a transaction. Its `outcome` is to be waited for after the commit.
    ///
    /// While the transaction is open, others who start a saga with the same key wait for it, for about a second at most; then they are told to try again.
    ///
    /// # Errors
    /// As [`Sagas::submit`]. [`StoreError::Contention`] (a deadlock, a serialization failure, a lock timeout): run the whole transaction again. After any error of the
    /// database the transaction is lost, as always in Postgres.
    async fn submit_in(
        &self,
        store: &PgStore,
        tx: &mut PgConnection,
        key: &str,
        input: S::Input,
    ) -> Result<Started<S>, Error>;

    /// [`submit_in`](Self::submit_in) of many, which [`Sagas::to_start`] has made: in one statement if all keys are new, with an answer to each in their order.
    ///
    /// # Errors
    /// As [`submit_in`](Self::submit_in), where a key that was [taken](Error::KeyTaken) is only its own saga's.
    async fn start_in(
        &self,
        store: &PgStore,
        tx: &mut PgConnection,
        sagas: &[Start],
    ) -> Result<Vec<Result<Started<S>, Error>>, Error>;

    /// [`Sagas::cancel`], in a transaction. It holds up nobody, however long the transaction stays open. Call [`PgStore::wake_cancelled`] after the commit, or the saga hears of it at the next
    /// poll.
    ///
    /// # Errors
    /// As [`Sagas::cancel`].
    async fn cancel_in(&self, store: &PgStore, tx: &mut PgConnection, saga: SagaId, reason: &str) -> Result<(), Error>;
}

#[async_trait]
impl<S: Saga> InTransaction<S> for Sagas<S> {
    async fn submit_in(
        &self,
        store: &PgStore,
        tx: &mut PgConnection,
        key: &str,
        input: S::Input,
    ) -> Result<Started<S>, Error> {
        let start = self.to_start(key, &input)?;
        let started = self.start_in(store, tx, &[start]).await?.pop();
        started.ok_or_else(|| StoreError::Unavailable("the store gave no answer".into()))?
    }

    async fn start_in(
        &self,
        store: &PgStore,
        tx: &mut PgConnection,
        sagas: &[Start],
    ) -> Result<Vec<Result<Started<S>, Error>>, Error> {
        let answers = store.start_on(tx, Whose::Users, sagas).await?;
        let mut started = Vec::with_capacity(sagas.len());
        for (start, answer) in sagas.iter().zip(answers) {
            started.push(self.has_started(start, answer).await);
        }
        Ok(started)
    }

    async fn cancel_in(&self, store: &PgStore, tx: &mut PgConnection, saga: SagaId, reason: &str) -> Result<(), Error> {
        let mail = self.to_cancel(saga, reason)?;
        match store.post_on(tx, Whose::Users, &[mail]).await?.first() {
            Some(Posted::Accepted) => Ok(()),
            Some(Posted::Ended) => Err(Error::Ended(saga)),
            _ => Err(Error::NoSuchSaga(saga)),
        }
    }
}
