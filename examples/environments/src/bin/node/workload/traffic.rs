//! Callers, who do not take no answer for an answer.

use super::{
    Result,
    errand::{Errand, Fate, Order},
    events::Events,
    ledger::Ledger,
    serve::Settings,
};
use saga_core::{Error, Outcome, Sagas, Started};
use saga_postgres::{InTransaction, PgStore};
use sqlx::PgPool;
use std::{fmt::Display, future::Future, ops::Range, sync::Arc, time::Duration};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{interval, sleep, timeout},
};

/// How long a caller waits before it asks again.
const AGAIN: Duration = Duration::from_millis(100);

/// What all callers of a node share.
pub struct Callers {
    pub sagas: Sagas<Errand>,
    pub store: PgStore,
    /// The pool of a user's own transactions.
    pub users: PgPool,
    /// None where nobody listens.
    pub events: Option<Events>,
    pub ledger: Ledger,
    pub settings: Settings,
    pub go_on: Arc<Notify>,
}

impl Callers {
    /// Starts as many sagas as the settings say, in one round or in two, with a rest between them. Returns when all of
    /// them are known to be started.
    pub async fn start(self: &Arc<Self>) -> Result<JoinSet<Result<()>>> {
        let Settings { sagas, rest_after, .. } = self.settings;
        if rest_after >= sagas {
            return self.round(0..sagas).await;
        }
        let mut first = self.round(0..rest_after).await?;
        while let Some(ended) = first.join_next().await {
            ended??;
        }
        println!("resting");
        self.go_on.notified().await;
        self.round(rest_after..sagas).await
    }

    /// Starts sagas at their pace, after a busy moment. What is returned waits for their ends.
    async fn round(self: &Arc<Self>, numbers: Range<u64>) -> Result<JoinSet<Result<()>>> {
        let mut pace = interval(Duration::from_millis(self.settings.every));
        let (mut starting, mut waiting) = (JoinSet::new(), JoinSet::new());
        self.many_at_once().await?;
        for number in numbers {
            pace.tick().await;
            let callers = self.clone();
            starting.spawn(async move { callers.submit(number).await });
            while let Some(started) = starting.try_join_next() {
                waiting.spawn(self.clone().wait(started??));
            }
        }
        while let Some(started) = starting.join_next().await {
            waiting.spawn(self.clone().wait(started??));
        }
        Ok(waiting)
    }

    /// A busy moment: all connections that may be open are.
    async fn many_at_once(&self) -> Result<()> {
        let looks = (0..40).map(|_| self.until_answered("find", || self.sagas.find("nobody's")));
        futures::future::try_join_all(looks).await.map(drop)
    }

    /// Asks with the same key until there is an answer: by itself, or in a transaction of the user's own.
    async fn submit(&self, number: u64) -> Result<(String, Fate, Started<Errand>)> {
        let key = format!("{}-{number}", self.settings.name);
        let order = Order { number, fate: Fate::of(number) };
        let started = match number % 3 {
            0 => self.until_answered("submit in a transaction", || self.transaction(&key, order)).await?,
            _ => self.until_answered("submit", || self.sagas.submit(&key, order)).await?,
        };
        self.ledger.promised(&key, started.id()).await?;
        Ok((key, order.fate, started))
    }

    /// A row of the user's own, the saga, and an event: all of them stand, or none does.
    async fn transaction(&self, key: &str, order: Order) -> Result<Started<Errand>> {
        let mut tx = self.users.begin().await?;
        let sql = sqlx::query("INSERT INTO shop.purchase VALUES ($1, $2) ON CONFLICT DO NOTHING")
            // It may go through a pooler that does not know names.
            .persistent(false)
            .bind(key);
        let new = sql.bind(self.events.is_some()).execute(&mut *tx).await?.rows_affected() == 1;
        if let (Some(events), true) = (&self.events, new) {
            events.purchased(&mut tx, key).await?;
        }
        let started = self.sagas.submit_in(&self.store, &mut tx, key, order).await?;
        tx.commit().await?;
        self.store.wake();
        Ok(started)
    }

    /// Waits for the end of a saga, after having asked to cancel it, maybe.
    async fn wait(self: Arc<Self>, (key, fate, started): (String, Fate, Started<Errand>)) -> Result<()> {
        if fate == Fate::MayBeCancelled {
            sleep(Duration::from_millis(fastrand::u64(..50))).await;
            let cancel = async || match self.sagas.cancel(started.id(), "changed my mind").await {
                Err(Error::Ended(_)) => Ok(()),
                done => done,
            };
            self.until_answered("cancel", cancel).await?;
        }
        let found = self.until_answered("find", || self.sagas.find(&key)).await?;
        if found.is_none_or(|found| found.id() != started.id()) {
            self.ledger.refused("find", &format!("{key} is not the saga that was promised")).await?;
        }
        let outcome = match self.outcome(&started).await {
            Outcome::Completed(_) => "completed",
            Outcome::RolledBack(_) => "rolled back",
            Outcome::Parked(_) => "parked",
        };
        Ok(self.ledger.told(&key, outcome).await?)
    }

    /// A saga takes the time that it takes: to drop this call and make it again is not an error.
    async fn outcome(&self, started: &Started<Errand>) -> Outcome<u64> {
        loop {
            if let Ok(Ok(outcome)) = timeout(self.patience(), started.outcome()).await {
                return outcome;
            }
            sleep(AGAIN).await;
        }
    }

    /// Drops a call that takes too long, as an HTTP server drops a request, and makes it again.
    async fn until_answered<T, E, F>(&self, call: &str, make: impl Fn() -> F) -> Result<T>
    where
        E: Display,
        F: Future<Output = Result<T, E>>,
    {
        loop {
            match timeout(self.patience(), make()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => self.ledger.refused(call, &error.to_string()).await?,
                Err(_) => self.ledger.refused(call, "no answer in time").await?,
            }
            sleep(AGAIN).await;
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(self.settings.patience)
    }
}
