//! The store.

mod append;
mod claim;
mod heads;
mod heart;
mod letters;
mod options;
mod rehearsal;
mod rows;
mod watch;

pub use options::PgStoreOptions;

use crate::{
    SetupError,
    connection::{Connections, Route, Sql, servers},
    error::meaning_of,
    hints::Hints,
    migrations,
    portion::Portion,
    queries::Queries,
};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use heads::Heads;
use heart::PgHeart;
use letters::Letters;
use rows::{column, count, millis, record, status, unzipped, version, worker};
use saga_core::{
    Encoded, SagaId, WorkerId,
    machine::{FORMAT, Status},
    store::{
        Append, Appended, Census, DefinitionId, Heart, Hint, Mail, Posted, Record, Ripe, Room, Start, Started, Store,
        StoreError,
    },
};
use sqlx::{PgConnection, PgPool, SqlStr, postgres::PgRow};
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::broadcast,
    task::AbortHandle,
    time::{sleep, timeout},
};
use uuid::Uuid;
use watch::Watch;

/// How many rows are changed at a time where nobody says so.
const AT_A_TIME: i64 = 500;
/// The pause before rows are tried again that somebody held.
const AGAIN: Duration = Duration::from_millis(20);
/// How long rows are waited for that somebody holds.
const A_MOMENT: Duration = Duration::from_millis(500);

/// Sagas in Postgres. Cheap to clone.
///
/// It has a pool of its own, so that a busy service and its sagas do not wait for each other's connections. Connect it
/// to the *primary*: the answer to a lost commit is only to be found there.
#[derive(Clone, Debug)]
pub struct PgStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    connections: Connections,
    route: Arc<Route>,
    /// Past a pooler, if it was said how.
    aside: Arc<Route>,
    pool: PgPool,
    schema: String,
    queries: Queries,
    hints: Arc<Hints>,
    tasks: [AbortHandle; 2],
    watch: Mutex<Watch>,
    dead: Mutex<Dead>,
    heads: Mutex<Heads<DateTime<Utc>>>,
    letters: Letters,
    portion: Portion,
    sent: AtomicU64,
}

/// Whose sagas are to be taken over.
#[derive(Debug, Default)]
struct Dead {
    owners: HashSet<Uuid>,
    /// When it is looked for more of them, unless at once.
    look_at: Option<Instant>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl PgStore {
    /// Connects to `postgres://user:password@host:port/database`, schema `saga`. The URL may name several servers,
    /// `postgres://user@one,two/database`: the primary among them is used.
    ///
    /// # Errors
    /// As [`PgStoreOptions::connect`].
    pub async fn connect(url: &str) -> Result<Self, SetupError> {
        Self::options(url)?.connect().await
    }

    /// More than the URL can say.
    ///
    /// # Errors
    /// [`SetupError::Url`] for a malformed URL.
    pub fn options(url: &str) -> Result<PgStoreOptions, SetupError> {
        servers(url)?;
        Ok(PgStoreOptions::new(url))
    }

    /// Creates the schema and its tables, or brings them to this version of the library. Every process may call it at
    /// its start, also while others work on the schema, and also with a release that is older than the schema: see the
    /// guide's page on operations.
    ///
    /// Nobody is held up: a migration that has to wait for a lock lets others pass, and tries again.
    ///
    /// # Errors
    /// [`SetupError::Migration`]; [`SetupError::TooNew`] when the schema needs a newer library; and when there is no
    /// connection to be had.
    pub async fn migrate(&self) -> Result<(), SetupError> {
        migrations::run(&self.inner.aside, &self.inner.schema).await
    }

    /// What [`migrate`](Self::migrate) does on an empty database, as SQL for those who run their own migrations.
    pub fn migrations(schema: &str) -> String {
        migrations::printed(schema)
    }

    /// The schema that holds the tables.
    pub fn schema(&self) -> &str {
        &self.inner.schema
    }

    /// Every statement that the store sends, with its name.
    #[doc(hidden)]
    pub fn statements(&self) -> Vec<(&'static str, String)> {
        self.inner.queries.all().into_iter().map(|(name, sql)| (name, sql.as_str().to_owned())).collect()
    }

    /// Tells all processes at once that there may be work, after a transaction that started a saga has committed. They
    /// find it by themselves, a little later.
    pub fn wake(&self) {
        self.hint(Hint::Work);
    }

    /// Tells all processes at once that there may be mail, after a transaction that cancelled a saga has committed.
    /// They find it by themselves, a little later.
    pub fn wake_cancelled(&self) {
        self.hint(Hint::Mail);
    }

    /// A pool for queries of your own, of up to [`connections`](PgStoreOptions::connections) more. It opens none until
    /// it is used. It leads to the server that was the primary when the store was connected, and stays there after a
    /// failover. It has the store's settings: a lock is waited for 100 ms, a statement ends after 30 s, indexes are
    /// preferred to scans. Through a [transaction pooler](PgStoreOptions::transaction_pooler) it has none of them; say
    /// `.persistent(false)` there. For the queries of your service, make a pool of your own.
    pub fn pool(&self) -> &PgPool {
        &self.inner.pool
    }

    /// How many statements the store has sent.
    #[doc(hidden)]
    pub fn statements_sent(&self) -> u64 {
        self.inner.sent.load(Ordering::Relaxed)
    }

    fn queries(&self) -> &Queries {
        &self.inner.queries
    }

    /// A statement for whoever's connection it is. What goes to a user's has no name there: it may be a pooler's, and
    /// another client's name.
    fn statement(&self, sql: &SqlStr, whose: Whose) -> Sql<'static> {
        match whose {
            Whose::Ours => self.query(sql),
            Whose::Users => sqlx::query(sql.clone()).persistent(false),
        }
    }

    /// A statement for the store's own connections.
    fn query(&self, sql: &SqlStr) -> Sql<'static> {
        self.inner.connections.query(sql)
    }

    async fn rows(&self, sql: Sql<'_>) -> Result<Vec<PgRow>, StoreError> {
        self.inner.sent.fetch_add(1, Ordering::Relaxed);
        self.inner.connections.rows(sql).await
    }

    /// For this crate's own tests: runs SQL on all of the store's own connections that are idle.
    #[doc(hidden)]
    pub async fn meddle(&self, sql: &'static str) -> Result<(), StoreError> {
        let mut taken = vec![];
        for _ in 0..self.inner.connections.idle() {
            let mut one = self.inner.connections.take().await?;
            let done = sqlx::raw_sql(sql).execute(one.begin().await?).await;
            done.map_err(|error| meaning_of(&error))?;
            taken.push(one);
        }
        taken.into_iter().try_for_each(|one| one.settle(Ok(Ok(())), self.inner.route.patience()))
    }

    fn heads(&self) -> MutexGuard<'_, Heads<DateTime<Utc>>> {
        self.inner.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dead(&self) -> MutexGuard<'_, Dead> {
        self.inner.dead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.inner.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets workers that were seen to be dead.
    async fn look_for_the_dead(&self) -> Result<(), StoreError> {
        let looked = self.rows(self.query(&self.queries().workers)).await;
        let rows = looked.inspect_err(|_| self.watch().lost_sight())?;
        let workers = rows.iter().map(worker).collect::<Result<Vec<_>, _>>()?;
        let dead = self.watch().look(&workers, Instant::now());
        if dead.is_empty() {
            return Ok(());
        }
        let (ids, until): (Vec<Uuid>, Vec<DateTime<Utc>>) = dead.iter().map(|dead| (dead.id, dead.until)).unzip();
        let buried = self.rows(self.query(&self.queries().bury).bind(ids).bind(until)).await?;
        let buried = buried.iter().map(|row| column(row, "id")).collect::<Result<Vec<Uuid>, _>>()?;
        self.dead().owners.extend(buried);
        Ok(())
    }

    /// Makes due what they owned.
    async fn sweep_the_dead(&self, limit: usize) -> Result<usize, StoreError> {
        let dead: Vec<Uuid> = self.dead().owners.iter().copied().collect();
        if dead.is_empty() {
            return Ok(0);
        }
        let sql = self.query(&self.queries().sweep).bind(&dead).bind(count(limit)).bind(false);
        let swept = self.rows(sql).await?.len();
        if swept == 0 {
            // Of what somebody holds at this moment, the next look for orphans finds whose it is.
            self.dead().owners.retain(|owner| !dead.contains(owner));
        }
        Ok(swept)
    }

    /// Owners that are no workers, and were not buried here. Behind a long transaction it may take long to look for
    /// them: then it is done less often.
    async fn look_for_orphans(&self) -> Result<(), StoreError> {
        let began = Instant::now();
        if self.dead().look_at.is_some_and(|look_at| began < look_at) {
            return Ok(());
        }
        let rows = self.rows(self.query(&self.queries().orphans)).await;
        let (now, took) = (Instant::now(), began.elapsed());
        self.dead().look_at = (took >= A_MOMENT).then(|| now + heads::pause(took));
        let owners = rows?.iter().map(|row| column(row, "owner")).collect::<Result<Vec<Uuid>, _>>()?;
        self.dead().owners.extend(owners);
        Ok(())
    }

    /// Whether one saga could be started in the short form.
    async fn start_one(&self, connection: &mut PgConnection, whose: Whose, start: &Start) -> Result<bool, StoreError> {
        self.inner.sent.fetch_add(1, Ordering::Relaxed);
        let sql = self.statement(&self.queries().start_one, whose).bind(start.saga.as_uuid()).bind(&start.name);
        let sql = sql.bind(version(start.version)?).bind(&start.key).bind(start.input.as_str().as_bytes());
        let sql = sql.bind(start.owner.map(WorkerId::as_uuid)).bind(start.trace.traceparent.as_deref());
        let sql = sql.bind(start.trace.tracestate.as_deref()).bind(start.trace.baggage.as_deref());
        let rows = sql.fetch_all(connection).await.map_err(|error| meaning_of(&error))?;
        Ok(!rows.is_empty())
    }

    /// [`Store::start`], on a connection of the caller's choice.
    pub(crate) async fn start_on(
        &self,
        connection: &mut PgConnection,
        whose: Whose,
        batch: &[Start],
    ) -> Result<Vec<Started>, StoreError> {
        if let [one] = batch
            && self.start_one(&mut *connection, whose, one).await?
        {
            return Ok(vec![Started::New]);
        }
        let ids: Vec<Uuid> = batch.iter().map(|start| start.saga.as_uuid()).collect();
        let names: Vec<&str> = batch.iter().map(|start| start.name.as_str()).collect();
        let versions: Vec<i32> = batch.iter().map(|start| version(start.version)).collect::<Result<_, _>>()?;
        let keys: Vec<&str> = batch.iter().map(|start| start.key.as_str()).collect();
        let inputs: Vec<&[u8]> = batch.iter().map(|start| start.input.as_str().as_bytes()).collect();
        let owners: Vec<Option<Uuid>> = batch.iter().map(|start| start.owner.map(WorkerId::as_uuid)).collect();
        let parents: Vec<Option<&str>> = batch.iter().map(|start| start.trace.traceparent.as_deref()).collect();
        let states: Vec<Option<&str>> = batch.iter().map(|start| start.trace.tracestate.as_deref()).collect();
        let baggage: Vec<Option<&str>> = batch.iter().map(|start| start.trace.baggage.as_deref()).collect();
        self.inner.sent.fetch_add(1, Ordering::Relaxed);
        let sql = self.statement(&self.queries().start, whose);
        let rows = sql
            .bind(&ids)
            .bind(&names)
            .bind(versions)
            .bind(&keys)
            .bind(inputs)
            .bind(owners)
            .bind(parents)
            .bind(states)
            .bind(baggage)
            .fetch_all(&mut *connection)
            .await
            .map_err(|error| meaning_of(&error))?;
        if rows.len() == batch.len() {
            return Ok(vec![Started::New; batch.len()]);
        }
        let new = rows.iter().map(|row| column(row, "id")).collect::<Result<HashSet<Uuid>, _>>()?;
        let taken = |start: &&Start| !new.contains(&start.saga.as_uuid());
        let (names, keys): (Vec<&str>, Vec<&str>) =
            batch.iter().filter(taken).map(|start| (start.name.as_str(), start.key.as_str())).unzip();
        let sql = self.statement(&self.queries().start_existing, whose);
        let rows = sql.bind(names).bind(keys).fetch_all(&mut *connection).await.map_err(|error| meaning_of(&error))?;
        let mut existing: HashMap<(String, String), (Uuid, Vec<u8>)> = HashMap::new();
        for row in rows {
            existing
                .insert((column(&row, "name")?, column(&row, "key")?), (column(&row, "id")?, column(&row, "input")?));
        }
        let answer = |start: &Start| {
            if new.contains(&start.saga.as_uuid()) {
                return Ok(Started::New);
            }
            let Some((saga, input)) = existing.get(&(start.name.clone(), start.key.clone())) else {
                return Err(StoreError::Contention(format!("the saga with key `{}` was just removed", start.key)));
            };
            if *saga == start.saga.as_uuid() {
                return Ok(Started::New);
            }
            // A user's transaction may have started that one itself, and then nobody else can read it.
            let same_input = match whose {
                Whose::Ours => input == start.input.as_str().as_bytes(),
                Whose::Users => Encoded::from_bytes(input).is_ok_and(|before| before.means_the_same(&start.input)),
            };
            Ok(Started::Existing { saga: (*saga).into(), same_input })
        };
        batch.iter().map(answer).collect()
    }

    async fn tidy(&self) -> Result<(), StoreError> {
        let set_back = self.rows(self.query(&self.queries().set_back).bind(AT_A_TIME)).await;
        self.drop_dead_letters().await?;
        set_back.map(drop)
    }

    /// [`Store::post`], on a connection of the caller's choice.
    pub(crate) async fn post_on(
        &self,
        connection: &mut PgConnection,
        whose: Whose,
        batch: &[Mail],
    ) -> Result<Vec<Posted>, StoreError> {
        let ids: Vec<Uuid> = batch.iter().map(|mail| mail.saga.as_uuid()).collect();
        let messages: Vec<&str> = batch.iter().map(|mail| mail.message.as_str()).collect();
        let bodies: Vec<&[u8]> = batch.iter().map(|mail| mail.body.as_slice()).collect();
        self.inner.sent.fetch_add(1, Ordering::Relaxed);
        let sql = self.statement(&self.queries().post, whose);
        let sql = sql.bind(ids).bind(messages).bind(bodies);
        let rows = sql.fetch_all(&mut *connection).await.map_err(|error| meaning_of(&error))?;
        rows.iter()
            .map(|row| {
                let before: bool = column(row, "before")?;
                Ok(match column::<Option<i16>>(row, "status")? {
                    None => Posted::NoSuchSaga,
                    Some(code) if status(code)?.is_final() && !before => Posted::Ended,
                    Some(_) => Posted::Accepted,
                })
            })
            .collect()
    }
}

#[async_trait]
impl Store for PgStore {
    async fn ready(&self) -> Result<(), StoreError> {
        self.rehearse().await
    }

    fn heart(&self) -> Option<Box<dyn Heart>> {
        Some(Box::new(PgHeart::new(&self.inner.aside, self.queries())))
    }

    async fn register(&self, definition: &DefinitionId, fingerprint: &str) -> Result<String, StoreError> {
        let version = version(definition.version)?;
        let sql = self.query(&self.queries().register);
        self.rows(sql.bind(&definition.name).bind(version).bind(fingerprint)).await?;
        let sql = self.query(&self.queries().registered);
        let rows = self.rows(sql.bind(&definition.name).bind(version)).await?;
        rows.first().map_or_else(|| Ok(fingerprint.to_owned()), |row| column(row, "fingerprint"))
    }

    async fn join(&self, worker: WorkerId, lease: Duration, definitions: &[DefinitionId]) -> Result<(), StoreError> {
        let (names, versions) = unzipped(definitions)?;
        let sql = self.query(&self.queries().join).bind(worker.as_uuid());
        self.rows(sql.bind(millis(lease)).bind(names).bind(versions).bind(FORMAT.cast_signed())).await.map(drop)
    }

    async fn beat(&self, worker: WorkerId, lease: Duration) -> Result<bool, StoreError> {
        let sql = self.query(&self.queries().beat).bind(worker.as_uuid()).bind(millis(lease));
        Ok(!self.rows(sql).await?.is_empty())
    }

    async fn leave(&self, worker: WorkerId) -> Result<(), StoreError> {
        self.rows(self.query(&self.queries().leave).bind(worker.as_uuid())).await.map(drop)
    }

    async fn returned(&self, worker: WorkerId) -> Result<(), StoreError> {
        let (worker, queries, began) = (worker.as_uuid(), self.queries(), Instant::now());
        loop {
            let own = self.query(&queries.sweep).bind(vec![worker]).bind(AT_A_TIME).bind(true);
            let swept = self.query(&queries.returned_swept).bind(worker).bind(AT_A_TIME);
            let some = self.rows(own).await?.len() + self.rows(swept).await?.len();
            // Rows that somebody holds at this moment were passed over.
            let left = self.rows(self.query(&queries.returned_left).bind(worker)).await?;
            match left.first() {
                Some(row) if !column::<bool>(row, "some")? => break,
                None => break,
                _ if some > 0 => {}
                _ if began.elapsed() < A_MOMENT => sleep(AGAIN).await,
                _ => return Err(StoreError::Contention("somebody holds a saga of the worker that came back".into())),
            }
        }
        self.rows(self.query(&queries.leave).bind(worker)).await.map(drop)
    }

    async fn sweep(&self, limit: usize) -> Result<usize, StoreError> {
        self.look_for_the_dead().await?;
        let mut swept = self.sweep_the_dead(limit).await?;
        if swept < limit {
            match self.look_for_orphans().await {
                Err(error) if swept == 0 => return Err(error),
                _ => swept += self.sweep_the_dead(limit - swept).await?,
            }
        }
        // What is tidied beside that keeps nobody from being taken over.
        if let Err(error) = self.tidy().await {
            tracing::warn!(%error, "cannot tidy: it is tried again");
        }
        Ok(swept)
    }

    async fn start(&self, batch: &[Start]) -> Result<Vec<Started>, StoreError> {
        let (mut taken, patience) = (self.inner.connections.take().await?, self.inner.route.patience());
        let answer = timeout(patience, async {
            let started = self.start_on(taken.begin().await?, Whose::Ours, batch).await;
            taken.end(started).await
        });
        let answer = answer.await;
        taken.settle(answer, patience)
    }

    async fn append(&self, worker: WorkerId, batch: &[Append]) -> Result<Vec<Appended>, StoreError> {
        self.write(worker, batch).await
    }

    async fn claim(
        &self,
        worker: WorkerId,
        definitions: &[DefinitionId],
        ripe: Ripe,
        room: Room,
    ) -> Result<Vec<Record>, StoreError> {
        self.take(worker, definitions, ripe, room).await
    }

    async fn owned(&self, worker: WorkerId) -> Result<Vec<(SagaId, i64)>, StoreError> {
        let rows = self.rows(self.query(&self.queries().owned).bind(worker.as_uuid())).await?;
        rows.iter().map(|row| Ok((column::<Uuid>(row, "id")?.into(), column(row, "epoch")?))).collect()
    }

    async fn disown(&self, worker: WorkerId, sagas: &[(SagaId, i64)]) -> Result<(), StoreError> {
        let (ids, epochs): (Vec<Uuid>, Vec<i64>) = sagas.iter().map(|(saga, epoch)| (saga.as_uuid(), epoch)).unzip();
        let sql = self.query(&self.queries().disown).bind(worker.as_uuid());
        self.rows(sql.bind(ids).bind(epochs)).await.map(drop)
    }

    async fn post(&self, batch: &[Mail]) -> Result<Vec<Posted>, StoreError> {
        let (mut taken, patience) = (self.inner.connections.take().await?, self.inner.route.patience());
        let answer = timeout(patience, async {
            let posted = self.post_on(taken.begin().await?, Whose::Ours, batch).await;
            taken.end(posted).await
        });
        let answer = answer.await;
        taken.settle(answer, patience)
    }

    async fn mail(
        &self,
        worker: WorkerId,
        definitions: &[DefinitionId],
        limit: usize,
    ) -> Result<Vec<Mail>, StoreError> {
        self.letters(worker, definitions, limit).await
    }

    async fn find(&self, name: &str, key: &str) -> Result<Option<SagaId>, StoreError> {
        let rows = self.rows(self.query(&self.queries().find).bind(name).bind(key)).await?;
        rows.first().map(|row| column::<Uuid>(row, "id").map(SagaId::from)).transpose()
    }

    async fn statuses(&self, sagas: &[SagaId]) -> Result<Vec<Option<Status>>, StoreError> {
        let ids: Vec<Uuid> = sagas.iter().map(|saga| saga.as_uuid()).collect();
        let mut found = HashMap::new();
        for row in self.rows(self.query(&self.queries().statuses).bind(&ids)).await? {
            found.insert(column::<Uuid>(&row, "id")?, status(column(&row, "status")?)?);
        }
        Ok(ids.iter().map(|id| found.get(id).copied()).collect())
    }

    async fn read(&self, saga: SagaId) -> Result<Option<Record>, StoreError> {
        let rows = self.rows(self.query(&self.queries().read).bind(saga.as_uuid())).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (messages, bodies) = (column::<Vec<String>>(row, "messages")?, column::<Vec<Vec<u8>>>(row, "bodies")?);
        let mail = messages.into_iter().zip(bodies).map(|(message, body)| Mail { saga, message, body }).collect();
        Ok(Some(Record { journal: column(row, "journal")?, mail, ..record(row)? }))
    }

    async fn census(&self, names: &[String]) -> Result<Vec<Census>, StoreError> {
        let rows = self.rows(self.query(&self.queries().census).bind(names)).await?;
        let read = |row: &PgRow| {
            let oldest: Option<i64> = column(row, "oldest_ms")?;
            Ok(Census {
                parked: column::<i64>(row, "parked")?.unsigned_abs(),
                oldest: oldest.map(|age| Duration::from_millis(age.try_into().unwrap_or(0))),
            })
        };
        rows.iter().map(read).collect()
    }

    async fn reads(&self, definition: &DefinitionId) -> Result<u32, StoreError> {
        let sql = self.query(&self.queries().readers).bind(&definition.name).bind(version(definition.version)?);
        let rows = self.rows(sql).await?;
        let newest = rows.first().map(|row| column::<Option<i32>>(row, "reads")).transpose()?.flatten();
        Ok(newest.unwrap_or_default().unsigned_abs())
    }

    async fn unclaimable(&self) -> Result<Vec<DefinitionId>, StoreError> {
        let rows = self.rows(self.query(&self.queries().unclaimable)).await?;
        rows.iter()
            .map(|row| {
                Ok(DefinitionId { name: column(row, "name")?, version: column::<i32>(row, "version")?.unsigned_abs() })
            })
            .collect()
    }

    fn hint(&self, hint: Hint) {
        self.inner.hints.send(hint);
    }

    fn hints(&self) -> broadcast::Receiver<Hint> {
        self.inner.hints.hear()
    }
}

/// Whose connection it is. Ours plan by indexes alone, and keep their plans; on a user's, a plan that was made while
/// the tables were empty would be slow later on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    Ours,
    Users,
}
