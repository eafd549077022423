//! Connections that are shared.

use super::{
    Keeps,
    route::{Opened, Route},
};
use crate::{
    SetupError,
    error::{meaning_of, told},
};
use deadpool::managed::{self, Metrics, Object, Pool, PoolError, RecycleError, RecycleResult};
use saga_core::store::StoreError;
use sqlx::{
    PgConnection, Postgres, SqlStr,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, error::Elapsed, timeout},
};

/// A server that had room for no more is asked again after so long.
const FULL: Duration = Duration::from_secs(10);
/// What was silent for so long when it was given up makes the others suspect.
const SILENCE: Duration = Duration::from_secs(1);

/// A statement.
pub(crate) type Sql<'q> = Query<'q, Postgres, PgArguments>;

/// Some connections, at most so many.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    pool: Pool<Maker>,
    size: usize,
    /// Room for so many, less those that the server has none for.
    room: Arc<Semaphore>,
    narrow: Arc<Mutex<Narrow>>,
    route: Arc<Route>,
    patience: Duration,
}

impl Connections {
    /// Opens none yet. `patience` is for a place and for each piece of work.
    pub(crate) fn new(route: Arc<Route>, size: u32, patience: Duration) -> Self {
        let maker = Maker { route: route.clone(), trusted_since: Mutex::new(Instant::now()) };
        let size = usize::try_from(size.max(1)).unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS);
        // Without time-outs of its own, it builds with whatever it is given.
        let config = managed::PoolConfig::new(size);
        let pool = Pool::builder(maker).config(config).build();
        #[allow(clippy::expect_used, reason = "it fails for time-outs without a runtime only, and has none")]
        let pool = pool.expect("a pool without time-outs");
        Self { pool, size, room: Arc::new(Semaphore::new(size)), narrow: Arc::default(), route, patience }
    }

    /// A statement for these connections. Where they do not keep their sessions it has no name.
    pub(crate) fn query(&self, sql: &SqlStr) -> Sql<'static> {
        sqlx::query(sql.clone()).persistent(self.route.keeps() == Keeps::Sessions)
    }

    /// Runs one statement.
    ///
    /// # Errors
    /// What an error [means](meaning_of); [`StoreError::Unavailable`] when there is no connection to be had, with what
    /// the server says about it.
    pub(crate) async fn rows(&self, sql: Sql<'_>) -> Result<Vec<PgRow>, StoreError> {
        let mut taken = self.take().await?;
        let answer = timeout(self.patience, async {
            let connection = taken.begin().await?;
            let rows = sql.fetch_all(connection).await.map_err(|error| meaning_of(&error));
            taken.end(rows).await
        });
        let answer = answer.await;
        taken.settle(answer, self.patience)
    }

    /// How many there are that nobody uses.
    pub(crate) fn idle(&self) -> usize {
        self.pool.status().available
    }

    /// A connection, for several statements.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub(crate) async fn take(&self) -> Result<Taken, StoreError> {
        timeout(self.patience, self.place()).await.unwrap_or_else(|_| {
            let (patience, narrow) = (self.patience, self.narrow());
            let busy = self.size - narrow.kept.len();
            let why = match narrow.since {
                Some(_) => format!("and the server has room for no more: {}", narrow.why),
                None => "or the server does not answer".into(),
            };
            Err(StoreError::Unavailable(format!("no connection within {patience:?}: all {busy} are busy, {why}")))
        })
    }

    /// Where the server has room for no more, those that there are are waited for.
    async fn place(&self) -> Result<Taken, StoreError> {
        loop {
            self.widen();
            // The semaphore is never closed.
            let room = self.room.clone().acquire_owned().await.map_err(|_| gone())?;
            match self.pool.get().await {
                Ok(place) => {
                    let (route, since) = (self.route.clone(), Instant::now());
                    return Ok(Taken { place: Some(place), route, since, _room: room });
                }
                Err(PoolError::Backend(error)) if error.is_full() && self.without(room, &error) => {}
                Err(PoolError::Backend(error)) => return Err(StoreError::Unavailable(error.to_string())),
                Err(error) => return Err(StoreError::Unavailable(error.to_string())),
            }
        }
    }

    /// Does with one less for a while, if that is not the last one.
    fn without(&self, room: OwnedSemaphorePermit, error: &SetupError) -> bool {
        let mut narrow = self.narrow();
        if narrow.kept.len() + 1 >= self.size {
            return false;
        }
        if narrow.kept.is_empty() {
            tracing::warn!(%error, "the store has to do with fewer connections than it was told");
        }
        narrow.kept.push(room);
        (narrow.since, narrow.why) = (Some(Instant::now()), error.to_string());
        true
    }

    fn narrow(&self) -> MutexGuard<'_, Narrow> {
        self.narrow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There may be room again.
    fn widen(&self) {
        let mut narrow = self.narrow();
        if narrow.since.is_some_and(|since| since.elapsed() >= FULL) {
            *narrow = Narrow::default();
        }
    }
}

/// What the server had no room for.
#[derive(Debug, Default)]
struct Narrow {
    kept: Vec<OwnedSemaphorePermit>,
    since: Option<Instant>,
    /// What it says about it.
    why: String,
}

fn gone() -> StoreError {
    StoreError::Unavailable("the connection is gone".into())
}

/// A connection out of the pool. Dropped, it is closed.
pub(crate) struct Taken {
    place: Option<Object<Maker>>,
    route: Arc<Route>,
    since: Instant,
    _room: OwnedSemaphorePermit,
}

impl Taken {
    /// Begins what is done in one go. Where sessions do not last it is a transaction, which brings the settings.
    pub(crate) async fn begin(&mut self) -> Result<&mut PgConnection, StoreError> {
        let Some(place) = &mut self.place else { return Err(gone()) };
        if self.route.keeps() == Keeps::Transactions {
            let begin = place.begin(self.route.settings());
            // Whatever the reason: the connection is in a state that nobody knows, and is closed.
            let begun = sqlx::raw_sql(begin).execute(place.connection()).await;
            begun.map_err(|error| StoreError::Unavailable(told(&error)))?;
        }
        Ok(place.connection())
    }

    /// Ends it.
    pub(crate) async fn end<T>(&mut self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        let Some(place) = &mut self.place else { return Err(gone()) };
        if self.route.keeps() == Keeps::Sessions {
            return answer;
        }
        let end = if answer.is_ok() { "COMMIT" } else { "ROLLBACK" };
        let ended = sqlx::raw_sql(end).execute(place.connection()).await;
        match (answer, ended) {
            (answer, Ok(_)) => answer,
            (Ok(_), Err(error)) => Err(meaning_of(&error)),
            // It could not be taken back: the connection is closed, and with it the transaction ends.
            (Err(_), Err(error)) => Err(StoreError::Unavailable(told(&error))),
        }
    }

    /// Gives the connection back if it answered, and closes it if it did not, or if it cannot do what was asked: the
    /// server behind it may not be the primary any more.
    pub(crate) fn settle<T>(
        mut self,
        answer: Result<Result<T, StoreError>, Elapsed>,
        patience: Duration,
    ) -> Result<T, StoreError> {
        let late = |_| Err(StoreError::Unavailable(format!("no answer within {patience:?}")));
        let answer = answer.unwrap_or_else(late);
        if !matches!(answer, Err(StoreError::Unavailable(_))) {
            drop(self.place.take());
        }
        answer
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else { return };
        if self.since.elapsed() >= SILENCE
            && let Some(pool) = Object::pool(&place)
        {
            pool.manager().distrust();
        }
        drop(Object::take(place));
    }
}

/// Makes connections, and looks at them before they are used again.
#[derive(Debug)]
struct Maker {
    route: Arc<Route>,
    /// Those that were last looked at before are closed.
    trusted_since: Mutex<Instant>,
}

impl Maker {
    /// One of them was silent: the others may lead nowhere as well.
    fn distrust(&self) {
        *self.trusted_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl managed::Manager for Maker {
    type Type = Opened;
    type Error = SetupError;

    async fn create(&self) -> Result<Opened, SetupError> {
        self.route.open().await
    }

    async fn recycle(&self, opened: &mut Opened, _: &Metrics) -> RecycleResult<SetupError> {
        let trusted_since = *self.trusted_since.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.looked() < trusted_since {
            return Err(RecycleError::message("others that are as old were silent"));
        }
        let silence = Silence { maker: self, since: Instant::now() };
        let looked = opened.still_holds().await;
        drop(silence);
        match looked {
            Ok(true) => Ok(()),
            Ok(false) => Err(RecycleError::message("it is too old")),
            Err(error) => {
                tracing::warn!(%error, "a connection of the store is replaced");
                Err(RecycleError::Backend(error))
            }
        }
    }
}

/// Notices a look that took too long, also one that nobody waits for any more.
struct Silence<'m> {
    maker: &'m Maker,
    since: Instant,
}

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        if self.since.elapsed() >= SILENCE {
            self.maker.distrust();
        }
    }
}
