//! One transaction: jobs behind the barrier, one after the other, a savepoint each; or one for several that go together.

use super::{PgInbox, trouble};
use crate::{
    connection::{Lent, in_time},
    error::{meaning_of, told},
};
use saga_core::{
    Class, Encoded, StepError,
    message::{Answer, CommandId, Op},
    participant::{Job, Worked},
    store::StoreError,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    time::Duration,
};
use tokio::runtime::Handle;
use uuid::Uuid;

/// How much longer than its jobs a transaction may be silent.
const SILENCE: Duration = Duration::from_secs(5);

/// How long a transaction of several jobs waits for a lock.
const BATCH_PATIENCE_MS: u32 = 250;
/// How long a job alone waits for its row. Shorter than [`Lent::PATIENCE`], so that the server ends the wait: a session
/// whose client has given up would stay in the queue for the row, and each further try would add one. And in five tries
/// it is longer than a handler with the usual 30 seconds may hold the row, also on a node that stands still.
const ROW_PATIENCE_MS: u32 = 8_000;

/// Where the work of a job begins.
const SAVEPOINT: &str = "SAVEPOINT saga_job";
/// The same for a job alone, which has its row by now: from here on its connection's own patience holds.
const SAVEPOINT_ALONE: &str =
    "SELECT set_config('lock_timeout', current_setting('saga.lock_timeout'), true); SAVEPOINT saga_job";

/// Why a transaction came to nothing, or may have.
#[derive(Debug)]
pub(super) enum Trouble {
    /// No connection is to be had, or the database refuses before any job has been run.
    Unavailable(String),
    /// The connection ended, or the outcome of the commit is not known.
    Lost(String),
    /// Others were in the way.
    Contention(String),
    /// A job panicked, took too long, or ended the transaction.
    Broke(String),
    /// The database does not take what was written.
    Refused(String),
}

/// A connection that goes back to the pool only if nothing is left to be done on it. Otherwise, and if nobody waits for it any more, it is closed, and what it was doing at
/// the server is ended: a statement that goes on by itself would hold on to its locks.
struct Held {
    inbox: PgInbox,
    connection: Option<Lent>,
    transaction: Option<Transaction>,
}

/// What a transaction is known by: the process at the server, and its number.
struct Transaction {
    backend: i32,
    xid: String,
}

impl Held {
    fn give_back(mut self) {
        if let Some(connection) = self.connection.take() {
            connection.give_back();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        drop(connection);
        if let (Some(transaction), Ok(runtime)) = (self.transaction.take(), Handle::try_current()) {
            let inbox = self.inbox.clone();
            runtime.spawn(async move {
                if let Err(error) = inbox.end(transaction).await {
                    tracing::warn!(%error, "a transaction that was given up could not be ended at the server");
                }
            });
        }
    }
}

/// What came of a transaction that was committed.
pub(super) struct Done {
    /// Of the first jobs.
    pub(super) answers: Vec<Answer>,
    /// The first job without an answer met contention, and this is what it made of it. It and the rest are to run by themselves.
    pub(super) contended: Option<Answer>,
}

/// A node that stops in the middle of its work, suspended or cut off, must not hold its locks for ever: the server ends its transaction when it has been silent for longer than a job may be.
///
/// Two batches that need the same rows in another order wait for each other, and Postgres looks for that after a second only (`deadlock_timeout`). So a batch has less patience, unless
/// its connections have even less; what it waits for in vain is contention, and jobs that run one by one hold few locks, for a short time.
///
/// A job alone has a limit for its own row only. What its handler locks is waited for as its connections say, within the
/// time that the job is allowed.
fn begin(jobs: &[Job<PgConnection>]) -> String {
    let longest = jobs.iter().map(Job::allowed).max().unwrap_or_default() + SILENCE;
    let silence = i32::try_from(longest.as_millis()).unwrap_or(i32::MAX);
    let patience = if jobs.len() > 1 { BATCH_PATIENCE_MS } else { ROW_PATIENCE_MS };
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = {silence};
         SELECT set_config('saga.lock_timeout', current_setting('lock_timeout'), true);
         SELECT set_config('lock_timeout', '{patience}ms', true)
         WHERE current_setting('lock_timeout')::interval NOT BETWEEN '1us' AND '{patience}ms'"
    )
}

/// What an error means when no job has been run. A pool hands out connections that ended long ago, or that lead to what has become a standby: no job is to blame.
fn before_work(error: &sqlx::Error) -> Trouble {
    match trouble(error) {
        Trouble::Lost(reason) => Trouble::Unavailable(reason),
        trouble => trouble,
    }
}

/// What the barrier says of a command and its undo.
#[derive(Default)]
struct Entry {
    kept: Option<Kept>,
    undone: bool,
    changed: bool,
}

enum Kept {
    Success(Encoded),
    Fail(String),
}

enum Next {
    Answer(Answer),
    Work(Option<Encoded>),
}

impl Entry {
    fn next(&mut self, op: Op) -> Next {
        match (op, &self.kept, self.undone) {
            (Op::Do, Some(Kept::Success(reply)), _) => Next::Answer(Answer::Success(reply.clone())),
            (Op::Do, Some(Kept::Fail(reason)), _) => Next::Answer(Answer::Fail(reason.clone())),
            (Op::Do, None, true) => Next::Answer(Answer::undone()),
            (Op::Do, None, false) => Next::Work(None),
            (Op::Undo, Some(Kept::Success(reply)), false) => Next::Work(Some(reply.clone())),
            (Op::Undo, ..) => {
                self.changed |= !self.undone;
                self.undone = true;
                Next::Answer(Answer::Success(Encoded::null()))
            }
        }
    }

    fn keep(&mut self, op: Op, answer: &Answer) {
        match (op, answer) {
            (Op::Do, Answer::Success(reply)) => self.kept = Some(Kept::Success(reply.clone())),
            (Op::Do, Answer::Fail(reason)) => self.kept = Some(Kept::Fail(reason.clone())),
            (Op::Undo, Answer::Success(_)) => self.undone = true,
            _ => return,
        }
        self.changed = true;
    }

    fn is_empty(&self) -> bool {
        self.kept.is_none() && !self.undone
    }
}

impl PgInbox {
    /// Runs jobs in one transaction.
    pub(super) async fn attempt(&self, jobs: &[Job<PgConnection>]) -> Result<Done, Trouble> {
        let connection = Lent::from(&self.pool).await.map_err(|error| Trouble::Unavailable(told(&error)))?;
        let mut held = Held { inbox: self.clone(), connection: Some(connection), transaction: None };
        let Held { connection: Some(connection), transaction, .. } = &mut held else {
            return Err(Trouble::Lost("it has no connection".into()));
        };
        let done = self.run(connection, transaction, jobs).await?;
        held.give_back();
        Ok(done)
    }

    /// On a connection of its own: those of the pool may all be waiting for the locks of this transaction.
    async fn end(&self, Transaction { backend, xid }: Transaction) -> Result<(), sqlx::Error> {
        in_time(async {
            let mut connection = PgConnection::connect_with(&self.pool.connect_options()).await?;
            // It may be a pooler's connection, where the two parts of a statement with arguments could come to two
            // sessions. Both are numbers.
            let end =
                self.queries.inbox_end.as_str().replace("$1", &backend.to_string()).replace("$2", &format!("'{xid}'"));
            sqlx::raw_sql(AssertSqlSafe(end)).execute(&mut connection).await?;
            connection.close().await
        })
        .await
    }

    async fn run(
        &self,
        connection: &mut PgConnection,
        transaction: &mut Option<Transaction>,
        jobs: &[Job<PgConnection>],
    ) -> Result<Done, Trouble> {
        let begun = in_time(connection.begin_with(AssertSqlSafe(begin(jobs)))).await;
        let mut tx = begun.map_err(|error| before_work(&error))?;
        let entries = self.enter(&mut tx, transaction, jobs).await?;
        let mut working = Working { tx: &mut tx, entries, alone: jobs.len() == 1, at_savepoint: false };
        let (mut answers, mut contended) = (Vec::with_capacity(jobs.len()), None);
        'all: for group in jobs.chunk_by(Job::goes_with) {
            working.together(group).await?;
            for job in group {
                match working.one(job).await? {
                    Worth::Keeping(answer) => answers.push(answer),
                    Worth::AnotherTry(answer) => {
                        contended = Some(answer);
                        break 'all;
                    }
                }
            }
        }
        let Working { entries, .. } = working;
        self.keep(&mut tx, &entries).await?;
        in_time(tx.commit()).await.map_err(|error| trouble(&error))?;
        Ok(Done { answers, contended })
    }

    /// Makes sure that there is a row for each that nobody else can change, and reads those that were there.
    async fn enter(
        &self,
        tx: &mut PgConnection,
        transaction: &mut Option<Transaction>,
        jobs: &[Job<PgConnection>],
    ) -> Result<BTreeMap<CommandId, Entry>, Trouble> {
        let mut entries: BTreeMap<CommandId, Entry> =
            jobs.iter().map(|job| (job.id.clone(), Entry::default())).collect();
        let (sagas, steps, generations) = keys(entries.keys());
        let enter = self.query(&self.queries.inbox_enter).bind(&sagas).bind(&steps).bind(&generations);
        let rows = in_time(enter.fetch_all(&mut *tx)).await;
        // What was kept of many commands may be more than comes through in time, and so it would be each time they come
        // again. Several jobs run one by one then. If it is the database that is away, the first of them finds that out.
        let meaning: fn(&sqlx::Error) -> Trouble = if jobs.len() > 1 { trouble } else { before_work };
        let rows = rows.map_err(|error| meaning(&error))?;
        if rows.len() != entries.len() {
            return Err(Trouble::Contention("a row was removed while it was waited for".into()));
        }
        if let Some(row) = rows.first() {
            let known_by = || Ok(Transaction { backend: row.try_get("backend")?, xid: row.try_get("xid")? });
            *transaction = Some(known_by().map_err(|error: sqlx::Error| trouble(&error))?);
        }
        for row in rows {
            let (id, entry) =
                entry(&row).map_err(|error| Trouble::Refused(format!("a row of the inbox cannot be read: {error}")))?;
            entries.insert(id, entry);
        }
        Ok(entries)
    }

    /// Keeps what is final, removes the rows of what is not, and lets the transaction be committed.
    async fn keep(&self, tx: &mut PgConnection, entries: &BTreeMap<CommandId, Entry>) -> Result<(), Trouble> {
        let changed: Vec<(&CommandId, &Entry)> =
            entries.iter().filter(|(_, entry)| entry.changed || entry.is_empty()).collect();
        let (sagas, steps, generations) = keys(changed.iter().map(|(id, _)| *id));
        let outcomes: Vec<Option<i16>> = changed.iter().map(|(_, entry)| outcome(entry)).collect();
        let replies: Vec<Option<&[u8]>> = changed.iter().map(|(_, entry)| reply(entry)).collect();
        let undone: Vec<bool> = changed.iter().map(|(_, entry)| entry.undone).collect();
        let keep = self.query(&self.queries.inbox_keep).bind(sagas).bind(steps).bind(generations);
        let keep = keep.bind(outcomes).bind(replies).bind(undone);
        in_time(keep.execute(tx)).await.map_err(|error| trouble(&error))?;
        Ok(())
    }
}

/// What an answer is good for.
enum Worth {
    Keeping(Answer),
    /// Others were in the way.
    AnotherTry(Answer),
}

/// A transaction in the middle of its jobs.
struct Working<'t> {
    tx: &'t mut PgConnection,
    entries: BTreeMap<CommandId, Entry>,
    /// Whether there is one job only.
    alone: bool,
    /// Whether nothing was written since the last one.
    at_savepoint: bool,
}

impl Working<'_> {
    /// Does in one call what is new among jobs that go together, so that they are as if they had been done before. If that fails, nothing was done, and they are left to be done one by one.
    async fn together(&mut self, jobs: &[Job<PgConnection>]) -> Result<(), Trouble> {
        let is_new = |job: &&Job<PgConnection>| self.entries.get(&job.id).is_none_or(Entry::is_empty);
        let new: Vec<&Job<PgConnection>> = jobs.iter().filter(is_new).collect();
        let different: BTreeSet<&CommandId> = new.iter().map(|job| &job.id).collect();
        if new.len() < 2 || different.len() < new.len() {
            return Ok(());
        }
        self.savepoint().await?;
        let failed = match Job::work_together(&new, self.tx).await {
            Worked::Broke(reason) => return Err(Trouble::Broke(reason)),
            Worked::Returned(Ok(reply)) => match released(self.tx).await? {
                Ok(()) => {
                    let answer = Answer::Success(reply);
                    for job in new {
                        self.entries.entry(job.id.clone()).or_default().keep(job.op, &answer);
                    }
                    return Ok(());
                }
                Err(reason) => reason,
            },
            Worked::Returned(Err(error)) => error.to_string(),
        };
        tracing::warn!(jobs = new.len(), reason = failed, "they failed together, and are done one by one");
        roll_back(self.tx).await
    }

    /// Does a job's work, if it has to be done.
    async fn one(&mut self, job: &Job<PgConnection>) -> Result<Worth, Trouble> {
        let kept = match self.entries.entry(job.id.clone()).or_default().next(job.op) {
            Next::Answer(answer) => return Ok(Worth::Keeping(answer)),
            Next::Work(kept) => kept,
        };
        self.savepoint().await?;
        let worth = work(self.tx, job, kept, self.alone).await?;
        if let Worth::Keeping(answer) = &worth {
            self.entries.entry(job.id.clone()).or_default().keep(job.op, answer);
        }
        Ok(worth)
    }

    async fn savepoint(&mut self) -> Result<(), Trouble> {
        if !self.at_savepoint {
            let savepoint = if self.alone { SAVEPOINT_ALONE } else { SAVEPOINT };
            let savepoint = in_time(sqlx::raw_sql(savepoint).execute(&mut *self.tx)).await;
            savepoint.map_err(|error| trouble(&error))?;
            self.at_savepoint = true;
        }
        Ok(())
    }
}

/// Does a job's work, and leaves the transaction at a new savepoint.
async fn work(
    tx: &mut PgConnection,
    job: &Job<PgConnection>,
    kept: Option<Encoded>,
    alone: bool,
) -> Result<Worth, Trouble> {
    match job.work(tx, kept).await {
        Worked::Broke(reason) => Err(Trouble::Broke(reason)),
        Worked::Returned(Ok(reply)) => match released(tx).await? {
            Ok(()) => Ok(Worth::Keeping(Answer::Success(reply))),
            Err(reason) => {
                roll_back(tx).await?;
                Ok(Worth::Keeping(Answer::Unknown(reason)))
            }
        },
        Worked::Returned(Err(error)) => {
            roll_back(tx).await?;
            let class = error.class().unwrap_or(Class::Unknown);
            let answer = Answer::refusal(class, error.to_string());
            // A `fail` is its author's word, whatever it came from; but in a batch it may come from our own impatience.
            match (class != Class::Fail || !alone) && is_contention(&error) {
                true => Ok(Worth::AnotherTry(answer)),
                false => Ok(Worth::Keeping(answer)),
            }
        }
    }
}

/// Keeps what was written since the savepoint. The inner error: that cannot be, because an error of the database was passed over.
async fn released(tx: &mut PgConnection) -> Result<Result<(), String>, Trouble> {
    match in_time(sqlx::raw_sql("RELEASE SAVEPOINT saga_job; SAVEPOINT saga_job").execute(tx)).await {
        Ok(_) => Ok(Ok(())),
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("25P02") => {
            Ok(Err("its handler returned, but one of its statements had failed: nothing of it could be kept".into()))
        }
        Err(error) => Err(ended(&error)),
    }
}

async fn roll_back(tx: &mut PgConnection) -> Result<(), Trouble> {
    let rolled_back = in_time(sqlx::raw_sql("ROLLBACK TO SAVEPOINT saga_job").execute(tx)).await;
    rolled_back.map(|_| ()).map_err(|error| ended(&error))
}

/// The savepoint is not there.
fn ended(error: &sqlx::Error) -> Trouble {
    match error {
        sqlx::Error::Database(error) if matches!(error.code().as_deref(), Some("3B001" | "25P01")) => Trouble::Broke(
            "its handler ended the transaction that it was given: use savepoints, and leave the rest to the inbox"
                .into(),
        ),
        error => trouble(error),
    }
}

/// Whether an error that a handler gave back came from a deadlock, a serialization failure, or a lock that was waited for too long.
fn is_contention(error: &StepError) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error.source());
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<sqlx::Error>() {
            return matches!(meaning_of(error), StoreError::Contention(_));
        }
        cause = error.source();
    }
    false
}

fn keys<'i>(ids: impl Iterator<Item = &'i CommandId>) -> (Vec<Uuid>, Vec<&'i str>, Vec<i32>) {
    let (mut sagas, mut steps, mut generations) = (vec![], vec![], vec![]);
    for id in ids {
        sagas.push(id.saga.as_uuid());
        steps.push(id.step.as_str());
        generations.push(generation(id));
    }
    (sagas, steps, generations)
}

/// Every generation has a number of its own, also those that are too large for the column's type.
const fn generation(id: &CommandId) -> i32 {
    id.generation.cast_signed()
}

fn outcome(entry: &Entry) -> Option<i16> {
    entry.kept.as_ref().map(|kept| match kept {
        Kept::Success(_) => 0,
        Kept::Fail(_) => 1,
    })
}

fn reply(entry: &Entry) -> Option<&[u8]> {
    entry.kept.as_ref().map(|kept| match kept {
        Kept::Success(reply) => reply.as_str().as_bytes(),
        Kept::Fail(reason) => reason.as_bytes(),
    })
}

fn entry(row: &sqlx::postgres::PgRow) -> Result<(CommandId, Entry), sqlx::Error> {
    let generation: i32 = row.try_get("generation")?;
    let id = CommandId {
        saga: row.try_get::<Uuid, _>("saga_id")?.into(),
        step: row.try_get("step")?,
        generation: generation.cast_unsigned(),
    };
    let reply: Option<Vec<u8>> = row.try_get("reply")?;
    let reply = reply.unwrap_or_default();
    let kept = match row.try_get::<Option<i16>, _>("outcome")? {
        None => None,
        Some(0) => Some(Kept::Success(Encoded::from_bytes(&reply).map_err(|error| sqlx::Error::Decode(error.into()))?)),
        Some(_) => Some(Kept::Fail(String::from_utf8_lossy(&reply).into_owned())),
    };
    Ok((id, Entry { kept, undone: row.try_get("undone")?, changed: false }))
}
