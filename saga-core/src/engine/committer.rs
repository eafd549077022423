//! Group commit: whatever is waiting is written in one statement, and what queues up meanwhile in the next.
//!
//! An idle engine commits at once; a busy one amortises. There is no timer to tune: the time that one statement takes is
//! what gathers the next batch.

use super::{
    Config,
    lease::Lease,
    rarely::Rarely,
    weight::{Gate, HEAVY, Turn, UNDER_WAY},
};
use crate::{
    WorkerId,
    error::panic_message,
    store::{Append, Appended, Start, Started, Store, StoreError},
};
use async_trait::async_trait;
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The pause before a statement is sent again that the store did not answer, or a row is tried again that was busy.
pub(crate) const AGAIN: Duration = Duration::from_millis(10);
/// The longest pause before a busy row is tried again.
const SELDOM: Duration = Duration::from_secs(1);
/// What got no answer and has so many bytes is sent again in halves.
const MUCH: usize = 64 << 10;
/// When so many wait, a statement for them costs little by itself.
const MANY: usize = 64;
/// More than a statement takes as a rule.
const LONG: Duration = Duration::from_millis(20);
/// How often it is looked whether another statement is to begin.
const LOOK: Duration = Duration::from_millis(2);
/// A key that somebody held is taken to be held for so long after that.
const HELD: Duration = Duration::from_secs(15);
/// So many statements at a time wait for somebody's transaction.
const LANES: usize = 3;
/// So many starts go together while it is looked for what is held.
const PART: usize = 16;
/// How often a start is tried that somebody else's transaction holds up, before its caller is told.
const CONTENDED: u32 = 10;

pub(crate) struct Committer {
    starts: ByWeight<mpsc::Sender<Waiting<Start, Started>>>,
    appends: ByWeight<mpsc::UnboundedSender<WaitingAppend>>,
    /// What is heavy passes it, appends one and starts the other.
    gate: Gate,
    starts_gate: Gate,
}

/// What is light and what is heavy goes in statements of its own: the one would wait for the other.
struct ByWeight<T> {
    light: T,
    heavy: T,
}

impl<T> ByWeight<T> {
    const fn with(&self, bytes: usize) -> &T {
        if bytes < HEAVY { &self.light } else { &self.heavy }
    }
}

/// Runs tasks for as long as the engine.
#[derive(Clone)]
struct Spawn {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Spawn {
    fn task(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(task));
    }
}

/// Something to write, and who waits for the answer. Who gave up waiting has dropped the other end.
struct Waiting<T, A> {
    entry: T,
    answer: oneshot::Sender<Result<A, StoreError>>,
    /// Since when somebody holds its row, and whether that was said.
    busy: Option<(Instant, Rarely)>,
    /// Of what is heavy, until the store has answered: what somebody holds takes no turn from others.
    turn: Turn,
}

impl Committer {
    pub(crate) fn spawn(
        store: &Arc<dyn Store>,
        config: &Config,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let spawn = Spawn { tasks: tasks.clone(), stop: stop.clone() };
        let aside = Aside::new(store.clone());
        // Bounded: whoever starts sagas faster than they can be written waits here. Appends are bounded by the
        // number of sagas in memory, each of which has at most one under way.
        let starts = || {
            let (starts, waiting) = mpsc::channel(2 * config.batch);
            spawn.task(commit_starts(aside.clone(), waiting, config.batch, spawn.clone()));
            starts
        };
        let appends = |at_once| {
            let (appends, waiting) = mpsc::unbounded_channel();
            spawn.task(commit_appends(store.clone(), waiting, config.batch, at_once));
            appends
        };
        Self {
            starts: ByWeight { light: starts(), heavy: starts() },
            // One is enough: what is heavy passes the gate, a little at a time.
            appends: ByWeight { light: appends(config.committers), heavy: appends(1) },
            gate: Gate::new(),
            starts_gate: Gate::new(),
        }
    }

    /// Resolves once the saga stands or is refused. Dropped meanwhile, it may still come to stand.
    pub(crate) async fn start(&self, entry: Start) -> Result<Started, StoreError> {
        let (answer, answered) = oneshot::channel();
        let stopped = || StoreError::Unavailable("the engine has stopped, or its store panicked".into());
        let bytes = Starts::weight(&entry);
        let turn = self.starts_gate.pass(bytes).await;
        let starts = self.starts.with(bytes);
        starts.send(Waiting { entry, answer, busy: None, turn }).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }

    /// What heavy appends pass before they are made.
    pub(crate) const fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The answer; an error only when the store refuses the entry itself. The sender is dropped when the engine stops,
    /// or the store panics: nothing is known then.
    pub(crate) fn append(
        &self,
        lease: &Lease,
        entry: Append,
        turn: Turn,
    ) -> oneshot::Receiver<Result<Appended, StoreError>> {
        let (answer, answered) = oneshot::channel();
        let appends = self.appends.with(Appends::weight(&entry));
        // A closed channel means that the engine stops; the caller sees that by its receiver.
        let _ = appends.send(Waiting { entry: (lease.clone(), entry), answer, busy: None, turn });
        answered
    }
}

/// One of the two statements that a committer sends.
#[async_trait]
trait Write: Sync {
    type Entry: Sync;
    type Answer: Clone + Send;
    /// Whether to try again when the store was contended, or to answer with that.
    const THROUGH_CONTENTION: bool;
    /// How many bytes it has.
    fn weight(entry: &Self::Entry) -> usize;
    async fn write(&self, entries: &[Self::Entry]) -> Result<Vec<Self::Answer>, StoreError>;
}

struct Starts<'s>(&'s dyn Store);

#[async_trait]
impl Write for Starts<'_> {
    type Entry = Start;
    type Answer = Started;
    const THROUGH_CONTENTION: bool = false;
    fn weight(entry: &Start) -> usize {
        entry.input.as_str().len()
    }
    async fn write(&self, entries: &[Start]) -> Result<Vec<Started>, StoreError> {
        self.0.start(entries).await
    }
}

struct Appends<'s>(&'s dyn Store, WorkerId);

#[async_trait]
impl Write for Appends<'_> {
    type Entry = Append;
    type Answer = Appended;
    const THROUGH_CONTENTION: bool = true;
    fn weight(entry: &Append) -> usize {
        entry.snapshot.bytes() + entry.entry.as_ref().map_or(0, Vec::len)
    }
    async fn write(&self, entries: &[Append]) -> Result<Vec<Appended>, StoreError> {
        self.0.append(self.1, entries).await
    }
}

async fn commit_starts(aside: Aside, mut waiting: mpsc::Receiver<Waiting<Start, Started>>, limit: usize, spawn: Spawn) {
    let mut batch = vec![];
    while waiting.recv_many(&mut batch, limit).await > 0 {
        let (held, free): (Vec<_>, Vec<_>) = batch.drain(..).partition(|waiting| aside.is_held(&waiting.entry));
        if !held.is_empty() {
            spawn.task(aside.clone().one_by_one(held));
        }
        let contended = start_together(&*aside.store, free).await;
        if !contended.is_empty() {
            spawn.task(aside.clone().part_by_part(contended));
        }
    }
}

/// Starts what can be started, and gives back the rest when somebody holds a key of it.
async fn start_together(store: &dyn Store, waiting: Vec<Waiting<Start, Started>>) -> Vec<Waiting<Start, Started>> {
    survived(start_all(store, waiting)).await
}

async fn start_all(store: &dyn Store, waiting: Vec<Waiting<Start, Started>>) -> Vec<Waiting<Start, Started>> {
    let (turns, waiting): (Vec<_>, Vec<_>) = waiting.into_iter().map(|w| (w.turn, (w.entry, w.answer))).unzip();
    let (entries, answers): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
    let written = write_until_answered(&entries, &answers, &Starts(store)).await;
    drop(turns);
    let mut contended = vec![];
    for ((entry, answer), written) in entries.into_iter().zip(answers).zip(written) {
        match written {
            Err(StoreError::Contention(_)) => contended.push(Waiting { entry, answer, busy: None, turn: None }),
            written => drop(answer.send(written)),
        }
    }
    contended
}

/// Where starts wait whose keys somebody's open transaction holds, so that they keep no others waiting.
#[derive(Clone)]
struct Aside {
    store: Arc<dyn Store>,
    /// Names and keys, and when each was last found to be held.
    held: Arc<Mutex<HashMap<(String, String), Instant>>>,
    /// How many statements may wait for somebody at once, and how many look who it is.
    lanes: Arc<Semaphore>,
    search: Arc<Semaphore>,
}

impl Aside {
    fn new(store: Arc<dyn Store>) -> Self {
        let lanes = || Arc::new(Semaphore::new(LANES));
        Self { store, held: Arc::default(), lanes: lanes(), search: lanes() }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<(String, String), Instant>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its key was held a moment ago.
    fn is_held(&self, start: &Start) -> bool {
        let mut held = self.held();
        held.retain(|_, seen| seen.elapsed() < HELD);
        !held.is_empty() && held.contains_key(&(start.name.clone(), start.key.clone()))
    }

    /// Somebody holds one of these keys, and it is not known which. Each part waits for itself.
    async fn part_by_part(self, mut waiting: Vec<Waiting<Start, Started>>) {
        let mut parts = vec![];
        while !waiting.is_empty() {
            parts.push(waiting.split_off(waiting.len().saturating_sub(PART)));
        }
        let aside = &self;
        let part = async |part| {
            // The semaphores are never closed.
            let lane = aside.search.acquire().await;
            let contended = start_together(&*aside.store, part).await;
            drop(lane);
            aside.clone().one_by_one(contended).await;
        };
        futures::stream::iter(parts).for_each_concurrent(LANES, part).await;
    }

    async fn one_by_one(self, waiting: Vec<Waiting<Start, Started>>) {
        let aside = &self;
        // Whoever waits here takes no turn from others.
        let waiting: Vec<_> = waiting.into_iter().map(|waiting| Waiting { turn: None, ..waiting }).collect();
        futures::stream::iter(waiting).for_each_concurrent(PART, |waiting| aside.start(waiting)).await;
    }

    async fn start(&self, Waiting { entry, answer, .. }: Waiting<Start, Started>) {
        for attempt in 1.. {
            // Those that nobody was found to hold do not queue up behind those that somebody does.
            let lanes = if self.is_held(&entry) { &self.lanes } else { &self.search };
            let lane = lanes.acquire().await;
            // Nobody waits for it any more: it takes no turn from others.
            if answer.is_closed() {
                return;
            }
            let written = self.store.start(std::slice::from_ref(&entry)).await;
            drop(lane);
            match written {
                Err(StoreError::Contention(error)) => {
                    self.held().insert((entry.name.clone(), entry.key.clone()), Instant::now());
                    if attempt >= CONTENDED || answer.is_closed() {
                        let _ = answer.send(Err(StoreError::Contention(error)));
                        return;
                    }
                    sleep(AGAIN).await;
                }
                Err(StoreError::Unavailable(_)) if !answer.is_closed() => sleep(AGAIN).await,
                written => {
                    // Nobody holds it any more, or nobody did.
                    self.held().remove(&(entry.name.clone(), entry.key.clone()));
                    let one = written.map(|answers| answers.into_iter().next());
                    let none = || StoreError::Unavailable("the store gave no answer".into());
                    let _ = answer.send(one.and_then(|one| one.ok_or_else(none)));
                    return;
                }
            }
        }
    }
}

/// An append under a lease, and who waits for it.
type WaitingAppend = Waiting<(Lease, Append), Appended>;

/// What a statement costs by itself is shared by all that is in it. So one is under way at a time, and another one begins
/// beside it only when so many wait that this makes no difference, or when all that are under way take long: their
/// connections may lead nowhere. The first that comes meanwhile is taken note of, and those behind it wake nobody.
async fn commit_appends(
    store: Arc<dyn Store>,
    mut waiting: mpsc::UnboundedReceiver<WaitingAppend>,
    limit: usize,
    at_once: usize,
) {
    let (mut batch, mut writing, mut begun) = (vec![], FuturesUnordered::new(), vec![]);
    // What somebody holds, and when it is tried again: in statements of its own, so that it holds up nobody meanwhile.
    let mut busy: Vec<(Instant, WaitingAppend)> = vec![];
    let mut retrying = FuturesUnordered::new();
    loop {
        let now = Instant::now();
        if retrying.is_empty() {
            let due = due(&mut busy, now, limit);
            retrying.extend((!due.is_empty()).then(|| append_together(&*store, due)));
        }
        let takes_long = |began: &Instant| *began + LONG <= now;
        let is_much = batch.len() + waiting.len() >= MANY.min(limit);
        let may_begin = begun.len() < at_once && (is_much || begun.iter().all(takes_long));
        if may_begin && !batch.is_empty() {
            while batch.len() < limit
                && let Ok(next) = waiting.try_recv()
            {
                batch.push(next);
            }
            let written = append_together(&*store, std::mem::take(&mut batch));
            begun.push(now);
            writing.push(async move { (now, written.await) });
            continue;
        }
        let again = busy.iter().map(|(again, _)| *again).min().filter(|_| retrying.is_empty());
        let look = (!batch.is_empty() && begun.len() < at_once).then(|| now + LOOK);
        let next = again.into_iter().chain(look).min();
        tokio::select! {
            Some((began, held)) = writing.next(), if !writing.is_empty() => {
                begun.iter().position(|other| *other == began).map(|place| begun.swap_remove(place));
                busy.extend(held);
            }
            Some(held) = retrying.next(), if !retrying.is_empty() => busy.extend(held),
            next = waiting.recv(), if batch.is_empty() => match next {
                Some(next) => batch.push(next),
                None if writing.is_empty() && busy.is_empty() && retrying.is_empty() => return,
                None => sleep(AGAIN).await,
            },
            () = sleep_until(next.unwrap_or(now)), if next.is_some() => {}
        }
    }
}

/// Those that are to be tried again now, no more than go into one statement. They gave their turns away.
fn due(busy: &mut Vec<(Instant, WaitingAppend)>, now: Instant, limit: usize) -> Vec<WaitingAppend> {
    let (mut count, mut bytes) = (0, 0);
    let fits = |(again, waiting): &mut (Instant, WaitingAppend)| {
        let fits = *again <= now && count < limit && bytes < UNDER_WAY;
        if fits {
            (count, bytes) = (count + 1, bytes + Appends::weight(&waiting.entry.1));
        }
        fits
    };
    busy.extract_if(.., fits).map(|(_, waiting)| waiting).collect()
}

/// Whatever a store does: what it was to do is given up, and the next is tried.
async fn survived<T: Default>(writing: impl Future<Output = T>) -> T {
    AssertUnwindSafe(writing).catch_unwind().await.unwrap_or_else(|panic| {
        tracing::error!("the store panicked, what was to be written is given up here: {}", panic_message(&*panic));
        T::default()
    })
}

/// Writes them, and gives back those whose row somebody holds, each with the time when it is tried again.
async fn append_together(store: &dyn Store, waiting: Vec<WaitingAppend>) -> Vec<(Instant, WaitingAppend)> {
    survived(append_all(store, waiting)).await
}

async fn append_all(store: &dyn Store, waiting: Vec<WaitingAppend>) -> Vec<(Instant, WaitingAppend)> {
    let mut busy = vec![];
    // After a loss of the lease, appends under the old identity and the new one may wait side by side.
    let mut by_worker: HashMap<WorkerId, Vec<_>> = HashMap::new();
    for waiting in waiting {
        by_worker.entry(waiting.entry.0.worker()).or_default().push(waiting);
    }
    for (worker, waiting) in by_worker {
        let mut leases = vec![];
        let mut entries = vec![];
        let mut answers = vec![];
        let mut held = vec![];
        let mut turns = vec![];
        for Waiting { entry: (lease, entry), answer, busy, turn } in waiting {
            turns.push(turn);
            leases.push(lease);
            held.push(busy);
            entries.push(entry);
            answers.push(answer);
        }
        let written = write_until_answered(&entries, &answers, &Appends(store, worker)).await;
        drop(turns);
        let all = leases.into_iter().zip(entries).zip(answers).zip(held).zip(written);
        for ((((lease, entry), answer), held), written) in all {
            match written {
                Ok(Appended::Busy) if !answer.is_closed() => {
                    let (since, said) = still_busy(&entry, held);
                    let entry = (lease, entry);
                    let again = Instant::now() + pause(since.elapsed(), Appends::weight(&entry.1));
                    busy.push((again, Waiting { entry, answer, busy: Some((since, said)), turn: None }));
                }
                written => {
                    let _ = answer.send(written);
                }
            }
        }
    }
    busy
}

/// The pause before a row is tried again that has been busy for so long. What is heavy is not sent over and over.
fn pause(busy: Duration, bytes: usize) -> Duration {
    if bytes < HEAVY { AGAIN } else { (busy / 2).clamp(AGAIN, SELDOM) }
}

/// Takes note that somebody else's transaction holds a saga's row, and says so when it lasts.
fn still_busy(entry: &Append, held: Option<(Instant, Rarely)>) -> (Instant, Rarely) {
    let (since, mut rarely) = held.unwrap_or_else(|| (Instant::now(), Rarely::not_yet()));
    if rarely.now() {
        let for_ms = since.elapsed().as_millis();
        tracing::warn!(saga = %entry.saga, for_ms, "another transaction holds the saga's row: what happened cannot be written");
    }
    (since, rarely)
}

/// Sends the same batch again until the store has answered it. Halves it when the store refuses it, and when it is heavy
/// and got no answer; so it comes to one answer for each entry. Stops trying when nobody waits any more.
async fn write_until_answered<W: Write>(
    entries: &[W::Entry],
    waiting: &[oneshot::Sender<Result<W::Answer, StoreError>>],
    to: &W,
) -> Vec<Result<W::Answer, StoreError>> {
    let mut answers: Vec<Option<Result<W::Answer, StoreError>>> = vec![None; entries.len()];
    let mut parts = vec![];
    let mut next = Some(0..entries.len());
    let mut rarely = Rarely::default();
    while let Some(part) = next.take().or_else(|| parts.pop()) {
        loop {
            match to.write(&entries[part.clone()]).await {
                Ok(written) => {
                    for (answer, written) in answers[part.clone()].iter_mut().zip(written) {
                        *answer = Some(Ok(written));
                    }
                    break;
                }
                Err(StoreError::Rejected(reason)) if part.len() == 1 => {
                    answers[part.start] = Some(Err(StoreError::Rejected(reason)));
                    break;
                }
                Err(error @ StoreError::Contention(_)) if !W::THROUGH_CONTENTION => {
                    answers[part].fill(Some(Err(error)));
                    break;
                }
                Err(StoreError::Rejected(_)) => {
                    let middle = part.start + part.len() / 2;
                    parts.extend([part.start..middle, middle..part.end]);
                    break;
                }
                Err(error) => {
                    if rarely.now() {
                        tracing::warn!(%error, sagas = part.len(), "cannot write: trying again until the store answers");
                    }
                    // It may have been too much for the time there is.
                    let much = entries[part.clone()].iter().map(W::weight).sum::<usize>() >= MUCH;
                    if much && part.len() > 1 {
                        let middle = part.start + part.len() / 2;
                        parts.extend([part.start..middle, middle..part.end]);
                        break;
                    }
                    if waiting[part.clone()].iter().all(oneshot::Sender::is_closed) {
                        break;
                    }
                    sleep(AGAIN).await;
                }
            }
        }
    }
    let unanswered = || Err(StoreError::Unavailable("nobody waited for the answer".into()));
    answers.into_iter().map(|answer| answer.unwrap_or_else(unanswered)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_heavy_is_tried_again_ever_more_seldom_while_somebody_holds_its_row_and_what_is_light_is_not() {
        for (busy, heavy) in [(0, AGAIN), (1_000, SELDOM / 2), (60_000, SELDOM)] {
            let busy = Duration::from_millis(busy);
            assert_eq!((pause(busy, HEAVY - 1), pause(busy, HEAVY)), (AGAIN, heavy));
        }
    }
}
