//! One partition on its way through its receiver: a task that takes batches off a queue, in their order, one at a time.

use crate::{binding, dead_letters, metrics::Metrics, publisher::Publisher};
use rdkafka::{Message as _, message::OwnedMessage};
use saga_core::transport::{Receiver, Verdict, deliver};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
        mpsc as blocking,
    },
    time::{Duration, Instant},
};
use tokio::{
    runtime::Handle,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::AbortHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// From how many waiting records, or bytes, on a partition is paused, and below how many it goes on.
const MANY: usize = 1000;
const FEW: usize = 300;
const MUCH: usize = 16 << 20;
const LITTLE: usize = 4 << 20;

/// What every lane of a consumer works with.
pub(crate) struct Works {
    pub(crate) runtime: Handle,
    pub(crate) receiver: Arc<dyn Receiver>,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) batch: usize,
    /// Set when a lane has got on.
    pub(crate) progress: AtomicBool,
    /// Ends every lane after the batch under way.
    pub(crate) stop: CancellationToken,
    /// Ends every lane at once, as the death of the process would.
    pub(crate) dead: CancellationToken,
    /// The lanes that run.
    pub(crate) lanes: TaskTracker,
}

/// The consumer's end of a partition's queue.
pub(crate) struct Lane {
    queue: UnboundedSender<OwnedMessage>,
    state: Arc<State>,
    stop: CancellationToken,
    task: AbortHandle,
    /// Disconnected when the task is gone.
    alive: blocking::Receiver<()>,
    pub(crate) paused: bool,
}

struct State {
    /// Records, and their bytes.
    waiting: AtomicUsize,
    bytes: AtomicUsize,
    /// Where the partition goes on: behind everything that is dealt with. -1 before the first.
    next: AtomicI64,
}

impl Lane {
    pub(crate) fn start(works: Arc<Works>) -> Self {
        let (queue, records) = unbounded_channel();
        let state =
            Arc::new(State { waiting: AtomicUsize::new(0), bytes: AtomicUsize::new(0), next: AtomicI64::new(-1) });
        let stop = works.stop.child_token();
        let (guard, alive) = blocking::channel();
        let worker = Worker { works: works.clone(), records, state: state.clone(), stop: stop.clone(), _guard: guard };
        let dead = works.dead.clone();
        let work = async move {
            tokio::select! {
                () = dead.cancelled() => {}
                () = worker.run() => {}
            }
        };
        let task = works.lanes.spawn_on(work, &works.runtime).abort_handle();
        Self { queue, state, stop, task, alive, paused: false }
    }

    pub(crate) fn push(&self, record: OwnedMessage) {
        self.state.waiting.fetch_add(1, Ordering::Relaxed);
        self.state.bytes.fetch_add(bytes_of(&record), Ordering::Relaxed);
        // A lane that has ended is about to be taken away: what it is given then comes again.
        let _ = self.queue.send(record);
    }

    /// Whether so much waits that the partition is to be paused.
    pub(crate) fn has_much(&self) -> bool {
        self.waits(MANY, MUCH)
    }

    /// Whether so little waits that it is to go on.
    pub(crate) fn has_little(&self) -> bool {
        !self.waits(FEW, LITTLE)
    }

    fn waits(&self, records: usize, bytes: usize) -> bool {
        self.state.waiting.load(Ordering::Relaxed) >= records || self.state.bytes.load(Ordering::Relaxed) >= bytes
    }

    /// Where the partition goes on, if anything of it is dealt with.
    pub(crate) fn next(&self) -> Option<i64> {
        Some(self.state.next.load(Ordering::Acquire)).filter(|&next| next >= 0)
    }

    /// Asks for an end after the batch under way.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits for that end, and then ends it hard.
    pub(crate) fn join(&self, until: Instant) {
        let patience = until.saturating_duration_since(Instant::now());
        if let Err(blocking::RecvTimeoutError::Timeout) = self.alive.recv_timeout(patience) {
            tracing::warn!("a batch did not end in time for a hand-over: it is broken off, and comes again elsewhere");
            self.abort();
        }
    }

    /// Ends it now, as the death of the process would, and waits until nothing of it runs.
    pub(crate) fn abort(&self) {
        self.stop.cancel();
        self.task.abort();
        // What does not yield cannot be ended, and must not hold up the group for ever.
        let _ = self.alive.recv_timeout(Duration::from_secs(5));
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.stop.cancel();
        self.task.abort();
    }
}

struct Worker {
    works: Arc<Works>,
    records: UnboundedReceiver<OwnedMessage>,
    state: Arc<State>,
    stop: CancellationToken,
    _guard: blocking::Sender<()>,
}

impl Worker {
    async fn run(mut self) {
        let mut batch = Vec::with_capacity(self.works.batch);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                count = self.records.recv_many(&mut batch, self.works.batch) => if count == 0 { return },
            }
            if !self.deal_with(&batch).await {
                return;
            }
            self.state.waiting.fetch_sub(batch.len(), Ordering::Relaxed);
            self.state.bytes.fetch_sub(batch.iter().map(bytes_of).sum(), Ordering::Relaxed);
            if let Some(last) = batch.last() {
                self.state.next.store(last.offset() + 1, Ordering::Release);
                self.works.progress.store(true, Ordering::Release);
            }
            batch.clear();
        }
    }

    /// False if it was told to stop before that was possible.
    async fn deal_with(&self, batch: &[OwnedMessage]) -> bool {
        let mut reasons: Vec<Option<String>> = vec![None; batch.len()];
        let (mut messages, mut places) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        for (place, record) in batch.iter().enumerate() {
            match binding::read(record) {
                Ok(message) => {
                    messages.push(message);
                    places.push(place);
                }
                Err(error) => reasons[place] = Some(error.to_string()),
            }
        }
        if !messages.is_empty() {
            let Some(verdicts) = deliver(&*self.works.receiver, &messages, self.stop.cancelled()).await else {
                return false;
            };
            for (place, verdict) in places.into_iter().zip(verdicts) {
                if let Verdict::DeadLetter(reason) = verdict {
                    reasons[place] = Some(reason);
                }
            }
        }
        let mut dead = 0;
        for (record, reason) in batch.iter().zip(&reasons) {
            if let Some(reason) = reason {
                tokio::select! {
                    () = dead_letters::bury(&self.works.publisher, record, reason) => dead += 1,
                    // The broker does not take it: whoever has the partition next buries it.
                    () = self.stop.cancelled() => return false,
                }
            }
        }
        self.works.metrics.consumed(batch.len() as u64, dead);
        true
    }
}

/// How many bytes a record has, about.
fn bytes_of(record: &OwnedMessage) -> usize {
    let length = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
    let headers = binding::record_headers(record).map(|header| header.key.len() + length(header.value)).sum::<usize>();
    length(record.payload()) + length(record.key()) + headers
}
