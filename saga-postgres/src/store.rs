use crate::{SetupError, error::meaning_of, hints::Hints, migrations, queries::Queries};
use async_trait::async_trait;
use saga_core::{
    Encoded, SagaId, WorkerId,
    machine::Status,
    store::{
        Append, Appended, Census, DefinitionId, Hint, Mail, Posted, Record, Ripe, Start, Started, Store, StoreError,
        Then,
    },
    trace::TraceContext,
};
use sqlx::{
    PgConnection, PgPool, Postgres, Row,
    pool::PoolConnection,
    postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow},
    query::Query,
};
use std::{
    collections::{HashMap, HashSet},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::broadcast,
    task::AbortHandle,
    time::{error::Elapsed, timeout},
};
use uuid::Uuid;

type Sql<'q> = Query<'q, Postgres, PgArguments>;

/// How a [`PgStore`] is connected. From [`PgStore::options`].
#[derive(Clone, Debug)]
pub struct PgStoreOptions {
    connect: PgConnectOptions,
    schema: String,
    connections: u32,
    patience: Duration,
    edit: fn(&str, String) -> String,
}

impl PgStoreOptions {
    /// The schema that holds the tables. Several engines, tenants or services can live in one database, in a schema each. Defaults to `saga`.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// The size of the store's own pool. Defaults to 12: the engine's writers, its loops, the hints, and a few for callers.
    pub const fn connections(mut self, connections: u32) -> Self {
        self.connections = connections;
        self
    }

    /// How long one statement may take until its connection is given up and its outcome is unknown. Defaults to 10 seconds.
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// For this crate's own tests: changes statements, to show what breaks without a rule.
    #[doc(hidden)]
    pub const fn edit_sql(mut self, edit: fn(&str, String) -> String) -> Self {
        self.edit = edit;
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// [`SetupError::SchemaName`]; [`SetupError::Postgres`] when there is no connection to be had.
    pub async fn connect(self) -> Result<PgStore, SetupError> {
        migrations::check_name(&self.schema)?;
        // A lock that somebody's open transaction holds must not hold up a batch; a statement that nobody waits for must end. Statements are planned once
        // for a connection, by indexes: a plan made while the tables were empty has to be right when they are large. Where there is no index (the handful of workers) the
        // price that this puts on a scan would have it compiled, for a fifth of a second.
        let connect = self.connect.options([
            ("lock_timeout", "100"),
            ("statement_timeout", "30000"),
            ("idle_in_transaction_session_timeout", "30000"),
            ("plan_cache_mode", "force_generic_plan"),
            ("enable_seqscan", "off"),
            ("jit", "off"),
        ]);
        let pool = PgPoolOptions::new()
            .max_connections(self.connections)
            .min_connections(self.connections.min(4))
            .test_before_acquire(false)
            .acquire_timeout(self.patience)
            .connect_with(connect.clone())
            .await?;
        let queries = Queries::new(&self.schema, self.edit);
        let hints = Hints::new();
        let channel = format!("{}_hints", self.schema);
        // Listening takes a connection for good: hints have their own.
        let aside =
            PgPoolOptions::new().max_connections(2).connect_lazy_with(connect.options([("synchronous_commit", "off")]));
        let sending = tokio::spawn(hints.clone().gather(aside.clone(), queries.notify.clone(), channel.clone()));
        let listening = tokio::spawn(hints.clone().listen(aside, channel));
        let tasks = [sending.abort_handle(), listening.abort_handle()];
        let inner = Inner {
            pool,
            schema: self.schema,
            queries,
            patience: self.patience,
            hints,
            tasks,
            sent: AtomicU64::new(0),
        };
        Ok(PgStore { inner: Arc::new(inner) })
    }
}

/// Sagas in Postgres. Cheap to clone.
///
/// It has a pool of its own, so that a busy service and its sagas do not wait for each other's connections. Connect it to the *primary*:
/// the answer to a lost commit is only to be found there.
#[derive(Clone, Debug)]
pub struct PgStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pool: PgPool,
    schema: String,
    queries: Queries,
    patience: Duration,
    hints: Arc<Hints>,
    tasks: [AbortHandle; 2],
    sent: AtomicU64,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl PgStore {
    /// Connects to `postgres://user:password@host:port/database`, schema `saga`.
    ///
    /// # Errors
    /// [`SetupError::Postgres`] for a malformed URL, and when there is no connection to be had.
    pub async fn connect(url: &str) -> Result<Self, SetupError> {
        Self::options(url)?.connect().await
    }

    /// More than the URL can say.
    ///
    /// # Errors
    /// [`SetupError::Postgres`] for a malformed URL.
    pub fn options(url: &str) -> Result<PgStoreOptions, SetupError> {
        Ok(PgStoreOptions {
            connect: PgConnectOptions::from_str(url)?,
            schema: "saga".into(),
            connections: 12,
            patience: Duration::from_secs(10),
            edit: |_, sql| sql,
        })
    }

    /// Creates the schema and its tables, or brings them to this version of the library. Every process may call it at its start.
    ///
    /// # Errors
    /// [`SetupError::Migration`], [`SetupError::TooNew`], [`SetupError::Postgres`].
    pub async fn migrate(&self) -> Result<(), SetupError> {
        let mut connection = self.inner.pool.acquire().await?;
        migrations::run(&mut connection, &self.inner.schema).await
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

    /// Tells all processes at once that there may be work, after a transaction that started a saga has committed. They find it by
    /// themselves, a little later.
    pub fn wake(&self) {
        self.hint(Hint::Work);
    }

    /// Tells all processes at once that there may be mail, after a transaction that cancelled a saga has committed. They find it by
    /// themselves, a little later.
    pub fn wake_cancelled(&self) {
        self.hint(Hint::Mail);
    }

    /// The store's own pool.
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

    /// Runs one statement. One that is not answered in time costs its connection, so that nobody waits behind it.
    async fn rows(&self, sql: Sql<'_>) -> Result<Vec<PgRow>, StoreError> {
        self.inner.sent.fetch_add(1, Ordering::Relaxed);
        let mut connection = self.inner.pool.acquire().await.map_err(|error| meaning_of(&error))?;
        let answer = timeout(self.inner.patience, sql.fetch_all(&mut *connection)).await;
        self.settle(connection, answer.map(|rows| rows.map_err(|error| meaning_of(&error))))
    }

    /// Gives up a connection that did not answer, or that cannot do what is asked: the server behind it may not be the primary any more.
    fn settle<T>(
        &self,
        connection: PoolConnection<Postgres>,
        answer: Result<Result<T, StoreError>, Elapsed>,
    ) -> Result<T, StoreError> {
        let late = |_| Err(StoreError::Unavailable(format!("no answer within {:?}", self.inner.patience)));
        let answer = answer.unwrap_or_else(late);
        if matches!(answer, Err(StoreError::Unavailable(_))) {
            drop(connection.detach());
        }
        answer
    }

    /// Those appends that this worker wrote before, in a statement whose answer was lost.
    async fn written_before(
        &self,
        worker: WorkerId,
        open: &[&Append],
    ) -> Result<HashMap<SagaId, Appended>, StoreError> {
        let ids: Vec<Uuid> = open.iter().map(|append| append.saga.as_uuid()).collect();
        let seqs: Vec<i32> = open.iter().map(|append| append.seq).collect();
        let rows = self.rows(sqlx::query(self.queries().append_written.clone()).bind(ids).bind(seqs)).await?;
        let entries: HashSet<SagaId> =
            open.iter().filter(|append| append.entry.is_some()).map(|append| append.saga).collect();
        rows.iter()
            .map(|row| {
                let saga = SagaId::from(column::<Uuid>(row, "id")?);
                let answer = match column::<Option<Uuid>>(row, "writer")?.filter(|_| entries.contains(&saga)) {
                    Some(writer) if writer == worker.as_uuid() => Appended::Written,
                    Some(_) => Appended::Lost,
                    None if column::<bool>(row, "exists")? => Appended::Busy,
                    None => Appended::Lost,
                };
                Ok((saga, answer))
            })
            .collect()
    }

    async fn records(&self, rows: Vec<PgRow>) -> Result<Vec<Record>, StoreError> {
        // One row that cannot be read (of a newer version of this library, or damaged) fails no other: it is given back.
        let readable = |row: &PgRow| match record(row) {
            Ok(record) => Some(record),
            Err(error) => {
                tracing::error!(saga = ?row.try_get::<Uuid, _>("id"), %error, "cannot read a saga's row");
                None
            }
        };
        let mut records: Vec<Record> = rows.iter().filter_map(readable).collect();
        if records.is_empty() {
            return Ok(records);
        }
        let ids: Vec<Uuid> = records.iter().map(|record| record.saga.as_uuid()).collect();
        let mut journals: HashMap<Uuid, Vec<Vec<u8>>> = HashMap::new();
        for row in self.rows(sqlx::query(self.queries().journals.clone()).bind(&ids)).await? {
            journals.entry(column(&row, "saga_id")?).or_default().push(column(&row, "entry")?);
        }
        let mut unread: HashMap<Uuid, Vec<Mail>> = HashMap::new();
        for row in self.rows(sqlx::query(self.queries().unread.clone()).bind(&ids)).await? {
            unread.entry(column(&row, "saga_id")?).or_default().push(mail(&row)?);
        }
        for record in &mut records {
            record.journal = journals.remove(&record.saga.as_uuid()).unwrap_or_default();
            record.mail = unread.remove(&record.saga.as_uuid()).unwrap_or_default();
        }
        Ok(records)
    }

    /// [`Store::start`], on a connection of the caller's choice.
    pub(crate) async fn start_on(
        &self,
        connection: &mut PgConnection,
        whose: Whose,
        batch: &[Start],
    ) -> Result<Vec<Started>, StoreError> {
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
        let sql = sqlx::query(self.queries().start.clone());
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
        let sql = sqlx::query(self.queries().start_existing.clone()).persistent(whose == Whose::Ours);
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
        let sql = sqlx::query(self.queries().post.clone()).persistent(whose == Whose::Ours);
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
    async fn register(&self, definition: &DefinitionId, fingerprint: &str) -> Result<String, StoreError> {
        let version = version(definition.version)?;
        let sql = sqlx::query(self.queries().register.clone());
        self.rows(sql.bind(&definition.name).bind(version).bind(fingerprint)).await?;
        let sql = sqlx::query(self.queries().registered.clone());
        let rows = self.rows(sql.bind(&definition.name).bind(version)).await?;
        rows.first().map_or_else(|| Ok(fingerprint.to_owned()), |row| column(row, "fingerprint"))
    }

    async fn join(&self, worker: WorkerId, lease: Duration, definitions: &[DefinitionId]) -> Result<(), StoreError> {
        let (names, versions) = unzipped(definitions)?;
        let sql = sqlx::query(self.queries().join.clone()).bind(worker.as_uuid());
        self.rows(sql.bind(millis(lease)).bind(names).bind(versions)).await.map(drop)
    }

    async fn beat(&self, worker: WorkerId, lease: Duration) -> Result<bool, StoreError> {
        let sql = sqlx::query(self.queries().beat.clone()).bind(worker.as_uuid()).bind(millis(lease));
        Ok(!self.rows(sql).await?.is_empty())
    }

    async fn leave(&self, worker: WorkerId) -> Result<(), StoreError> {
        self.rows(sqlx::query(self.queries().leave.clone()).bind(worker.as_uuid())).await.map(drop)
    }

    async fn sweep(&self, limit: usize) -> Result<usize, StoreError> {
        self.rows(sqlx::query(self.queries().bury.clone())).await?;
        self.rows(sqlx::query(self.queries().drop_dead_mail.clone())).await?;
        let rows = self.rows(sqlx::query(self.queries().orphans.clone())).await?;
        let dead = rows.iter().map(|row| column(row, "owner")).collect::<Result<Vec<Uuid>, _>>()?;
        if dead.is_empty() {
            return Ok(0);
        }
        let sql = sqlx::query(self.queries().sweep.clone()).bind(dead).bind(count(limit));
        Ok(self.rows(sql).await?.len())
    }

    async fn start(&self, batch: &[Start]) -> Result<Vec<Started>, StoreError> {
        let mut connection = self.inner.pool.acquire().await.map_err(|error| meaning_of(&error))?;
        let answer = timeout(self.inner.patience, self.start_on(&mut connection, Whose::Ours, batch)).await;
        self.settle(connection, answer)
    }

    async fn append(&self, worker: WorkerId, batch: &[Append]) -> Result<Vec<Appended>, StoreError> {
        let ids: Vec<Uuid> = batch.iter().map(|append| append.saga.as_uuid()).collect();
        let epochs: Vec<i64> = batch.iter().map(|append| append.epoch).collect();
        let seqs: Vec<i32> = batch.iter().map(|append| append.seq).collect();
        let entries: Vec<Option<&[u8]>> = batch.iter().map(|append| append.entry.as_deref()).collect();
        let statuses: Vec<Option<i16>> = batch.iter().map(|append| append.status.map(code)).collect();
        let releases: Vec<bool> = batch.iter().map(|append| append.then != Then::Keep).collect();
        let due: Vec<Option<i64>> = batch
            .iter()
            .map(|append| match append.then {
                Then::Keep => None,
                Then::Release { due_in } => due_in.map(millis),
            })
            .collect();
        let (read_by, read): (Vec<Uuid>, Vec<&str>) = batch
            .iter()
            .flat_map(|append| append.read.iter().map(|message| (append.saga.as_uuid(), message.as_str())))
            .unzip();
        let sql = sqlx::query(self.queries().append.clone()).bind(worker.as_uuid());
        let sql = sql.bind(ids).bind(epochs).bind(seqs).bind(entries).bind(statuses).bind(releases).bind(due);
        let mut answers: HashMap<SagaId, Appended> = match self.rows(sql.bind(read_by).bind(read)).await {
            Ok(rows) => rows
                .iter()
                .map(|row| {
                    let mine = column::<bool>(row, "mine")?;
                    let answer = if mine { Appended::Written } else { Appended::Lost };
                    Ok((SagaId::from(column::<Uuid>(row, "id")?), answer))
                })
                .collect::<Result<_, StoreError>>()?,
            // An entry stands already: an earlier statement came through after all. Those that stand are answered, the others are tried again.
            Err(StoreError::Rejected(text)) if text.contains("saga_journal_pkey") => HashMap::new(),
            Err(error) => return Err(error),
        };
        let open: Vec<&Append> =
            batch.iter().filter(|append| answers.get(&append.saga) != Some(&Appended::Written)).collect();
        if !open.is_empty() {
            for (saga, answer) in self.written_before(worker, &open).await? {
                // What was refused stays refused, unless it had been written before.
                match answers.get(&saga) {
                    Some(Appended::Lost) if answer != Appended::Written => {}
                    _ => drop(answers.insert(saga, answer)),
                }
            }
        }
        Ok(batch.iter().map(|append| answers.get(&append.saga).copied().unwrap_or(Appended::Lost)).collect())
    }

    async fn claim(
        &self,
        worker: WorkerId,
        definitions: &[DefinitionId],
        ripe: Ripe,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let (names, versions) = unzipped(definitions)?;
        let sql = match ripe {
            Ripe::Mailed => &self.queries().claim_mailed,
            Ripe::Due => &self.queries().claim_due,
        };
        let sql = sqlx::query(sql.clone()).bind(worker.as_uuid()).bind(&names).bind(&versions);
        let claimed = self.rows(sql.bind(count(limit))).await?;
        self.records(claimed).await
    }

    async fn owned(&self, worker: WorkerId) -> Result<Vec<(SagaId, i64)>, StoreError> {
        let rows = self.rows(sqlx::query(self.queries().owned.clone()).bind(worker.as_uuid())).await?;
        rows.iter().map(|row| Ok((column::<Uuid>(row, "id")?.into(), column(row, "epoch")?))).collect()
    }

    async fn disown(&self, worker: WorkerId, sagas: &[(SagaId, i64)]) -> Result<(), StoreError> {
        let (ids, epochs): (Vec<Uuid>, Vec<i64>) = sagas.iter().map(|(saga, epoch)| (saga.as_uuid(), epoch)).unzip();
        let sql = sqlx::query(self.queries().disown.clone()).bind(worker.as_uuid());
        self.rows(sql.bind(ids).bind(epochs)).await.map(drop)
    }

    async fn post(&self, batch: &[Mail]) -> Result<Vec<Posted>, StoreError> {
        let mut connection = self.inner.pool.acquire().await.map_err(|error| meaning_of(&error))?;
        let answer = timeout(self.inner.patience, self.post_on(&mut connection, Whose::Ours, batch)).await;
        self.settle(connection, answer)
    }

    async fn mail(&self, worker: WorkerId, limit: usize) -> Result<Vec<Mail>, StoreError> {
        let sql = sqlx::query(self.queries().mail.clone()).bind(worker.as_uuid()).bind(count(limit));
        self.rows(sql).await?.iter().map(mail).collect()
    }

    async fn find(&self, name: &str, key: &str) -> Result<Option<SagaId>, StoreError> {
        let rows = self.rows(sqlx::query(self.queries().find.clone()).bind(name).bind(key)).await?;
        rows.first().map(|row| column::<Uuid>(row, "id").map(SagaId::from)).transpose()
    }

    async fn statuses(&self, sagas: &[SagaId]) -> Result<Vec<Option<Status>>, StoreError> {
        let ids: Vec<Uuid> = sagas.iter().map(|saga| saga.as_uuid()).collect();
        let mut found = HashMap::new();
        for row in self.rows(sqlx::query(self.queries().statuses.clone()).bind(&ids)).await? {
            found.insert(column::<Uuid>(&row, "id")?, status(column(&row, "status")?)?);
        }
        Ok(ids.iter().map(|id| found.get(id).copied()).collect())
    }

    async fn read(&self, saga: SagaId) -> Result<Option<Record>, StoreError> {
        let rows = self.rows(sqlx::query(self.queries().read.clone()).bind(saga.as_uuid())).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (messages, bodies) = (column::<Vec<String>>(row, "messages")?, column::<Vec<Vec<u8>>>(row, "bodies")?);
        let mail = messages.into_iter().zip(bodies).map(|(message, body)| Mail { saga, message, body }).collect();
        Ok(Some(Record { journal: column(row, "journal")?, mail, ..record(row)? }))
    }

    async fn census(&self, names: &[String]) -> Result<Vec<Census>, StoreError> {
        let rows = self.rows(sqlx::query(self.queries().census.clone()).bind(names)).await?;
        let read = |row: &PgRow| {
            let oldest: Option<i64> = column(row, "oldest_ms")?;
            Ok(Census {
                parked: column::<i64>(row, "parked")?.unsigned_abs(),
                oldest: oldest.map(|age| Duration::from_millis(age.try_into().unwrap_or(0))),
            })
        };
        rows.iter().map(read).collect()
    }

    async fn unclaimable(&self) -> Result<Vec<DefinitionId>, StoreError> {
        let rows = self.rows(sqlx::query(self.queries().unclaimable.clone())).await?;
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

/// Whose connection it is. Ours plan by indexes alone, and keep their plans; on a user's, a plan that was made while the tables were empty would be slow later on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    Ours,
    Users,
}

fn column<'r, T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>>(
    row: &'r PgRow,
    name: &str,
) -> Result<T, StoreError> {
    row.try_get(name).map_err(|error| StoreError::Unavailable(error.to_string()))
}

fn record(row: &PgRow) -> Result<Record, StoreError> {
    let input = Encoded::from_bytes(column(row, "input")?);
    Ok(Record {
        saga: column::<Uuid>(row, "id")?.into(),
        name: column(row, "name")?,
        version: column::<i32>(row, "version")?.unsigned_abs(),
        key: column(row, "key")?,
        status: status(column(row, "status")?)?,
        input: input.map_err(|error| StoreError::Unavailable(error.to_string()))?,
        trace: TraceContext {
            traceparent: column(row, "traceparent")?,
            tracestate: column(row, "tracestate")?,
            baggage: column(row, "baggage")?,
        },
        epoch: column(row, "epoch")?,
        lapses: column::<i32>(row, "lapses")?.unsigned_abs(),
        age: Duration::from_millis(column::<i64>(row, "age_ms")?.try_into().unwrap_or(0)),
        journal: vec![],
        mail: vec![],
    })
}

fn mail(row: &PgRow) -> Result<Mail, StoreError> {
    Ok(Mail {
        saga: column::<Uuid>(row, "saga_id")?.into(),
        message: column(row, "message")?,
        body: column(row, "body")?,
    })
}

const fn code(status: Status) -> i16 {
    match status {
        Status::Running => 0,
        Status::Compensating => 1,
        Status::Parked => 2,
        Status::Completed => 3,
        Status::RolledBack => 4,
    }
}

fn status(code: i16) -> Result<Status, StoreError> {
    Ok(match code {
        0 => Status::Running,
        1 => Status::Compensating,
        2 => Status::Parked,
        3 => Status::Completed,
        4 => Status::RolledBack,
        _ => return Err(StoreError::Unavailable(format!("status {code} is of a newer version of this library"))),
    })
}

fn version(version: u32) -> Result<i32, StoreError> {
    i32::try_from(version).map_err(|_| StoreError::Rejected(format!("version {version} is too large")))
}

fn unzipped(definitions: &[DefinitionId]) -> Result<(Vec<&str>, Vec<i32>), StoreError> {
    let versions = definitions.iter().map(|definition| version(definition.version)).collect::<Result<_, _>>()?;
    Ok((definitions.iter().map(|definition| definition.name.as_str()).collect(), versions))
}

fn millis(duration: Duration) -> i64 {
    // A thousand years are enough, and Postgres can still add them to a date.
    const LONGEST: u128 = 1000 * 365 * 24 * 3600 * 1000;
    i64::try_from(duration.as_millis().min(LONGEST)).unwrap_or(i64::MAX)
}

fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
