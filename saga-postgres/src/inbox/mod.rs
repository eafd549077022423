//! The barrier of a participant, in the database that it works in.

mod batch;

use crate::{
    SetupError,
    connection::{Keeps, Lent, Route, Settings, in_time},
    error::{meaning_of, told},
    migrations,
    queries::Queries,
    rehearsal,
};
use async_trait::async_trait;
use batch::{Done, Trouble};
use chrono::DateTime;
use saga_core::{
    message::Answer,
    participant::{Inbox, Job},
    transport::{TransportError, Unavailable},
};
use sqlx::{
    Connection, PgConnection, PgPool, Postgres, Row, SqlStr,
    postgres::{PgArguments, PgConnectOptions},
    query::Query,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

/// How many jobs share a transaction at most.
const TOGETHER: usize = 50;
/// How often a job alone is tried when it meets contention, or when its connection ends under it.
const TRIES: u32 = 5;
/// How often a job may end its connection before it is taken to be the cause.
const CONNECTIONS: u32 = 3;
/// How many rows are removed in one transaction.
const PRUNED_AT_ONCE: i64 = 1000;
/// How such a transaction begins. Its statement is planned by the index, in whose order it stops at its limit: where little
/// is known of the table, to read all that is old, or all rows, may look cheaper.
const PRUNES: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = 10000;
    SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off";

/// What a participant remembers of its commands, in Postgres: an [`Inbox`] whose handlers write in the same transaction.
///
/// ```no_run
/// use saga_core::{StepError, participant::{Command, CommandCx, Participant}};
/// use saga_postgres::PgInbox;
/// use sqlx::PgConnection;
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Reserve { sku: String, quantity: i32 }
/// # impl Command for Reserve { const TYPE: &'static str = "inventory.reserve.v1"; const TOPIC: &'static str = "inventory.commands"; type Reply = (); }
/// async fn reserve(_: CommandCx<()>, db: &mut PgConnection, it: Reserve) -> Result<(), StepError> {
///     let taken = sqlx::query("UPDATE stock SET free = free - $1 WHERE sku = $2 AND free >= $1");
///     match taken.bind(it.quantity).bind(it.sku).execute(db).await?.rows_affected() {
///         0 => Err(StepError::fail("out of stock")),
///         _ => Ok(()), // stands if and only if the answer does
///     }
/// }
/// # async fn run(pool: sqlx::PgPool, transport: std::sync::Arc<dyn saga_core::transport::Transport>) -> Result<(), Box<dyn std::error::Error>> {
/// let inbox = PgInbox::new(pool); // the participant's own database
/// inbox.migrate().await?;
/// let inventory = Participant::new("inventory", inbox, ()).on(reserve).start(transport).await?;
/// # Ok(()) }
/// ```
///
/// # A handler and its transaction
///
/// A handler writes on the connection that it is given, and neither commits nor rolls back (a savepoint of its own, with `begin`, is fine). Up to 50 commands share a
/// transaction, a savepoint each, so one that fails takes nothing of its neighbours with it. (Events that a function handles [in one call](saga_core::participant::Listener::on_batch) share one; if that call
/// fails, they have one each.) (What a handler says with `SET LOCAL` holds for those behind it, too: let each say what it needs, or
/// let them have [no company](saga_core::participant::Participant::batch).) A handler may be called again
/// after everything that it wrote was rolled back: because of a deadlock, a lost connection, or because a neighbour panicked. What it does outside of the transaction has to bear that: hand the
/// [idempotency key](saga_core::participant::CommandCx::idempotency_key) on.
///
/// # When things go wrong
///
/// | what | what follows |
/// |---|---|
/// | deadlock, serialization failure, lock timeout (of 250 ms in a batch, if the connections have none that is shorter) | what was done before it in the batch is committed, the rest runs one by one; a job that meets it five times is answered as its handler says, else `unknown` |
/// | somebody's transaction holds the row of a command: another node at work on it, say | the same: a job alone waits for its row for 8 seconds each time, if its connections have no lock timeout that is shorter. For what its handler locks it waits as long as they say, and no longer than the handler may take |
/// | what was kept of the commands of a batch cannot be read within 10 seconds: many that come again, with long replies, through a slow network | the batch runs one by one. If what was kept of one command cannot be read either, [`Unavailable`] |
/// | a handler panics or takes too long | its connection is closed, the batch runs one by one, and it is answered `unknown` |
/// | a handler ignores an error of the database and returns `Ok` | `unknown`: nothing of it could be kept |
/// | the connection is lost | the batch runs again, one by one; a job that ends its own three times is answered `unknown` |
/// | the answer to the commit is lost | the same: what was committed is found in the inbox |
/// | a handler commits | its statement is refused, nothing of the batch stands, the rest runs one by one, and it is answered `unknown`. This is seen to by a constraint trigger, which `SET CONSTRAINTS ALL IMMEDIATE` sets off as well: name the constraints |
/// | a handler rolls back | the same, but what it writes behind that stands, without the barrier |
/// | a node is suspended in its work | the server ends its transaction five seconds after the work had to be done, and another node does it |
/// | no connection is to be had, or the database refuses before any work is done (a standby, missing rights) | [`Unavailable`]: the batch comes again, and counts against nobody |
///
/// # Retention
///
/// A row has to outlive everything that could bring its command again: what the topic keeps, plus the longest time that a consumer or a saga may stand still. It is
/// [kept for](Self::keep_for) 30 days unless you say otherwise; [`check_retention`](Self::check_retention) compares at the start, and [`prune`](Self::prune) removes what is older.
#[derive(Clone, Debug)]
pub struct PgInbox {
    pool: PgPool,
    schema: Arc<str>,
    queries: Arc<Queries>,
    keep: Duration,
    /// Whether the pool's connections are known to keep their sessions.
    keeps_sessions: Arc<AtomicBool>,
}

const THIRTY_DAYS: Duration = Duration::from_secs(30 * 24 * 3600);

impl PgInbox {
    /// On the participant's own pool, in the schema `saga`.
    pub fn new(pool: PgPool) -> Self {
        Self::build(pool, "saga")
    }

    /// In a schema of another name.
    ///
    /// # Errors
    /// [`SetupError::SchemaName`].
    pub fn in_schema(pool: PgPool, schema: &str) -> Result<Self, SetupError> {
        migrations::check_name(schema)?;
        Ok(Self::build(pool, schema))
    }

    fn build(pool: PgPool, schema: &str) -> Self {
        Self {
            pool,
            schema: schema.into(),
            queries: Arc::new(Queries::new(schema, |_, sql| sql)),
            keep: THIRTY_DAYS,
            keeps_sessions: Arc::default(),
        }
    }

    /// A statement for a user's connection. It has a name only where it is known that no pooler shares sessions between
    /// transactions: there it would be another client's name.
    fn query(&self, sql: &SqlStr) -> Query<'static, Postgres, PgArguments> {
        sqlx::query(sql.clone()).persistent(self.keeps_sessions.load(Ordering::Relaxed))
    }

    fn found(&self, keeps: Keeps) {
        self.keeps_sessions.store(keeps == Keeps::Sessions, Ordering::Relaxed);
    }

    /// Goes once through what each batch does, and takes it back.
    async fn rehearse(&self) -> Result<(), SetupError> {
        let server = PgConnectOptions::clone(&self.pool.connect_options());
        let route = Route::of_a_user(server, Settings::of_the_store()).await?;
        self.found(route.keeps());
        let own = self.queries.all().into_iter().filter(|(name, _)| name.starts_with("inbox_"));
        let mut opened = rehearsal::of(&route, &self.schema, own).await?;
        // A function's own statements show when it runs. The transaction ends with the connection.
        let (sagas, steps, generations) = (vec![Uuid::nil()], vec!["rehearsal"], vec![0]);
        let refused = |error| rehearsal::meaning(error, &self.schema, "saga_inbox_enter");
        let enter = self.query(&self.queries.inbox_enter).bind(sagas).bind(steps).bind(generations);
        enter.execute(opened.connection()).await.map(drop).map_err(refused)
    }

    /// Creates the schema and its tables, or brings them to this version of the library. Every process may call it at its start.
    ///
    /// # Errors
    /// [`SetupError::Migration`], [`SetupError::TooNew`], [`SetupError::Postgres`].
    pub async fn migrate(&self) -> Result<(), SetupError> {
        let keeps = migrations::run_on(&self.pool, &self.schema).await?;
        self.found(keeps);
        Ok(())
    }

    /// How long a row is kept. Defaults to 30 days.
    pub const fn keep_for(mut self, keep: Duration) -> Self {
        self.keep = keep;
        self
    }

    /// Whether rows are kept for long enough. `topic` is what the topic of the commands keeps its records for, `None` if that is for ever; `pause` is the longest time that a consumer or a
    /// saga may stand still. For the start of a service.
    ///
    /// # Errors
    /// [`SetupError::Retention`] if not: a command that came again could be taken for a new one.
    pub fn check_retention(&self, topic: Option<Duration>, pause: Duration) -> Result<(), SetupError> {
        let needed = topic.map(|topic| topic + pause);
        if needed.is_some_and(|needed| needed <= self.keep) {
            return Ok(());
        }
        Err(SetupError::Retention { keep: self.keep, needed })
    }

    /// Forgets what was received longer ago than rows are [kept](Self::keep_for), and says how many rows it was. Call it from time to time; it may run on several nodes at once.
    ///
    /// # Errors
    /// Postgres'. What was forgotten before stays so.
    pub async fn prune(&self) -> Result<u64, SetupError> {
        let (mut pruned, mut from) = (0, DateTime::UNIX_EPOCH);
        loop {
            let mut lent = Lent::from(&self.pool).await?;
            let sql = self.query(&self.queries.inbox_prune).bind(self.keep.as_secs_f64());
            let sql = sql.bind(PRUNED_AT_ONCE).bind(from);
            let removed = in_time(async {
                let mut tx = lent.begin_with(PRUNES).await?;
                let removed = sql.fetch_all(&mut *tx).await?;
                tx.commit().await?;
                Ok::<_, sqlx::Error>(removed)
            });
            let removed = removed.await?;
            lent.give_back();
            let before = pruned;
            for row in &removed {
                pruned += 1;
                // While somebody's transaction is open the index keeps what was removed. It is not passed again.
                from = from.max(row.try_get("received_at")?);
            }
            if pruned - before < PRUNED_AT_ONCE.unsigned_abs() {
                return Ok(pruned);
            }
        }
    }

    /// Runs one job by itself, for as often as it takes to know its answer.
    async fn alone(&self, job: &Job<PgConnection>) -> Result<Answer, Unavailable> {
        let (mut lost, mut tries) = (0, 0);
        loop {
            tries += 1;
            let answer = match self.attempt(std::slice::from_ref(job)).await {
                Ok(Done { mut answers, contended }) => match (answers.pop(), contended) {
                    (Some(answer), _) => return Ok(answer),
                    (None, Some(answer)) => answer,
                    (None, None) => Answer::Unknown("it was not run".into()),
                },
                Err(Trouble::Unavailable(reason)) => return Err(Unavailable(reason)),
                Err(Trouble::Broke(reason) | Trouble::Refused(reason)) => return Ok(Answer::Unknown(reason)),
                Err(Trouble::Contention(reason)) => Answer::Unknown(reason),
                Err(Trouble::Lost(reason)) => {
                    lost += 1;
                    if lost == CONNECTIONS {
                        return Ok(Answer::Unknown(format!("its connection ended each time: {reason}")));
                    }
                    Answer::Unknown(reason)
                }
            };
            if tries == TRIES {
                return Ok(answer);
            }
            tracing::debug!(job = job.id.key(), ?answer, tries, "a command is run again");
            sleep(Duration::from_millis(fastrand::u64(5..20) << tries)).await;
        }
    }
}

#[async_trait]
impl Inbox for PgInbox {
    type Tx = PgConnection;

    async fn ready(&self) -> Result<(), TransportError> {
        match timeout(Lent::PATIENCE, self.rehearse()).await {
            Ok(Err(
                error @ (SetupError::NotMigrated { .. } | SetupError::TooNew { .. } | SetupError::Rights { .. }),
            )) => Err(TransportError(format!("the inbox cannot be used: {error}"))),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the inbox could not be looked at before the start");
                Ok(())
            }
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }

    async fn handle(&self, batch: &[Job<PgConnection>]) -> Result<Vec<Answer>, Unavailable> {
        let mut answers = Vec::with_capacity(batch.len());
        for part in batch.chunks(TOGETHER) {
            let together = match self.attempt(part).await {
                Ok(done) => done.answers,
                Err(Trouble::Unavailable(reason)) => return Err(Unavailable(reason)),
                Err(trouble) => {
                    tracing::warn!(jobs = part.len(), ?trouble, "a batch is run again, one by one");
                    vec![]
                }
            };
            let left = part.iter().skip(together.len());
            answers.extend(together);
            for job in left {
                answers.push(self.alone(job).await?);
            }
        }
        Ok(answers)
    }
}

/// What an error outside of a handler means.
fn trouble(error: &sqlx::Error) -> Trouble {
    use saga_core::store::StoreError;
    match (error, meaning_of(error)) {
        (sqlx::Error::Database(database), _)
            if matches!(database.code().as_deref(), Some("42P01" | "42883" | "3F000")) =>
        {
            Trouble::Unavailable(format!("{}; was `PgInbox::migrate` run on this database?", told(error)))
        }
        (_, StoreError::Contention(reason)) => Trouble::Contention(reason),
        (_, StoreError::Unavailable(reason)) => Trouble::Lost(reason),
        (_, error) => Trouble::Refused(error.to_string()),
    }
}
