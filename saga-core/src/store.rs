//! What the engine stands on: a durable place for sagas.
//!
//! # The contract
//!
//! A store keeps, for each saga, one *row* (identity, input, status, who owns it, when it is due) and an append-only *journal*; a *mailbox* of
//! messages from outside; the *workers* with their heartbeats; and the fingerprints of *definitions*. It never looks into a
//! journal's bytes. An implementer guarantees:
//!
//! - **Durable answers.** What was answered survives the death of every process. An error other than [`StoreError::Unavailable`]
//!   means that nothing was written. After `Unavailable` nothing is known, and every method may be called again with
//!   the same arguments: it gives the answer that it would have given the first time. Three cannot, and their callers know: a
//!   [`claim`](Store::claim) (what it took is found by [`owned`](Store::owned)), a [`sweep`](Store::sweep), and an append *without an entry* that releases (the saga is no longer the caller's: `Lost`).
//! - **One fence.** [`append`](Store::append) writes for a saga if and only if the caller owns it, at that epoch, at the moment of the commit. A claim, a release
//!   and a loss change owner or epoch, so that nothing a former owner sends later has an effect.
//! - **One mailbox.** [`post`](Store::post) touches neither row nor journal, so that it waits for no owner and no owner waits for it. A message is
//!   read in the very append that folds it, and a second message of the same id is dropped.
//! - **Work is not a lease.** Unowned work waits with a due time; owned work has none. When a worker's heartbeat lapses, all that it owned is
//!   due again, with one more lapse counted.
//! - **Snapshots are short cuts.** The state that an append keeps is what a claim reads in the place of the entries up
//!   to it. A store may also keep none, and read whole journals.
//! - **Silence is not death.** A lapse is survived when the process of its worker speaks again.
//! - **One clock.** Due times and ages are counted by the store's clock. Whether a worker is dead is also a matter of
//!   who
//!   looks: see [`sweep`](Store::sweep).
//! - **Batches.** One bad entry of a batch fails the batch with [`StoreError::Rejected`] and nothing written; the engine halves the batch until the
//!   culprit is alone. Entries that are refused or busy do not disturb their neighbours.
//!
//! [`testing::conformance`](crate::testing) checks all of this for any implementation.

use crate::{
    Encoded, SagaId, WorkerId,
    machine::{FORMAT, Status},
    trace::TraceContext,
};
use async_trait::async_trait;
use std::time::Duration;
use tokio::sync::broadcast;

/// A saga to be written for the first time.
#[derive(Clone, Debug)]
pub struct Start {
    /// Made by the caller, so that a repeated call is recognised.
    pub saga: SagaId,
    /// Of its definition.
    pub name: String,
    /// Of its definition.
    pub version: u32,
    /// The user's idempotency key: unique among the sagas of that name.
    pub key: String,
    /// What the saga is started with.
    pub input: Encoded,
    /// What its trace goes on from.
    pub trace: TraceContext,
    /// The worker that will run it at once (at epoch 1); without one it is due now.
    pub owner: Option<WorkerId>,
}

/// The answer to a [`Start`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    /// The saga stands, by this call or by an earlier one with the same id.
    New,
    /// The key was taken before.
    Existing {
        /// By this saga.
        saga: SagaId,
        /// Whether that one has the same input, byte for byte.
        same_input: bool,
    },
}

/// One append to a saga's journal, by its owner.
#[derive(Clone, Debug)]
pub struct Append {
    /// Whose journal.
    pub saga: SagaId,
    /// The claim under which the caller owns the saga.
    pub epoch: i64,
    /// The place in the journal; the first is 1.
    pub seq: i32,
    /// The entry. `None` for an append that only changes the row.
    pub entry: Option<Vec<u8>>,
    /// Ids of the messages that the entry folds: they are read from then on.
    pub read: Vec<String>,
    /// The saga's new status, if it changes.
    pub status: Option<Status>,
    /// What happens to the claim. With a final status it is always a release for good.
    pub then: Then,
    /// How old the saga is, as its owner counts.
    pub age: Duration,
    /// What becomes of the saga's snapshot.
    pub snapshot: SnapshotChange,
}

/// What an append does with a saga's [snapshot](Snapshot).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SnapshotChange {
    /// Nothing.
    #[default]
    None,
    /// It is this state from now on, which the entry of this append is folded into.
    Replace(Vec<u8>),
    /// It is removed.
    Remove,
}

impl SnapshotChange {
    /// How many bytes are to be written.
    pub(crate) const fn bytes(&self) -> usize {
        match self {
            Self::Replace(state) => state.len(),
            Self::None | Self::Remove => 0,
        }
    }
}

/// A saga's state at a place of its journal, to be read in the place of the entries up to there. The journal stays
/// whole, and stays the truth: a release that cannot read the snapshot reads the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The last entry that is folded into it.
    pub seq: i32,
    /// The state, in bytes that a store does not look into.
    pub state: Vec<u8>,
}

/// What happens to a claim after an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The caller goes on owning the saga.
    Keep,
    /// Nobody owns it any more.
    Release {
        /// When it is due again, from now; `None` for never (it ended, or waits for mail only).
        due_in: Option<Duration>,
    },
}

/// The answer to an [`Append`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It stands, by this call or by an earlier one of the same worker.
    Written,
    /// Another transaction holds the row right now; nothing was written. Try again.
    Busy,
    /// The caller does not own the saga (any more); nothing was written.
    Lost,
}

/// A saga as it stands in the store.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its identity.
    pub saga: SagaId,
    /// Of its definition.
    pub name: String,
    /// Of its definition.
    pub version: u32,
    /// The user's idempotency key.
    pub key: String,
    /// Where it stands.
    pub status: Status,
    /// What it was started with.
    pub input: Encoded,
    /// What its trace goes on from.
    pub trace: TraceContext,
    /// Grows with each claim.
    pub epoch: i64,
    /// How many workers were lost while they owned it.
    pub lapses: u32,
    /// Which of these losses (the first is 1) were no death: their worker [came back](Store::returned) since.
    pub survived: Vec<u32>,
    /// How long ago it was started. When it is claimed, it is at least as old as its owner [said](Append::age) when it
    /// put the saga back, and what it had to wait since: also when the store's clock was set back.
    pub age: Duration,
    /// Its snapshot, if it has one. Of what is [claimed](Store::claim) alone.
    pub snapshot: Option<Snapshot>,
    /// The entries of its journal, the oldest first: those after the snapshot, or all of them.
    pub journal: Vec<Vec<u8>>,
    /// Its unread messages, in the order of their arrival.
    pub mail: Vec<Mail>,
}

impl Record {
    /// How many bytes its input, snapshot and journal have.
    pub fn bytes(&self) -> usize {
        let snapshot = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.state.len());
        self.input.as_str().len() + snapshot + self.journal.iter().map(Vec::len).sum::<usize>()
    }

    /// The place of the last entry in the journal; 0 when there is none.
    pub fn seq(&self) -> i32 {
        let after = i32::try_from(self.journal.len()).unwrap_or(i32::MAX);
        self.snapshot.as_ref().map_or(0, |snapshot| snapshot.seq).saturating_add(after)
    }
}

/// A message from outside to one saga.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// To whom.
    pub saga: SagaId,
    /// Unique for that saga: a repeated message has the same one.
    pub message: String,
    /// What it says.
    pub body: Vec<u8>,
}

/// The answer to a [`Mail`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Posted {
    /// It will be read, or was posted (and perhaps read) before.
    Accepted,
    /// The saga has ended, there is nobody to read it.
    Ended,
    /// There is no such saga.
    NoSuchSaga,
}

/// What is new, as a hint: it may come late, twice or never, and a poll stands behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Some saga is due.
    Work,
    /// Some saga has mail.
    Mail,
    /// Some saga ended or was parked.
    Ended,
}

/// What makes a saga one to be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ripe {
    /// It has unread mail.
    Mailed,
    /// It is due.
    Due,
}

/// What a worker has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// So many sagas.
    pub sagas: usize,
    /// So many bytes of inputs, snapshots and journals, about. One saga fits in any case.
    pub bytes: usize,
    /// None that [lapsed](Record::lapses) more often, not counting what was [survived](Record::survived): it could not
    /// begin here now, and while it is owned it may be lost with a saga that kills this worker. A parked one with mail
    /// may come all the same: a person wants something of it.
    pub lapses: u32,
}

impl Room {
    /// For so many sagas, whatever they weigh and however often they lapsed.
    pub const fn of(sagas: usize) -> Self {
        Self { sagas, bytes: usize::MAX, lapses: u32::MAX }
    }
}

/// Why a store did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The store could not be reached, or its answer was lost: *it may have been done*. Calling again resolves it.
    #[error("the store is unavailable, and whether it did what was asked is not known: {0}")]
    Unavailable(String),
    /// A deadlock, a serialization failure or a lock timeout: nothing was done, calling again is right.
    #[error("the store was contended, nothing was written: {0}")]
    Contention(String),
    /// The store will never take this: nothing was done, calling again is useless.
    #[error("the store refused what was to be written, nothing was written: {0}")]
    Rejected(String),
    /// The store cannot be used as it is set up. From [`Store::ready`] alone.
    #[error("the store cannot be used: {0}")]
    Unsuited(String),
}

/// The definition of a saga as workers register it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DefinitionId {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u32,
}

/// How all sagas of a name stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// How many are parked.
    pub parked: u64,
    /// The age of the oldest that has not ended; `None` if all have.
    pub oldest: Option<Duration>,
}

/// Beats for workers, one at a time, from a thread of its own. From [`Store::heart`].
#[async_trait]
pub trait Heart: Send {
    /// [`Store::beat`].
    async fn beat(&mut self, worker: WorkerId, lease: Duration) -> Result<bool, StoreError>;
}

/// A durable place for sagas. What an implementer guarantees is said in [the module's docs](self).
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Whether all is there that the other methods need: the tables, the rights, the settings. Asked once, at the start
    /// of an engine. The default finds everything in order.
    ///
    /// # Errors
    /// [`StoreError::Unsuited`], which says what to do about it.
    async fn ready(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Remembers a definition's fingerprint, or answers with the one that was remembered before.
    async fn register(&self, definition: &DefinitionId, fingerprint: &str) -> Result<String, StoreError>;

    /// A worker begins, with a lease of this length; it can run these definitions.
    async fn join(&self, worker: WorkerId, lease: Duration, definitions: &[DefinitionId]) -> Result<(), StoreError>;

    /// The worker lives: its lease begins anew. `false` when a sweep has forgotten it; then it never comes back.
    async fn beat(&self, worker: WorkerId, lease: Duration) -> Result<bool, StoreError>;

    /// A heart of its own for a worker's [`beat`](Self::beat), which the engine runs on a thread apart: neither a step
    /// that blocks its runtime nor a busy store silences it. `None`, the default, for a store that lives in this
    /// process: the engine beats from its runtime.
    fn heart(&self) -> Option<Box<dyn Heart>> {
        None
    }

    /// The worker is done. What it still owns lapses.
    async fn leave(&self, worker: WorkerId) -> Result<(), StoreError>;

    /// The process of a worker whose lease lapsed speaks again: it was silent, not dead. What the worker still owns
    /// lapses and is due at once; these losses, and those that a sweep has counted meanwhile, are
    /// [survived](Record::survived). The worker is forgotten. Called before the process joins anew, and again for some
    /// minutes: what the worker sent before may arrive late.
    ///
    /// # Errors
    /// [`StoreError::Contention`] when somebody holds some of these sagas for longer than a moment: it was done for the
    /// others.
    ///
    /// The default does nothing: then each loss counts as a death.
    async fn returned(&self, worker: WorkerId) -> Result<(), StoreError> {
        let _ = worker;
        Ok(())
    }

    /// Forgets workers whose lease lapsed and makes due what they owned, at most `limit` sagas at a time. Answers how many there were.
    ///
    /// A store that other clocks than its own could mislead takes its time: a worker is forgotten when it was seen to
    /// be silent. A process that could not look for a while begins to count anew. It is asked several times a lease.
    async fn sweep(&self, limit: usize) -> Result<usize, StoreError>;

    /// Starts sagas. Answers one by one, in the batch's order.
    async fn start(&self, batch: &[Start]) -> Result<Vec<Started>, StoreError>;

    /// Appends to journals, as the owner `worker`. Answers one by one, in the batch's order; a saga occurs once in a batch.
    async fn append(&self, worker: WorkerId, batch: &[Append]) -> Result<Vec<Appended>, StoreError>;

    /// Takes unowned sagas of these definitions that are `ripe`, as many as there is room for, and reads them: of the
    /// due ones those that have been due longest. A worker asks for those of its definitions that it has room for, which
    /// are others from call to call. What a record has of its saga's mail may be less than all: the
    /// oldest. A saga all of whose mail came while it was owned may be left out, of those with mail, for up to a minute.
    async fn claim(
        &self,
        worker: WorkerId,
        definitions: &[DefinitionId],
        ripe: Ripe,
        room: Room,
    ) -> Result<Vec<Record>, StoreError>;

    /// The sagas that `worker` owns, each with the epoch of its claim.
    async fn owned(&self, worker: WorkerId) -> Result<Vec<(SagaId, i64)>, StoreError>;

    /// Gives back those of these sagas that `worker` owns at that very epoch: due at once, with no lapse counted. It does not know of them, because the answer
    /// to a claim or a start was lost.
    async fn disown(&self, worker: WorkerId, sagas: &[(SagaId, i64)]) -> Result<(), StoreError>;

    /// Puts messages into mailboxes. Answers one by one, in the batch's order.
    async fn post(&self, batch: &[Mail]) -> Result<Vec<Posted>, StoreError>;

    /// Unread messages to sagas of these definitions that `worker` owns, in the order of their arrival, at most `limit`.
    /// When there are more, each of these sagas has its oldest ones among them.
    ///
    /// A message is among the answers again and again until it is read, but not in each: one that an earlier answer had,
    /// or that came with a claim, may be left out for up to a minute.
    async fn mail(&self, worker: WorkerId, definitions: &[DefinitionId], limit: usize)
    -> Result<Vec<Mail>, StoreError>;

    /// The saga of that name and key.
    async fn find(&self, name: &str, key: &str) -> Result<Option<SagaId>, StoreError>;

    /// Where these sagas stand; `None` for those that do not exist.
    async fn statuses(&self, sagas: &[SagaId]) -> Result<Vec<Option<Status>>, StoreError>;

    /// One saga with its whole journal, as last committed.
    async fn read(&self, saga: SagaId) -> Result<Option<Record>, StoreError>;

    /// How the sagas of these names stand. Answers one by one, in the order of the names. It is asked several times a minute, so it must be cheap however many sagas there are.
    async fn census(&self, names: &[String]) -> Result<Vec<Census>, StoreError>;

    /// The newest [format](crate::machine::FORMAT) of journals that a living worker with this definition can read. The
    /// default knows of no other than this release's.
    async fn reads(&self, definition: &DefinitionId) -> Result<u32, StoreError> {
        let _ = definition;
        Ok(FORMAT)
    }

    /// Definitions with due sagas that no living worker has registered. It is asked several times a minute.
    async fn unclaimable(&self) -> Result<Vec<DefinitionId>, StoreError>;

    /// Tells all processes on this store. Does not wait, and may be coalesced. It may be called anywhere, also outside of a runtime.
    fn hint(&self, hint: Hint);

    /// Hints of all processes on this store, this one included.
    fn hints(&self) -> broadcast::Receiver<Hint>;
}
