//! One fault at one point of a run, as its victim sees it.

use crate::{
    Encoded, MemoryStore, SagaId, WorkerId,
    definition::{Arguments, Call, Graph, Process, Sending, StepIndex},
    machine::{Outcome, Status},
    message::Op,
    store::{
        Append, Appended, Census, DefinitionId, Hint, Mail, Posted, Record, Ripe, Room, Start, Started, Store,
        StoreError,
    },
};
use async_trait::async_trait;
use futures::future::BoxFuture;
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::{Notify, broadcast};

/// A place where something can go wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Point {
    /// A write to the store: a start, or an append.
    Write(&'static str),
    /// An attempt of a step.
    Attempt(String),
    /// An attempt of a compensation.
    Compensation(String),
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(what) => write!(f, "the write of {what}"),
            Self::Attempt(step) => write!(f, "an attempt of `{step}`"),
            Self::Compensation(step) => write!(f, "an attempt to undo `{step}`"),
        }
    }
}

/// What goes wrong there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The process dies before.
    CrashBefore,
    /// The process dies after, before it knows the answer.
    CrashAfter,
    /// It was done, and its answer is lost.
    LostAnswer,
    /// It is done, and neither this answer nor those to the next attempts arrive, until the step gives up.
    NoAnswer,
    /// It was not done, and nobody knows.
    LostRequest,
    /// It was not done, for a moment.
    Transient,
    /// It was not done, for good.
    Refused,
    /// It panics, after it was done.
    Panic,
    /// It is done twice.
    Twice,
    /// The process dies, and it is done long after.
    Late,
}

impl Fault {
    pub(super) const fn at(point: &Point) -> &'static [Self] {
        use Fault::*;
        match point {
            Point::Write(_) => &[CrashBefore, CrashAfter, LostAnswer],
            Point::Attempt(_) => {
                &[CrashBefore, CrashAfter, LostAnswer, NoAnswer, LostRequest, Transient, Refused, Panic, Twice, Late]
            }
            Point::Compensation(_) => &[CrashBefore, CrashAfter, LostAnswer, NoAnswer, LostRequest, Panic, Twice],
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CrashBefore => "a crash before",
            Self::CrashAfter => "a crash after",
            Self::LostAnswer => "a lost answer to",
            Self::NoAnswer => "no answer ever to",
            Self::LostRequest => "a lost request for",
            Self::Transient => "a transient error of",
            Self::Refused => "a refusal of",
            Self::Panic => "a panic in",
            Self::Twice => "a repetition of",
            Self::Late => "a crash before, and long after it the execution of,",
        })
    }
}

type LateWork = BoxFuture<'static, ()>;

/// The faults of one run, and what was seen of it.
#[derive(Default)]
pub(super) struct Faults {
    /// At which points, counted from the start of the run.
    pub(super) planned: Vec<(usize, Fault)>,
    seen: Mutex<Seen>,
    /// The process is to die.
    pub(super) crash: Notify,
}

#[derive(Default)]
struct Seen {
    points: Vec<Point>,
    late: Vec<LateWork>,
    payloads: HashMap<String, String>,
    two_payloads: Vec<String>,
    /// Where no answer arrives, and for how many attempts still.
    silent: Option<(Point, u32)>,
}

/// After so many attempts even a step that never gives up gets its answer.
const SILENCE: u32 = 100;

impl Faults {
    pub(super) fn planned(planned: Vec<(usize, Fault)>) -> Arc<Self> {
        Arc::new(Self { planned, ..Self::default() })
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The points of the run so far.
    pub(super) fn points(&self) -> Vec<Point> {
        self.seen().points.clone()
    }

    pub(super) fn late_work(&self) -> Vec<LateWork> {
        std::mem::take(&mut self.seen().late)
    }

    /// Idempotency keys that were seen with two payloads.
    pub(super) fn two_payloads(&self) -> Vec<String> {
        self.seen().two_payloads.clone()
    }

    /// From now on answers arrive.
    pub(super) fn end_the_silence(&self) {
        self.seen().silent = None;
    }

    fn next(&self, point: Point) -> Option<Fault> {
        let mut seen = self.seen();
        let at = seen.points.len();
        seen.points.push(point.clone());
        if let Some((silent, left)) = &mut seen.silent
            && *silent == point
            && *left > 0
        {
            *left -= 1;
            return Some(Fault::LostAnswer);
        }
        match self.planned.iter().find(|(planned, _)| *planned == at)?.1 {
            Fault::NoAnswer => {
                seen.silent = Some((point, SILENCE));
                Some(Fault::LostAnswer)
            }
            fault => Some(fault),
        }
    }

    fn called(&self, key: &str, arguments: &Arguments) {
        let payload = format!("{arguments:?}");
        let mut seen = self.seen();
        let before = seen.payloads.entry(key.to_owned()).or_insert_with(|| payload.clone()).clone();
        if before != payload {
            seen.two_payloads.push(format!("{key}: {before} and then {payload}"));
        }
    }

    async fn die<T>(&self) -> T {
        self.crash.notify_one();
        std::future::pending().await
    }
}

/// A process in which attempts go wrong.
pub(super) struct FaultyProcess {
    pub(super) inner: Arc<dyn Process>,
    pub(super) faults: Arc<Faults>,
}

impl Process for FaultyProcess {
    fn graph(&self) -> &Arc<Graph> {
        self.inner.graph()
    }

    fn output(&self) -> StepIndex {
        self.inner.output()
    }

    fn sending(&self, step: StepIndex, op: Op) -> Option<&Sending> {
        self.inner.sending(step, op)
    }

    fn run(&self, step: StepIndex, call: Call, arguments: Arguments) -> BoxFuture<'static, Outcome> {
        let (inner, faults) = (self.inner.clone(), self.faults.clone());
        Box::pin(async move {
            let run = || inner.run(step, call.clone(), arguments.clone());
            faults.called(&call.forward_key, &arguments);
            match faults.next(Point::Attempt(call.step.clone())) {
                None => run().await,
                Some(Fault::CrashBefore) => faults.die().await,
                Some(Fault::CrashAfter) => {
                    run().await;
                    faults.die().await
                }
                Some(Fault::LostAnswer | Fault::NoAnswer) => {
                    run().await;
                    Outcome::Unknown("the answer was lost".into())
                }
                Some(Fault::LostRequest) => Outcome::Unknown("the request was lost".into()),
                Some(Fault::Transient) => Outcome::Retry("not now".into()),
                Some(Fault::Refused) => Outcome::Fail("refused".into()),
                Some(Fault::Panic) => {
                    run().await;
                    std::panic::resume_unwind(Box::new("injected"))
                }
                Some(Fault::Twice) => {
                    run().await;
                    run().await
                }
                Some(Fault::Late) => {
                    let late = run();
                    faults.seen().late.push(Box::pin(async move { drop(late.await) }));
                    faults.die().await
                }
            }
        })
    }

    fn compensate(
        &self,
        step: StepIndex,
        call: Call,
        arguments: Arguments,
        output: Option<Encoded>,
    ) -> BoxFuture<'static, Result<(), String>> {
        let (inner, faults) = (self.inner.clone(), self.faults.clone());
        Box::pin(async move {
            let undo = || inner.compensate(step, call.clone(), arguments.clone(), output.clone());
            match faults.next(Point::Compensation(call.step.clone())) {
                Some(Fault::CrashBefore | Fault::Late) => faults.die().await,
                Some(Fault::CrashAfter) => {
                    let _ = undo().await;
                    faults.die().await
                }
                Some(Fault::LostAnswer | Fault::NoAnswer) => {
                    let _ = undo().await;
                    Err("the answer was lost".into())
                }
                Some(Fault::LostRequest | Fault::Transient | Fault::Refused) => Err("the request was lost".into()),
                Some(Fault::Panic) => {
                    let _ = undo().await;
                    std::panic::resume_unwind(Box::new("injected"))
                }
                Some(Fault::Twice) => {
                    let _ = undo().await;
                    undo().await
                }
                None => undo().await,
            }
        })
    }
}

/// A store whose writes go wrong.
pub(super) struct FaultyStore {
    pub(super) inner: MemoryStore,
    pub(super) faults: Arc<Faults>,
}

impl FaultyStore {
    async fn write<T>(
        &self,
        what: &'static str,
        write: impl AsyncFnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match self.faults.next(Point::Write(what)) {
            Some(Fault::CrashBefore) => self.faults.die().await,
            Some(Fault::CrashAfter) => {
                write().await?;
                self.faults.die().await
            }
            Some(Fault::LostAnswer) => {
                write().await?;
                Err(StoreError::Unavailable("the connection broke".into()))
            }
            _ => write().await,
        }
    }
}

#[async_trait]
impl Store for FaultyStore {
    async fn register(&self, definition: &DefinitionId, fingerprint: &str) -> Result<String, StoreError> {
        self.inner.register(definition, fingerprint).await
    }
    async fn join(&self, worker: WorkerId, lease: Duration, definitions: &[DefinitionId]) -> Result<(), StoreError> {
        self.inner.join(worker, lease, definitions).await
    }
    async fn beat(&self, worker: WorkerId, lease: Duration) -> Result<bool, StoreError> {
        self.inner.beat(worker, lease).await
    }
    async fn leave(&self, worker: WorkerId) -> Result<(), StoreError> {
        self.inner.leave(worker).await
    }
    async fn returned(&self, worker: WorkerId) -> Result<(), StoreError> {
        self.inner.returned(worker).await
    }
    async fn sweep(&self, limit: usize) -> Result<usize, StoreError> {
        self.inner.sweep(limit).await
    }
    async fn start(&self, batch: &[Start]) -> Result<Vec<Started>, StoreError> {
        self.write("a start", async || self.inner.start(batch).await).await
    }
    async fn append(&self, worker: WorkerId, batch: &[Append]) -> Result<Vec<Appended>, StoreError> {
        self.write("an append", async || self.inner.append(worker, batch).await).await
    }
    async fn claim(
        &self,
        worker: WorkerId,
        definitions: &[DefinitionId],
        ripe: Ripe,
        room: Room,
    ) -> Result<Vec<Record>, StoreError> {
        self.inner.claim(worker, definitions, ripe, room).await
    }
    async fn owned(&self, worker: WorkerId) -> Result<Vec<(SagaId, i64)>, StoreError> {
        self.inner.owned(worker).await
    }
    async fn disown(&self, worker: WorkerId, sagas: &[(SagaId, i64)]) -> Result<(), StoreError> {
        self.inner.disown(worker, sagas).await
    }
    async fn post(&self, batch: &[Mail]) -> Result<Vec<Posted>, StoreError> {
        self.inner.post(batch).await
    }
    async fn mail(
        &self,
        worker: WorkerId,
        definitions: &[DefinitionId],
        limit: usize,
    ) -> Result<Vec<Mail>, StoreError> {
        self.inner.mail(worker, definitions, limit).await
    }
    async fn find(&self, name: &str, key: &str) -> Result<Option<SagaId>, StoreError> {
        self.inner.find(name, key).await
    }
    async fn statuses(&self, sagas: &[SagaId]) -> Result<Vec<Option<Status>>, StoreError> {
        self.inner.statuses(sagas).await
    }
    async fn read(&self, saga: SagaId) -> Result<Option<Record>, StoreError> {
        self.inner.read(saga).await
    }
    async fn census(&self, names: &[String]) -> Result<Vec<Census>, StoreError> {
        self.inner.census(names).await
    }
    async fn unclaimable(&self) -> Result<Vec<DefinitionId>, StoreError> {
        self.inner.unclaimable().await
    }
    fn hint(&self, hint: Hint) {
        self.inner.hint(hint);
    }
    fn hints(&self) -> broadcast::Receiver<Hint> {
        self.inner.hints()
    }
}
