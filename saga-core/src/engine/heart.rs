//! What keeps a worker's lease: a heartbeat that shares nothing.
//!
//! It beats on a thread of its own, over a [`Heart`] of its own, so that neither a step that blocks the engine's
//! runtime nor a store whose connections are all taken silences it. A store that lives in this process has no heart of
//! its own: then it beats in the engine's runtime, by that runtime's clock.

use super::{Shared, lease::Lease, rarely::Rarely};
use crate::{
    WorkerId,
    store::{Heart, Store, StoreError},
};
use async_trait::async_trait;
use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// However long the lease: others need to see soon whether a worker that seems to be late is alive.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A runtime that did not get to a task for so long is blocked.
const BLOCKED: Duration = Duration::from_secs(1);

/// The leases to keep, one after the other: the next one is given when the one before is lost.
pub(crate) struct Leases {
    next: UnboundedSender<Lease>,
    waiting: Mutex<Option<UnboundedReceiver<Lease>>>,
}

impl Leases {
    pub(crate) fn new() -> Self {
        let (next, waiting) = unbounded_channel();
        Self { next, waiting: Mutex::new(Some(waiting)) }
    }

    pub(crate) fn keep(&self, lease: Lease) {
        // The other end is gone when the engine has stopped.
        let _ = self.next.send(lease);
    }
}

/// Begins to beat for whatever lease is given to be kept.
pub(crate) fn start(shared: &Arc<Shared>) -> Result<(), StoreError> {
    let leases = shared.leases.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(leases) = leases else { return Ok(()) };
    let length = shared.config.lease;
    let Some(heart) = shared.store.heart() else {
        let heart = Box::new(Here(shared.store.clone()));
        shared.spawn(keep(heart, leases, length, None));
        return Ok(());
    };
    let cannot = |error: std::io::Error| StoreError::Unavailable(format!("no thread for the heartbeat: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    let pulse = Arc::new(Pulse(Mutex::new(Instant::now())));
    // A process whose runtime has ended runs nothing any more, whoever still holds its engine.
    let runs = CancellationToken::new();
    shared.spawn(feel(pulse.clone(), runs.clone().drop_guard()));
    let beating = runs.run_until_cancelled_owned(keep(heart, leases, length, Some(pulse)));
    let beating = shared.killed.clone().run_until_cancelled_owned(beating);
    let until_it_ended = shared.tasks.token();
    let body = move || {
        runtime.block_on(beating);
        // Not before what is left of its connections is gone, and without waiting for anything that hangs.
        runtime.shutdown_background();
        drop(until_it_ended);
    };
    thread::Builder::new().name("saga-heartbeat".into()).spawn(body).map_err(cannot)?;
    Ok(())
}

/// Beats in the engine's runtime.
struct Here(Arc<dyn Store>);

#[async_trait]
impl Heart for Here {
    async fn beat(&mut self, worker: WorkerId, lease: Duration) -> Result<bool, StoreError> {
        self.0.beat(worker, lease).await
    }
}

async fn keep(
    mut heart: Box<dyn Heart>,
    mut leases: UnboundedReceiver<Lease>,
    length: Duration,
    pulse: Option<Arc<Pulse>>,
) {
    while let Some(lease) = leases.recv().await {
        until_lost(&mut *heart, &lease, length, pulse.as_deref()).await;
        lease.lose();
    }
}

/// Beats at least three times a lease, and more often when beats fail. Ends when the lease lapsed.
async fn until_lost(heart: &mut dyn Heart, lease: &Lease, length: Duration, pulse: Option<&Pulse>) {
    let (pause, patience) = ((length / 3).min(LONGEST_PAUSE), length / 3);
    let mut next = Instant::now() + pause;
    let (mut blocked, mut rarely) = (false, Rarely::default());
    loop {
        // After a pause of the whole process both times have passed: the lease goes first.
        tokio::select! {
            biased;
            () = sleep_until(lease.until()) => return,
            () = sleep_until(next) => {}
        }
        let sent = Instant::now();
        // A beat that is not answered may be on a dead connection: there is time for another.
        let answered = timeout_at(lease.until().min(sent + patience), heart.beat(lease.worker(), length)).await;
        next = sent + pause;
        match answered {
            Ok(Ok(true)) if lease.extend(sent + length) => rarely.over(),
            Ok(Ok(_)) => return,
            Ok(Err(error)) => {
                if rarely.now() {
                    tracing::warn!(%error, worker = %lease.worker(), "the heartbeat failed: it is tried again until the lease lapses");
                }
                next = sent + pause / 4;
            }
            Err(_) => {
                if rarely.now() {
                    tracing::warn!(worker = %lease.worker(), "the heartbeat was not answered: it is tried again until the lease lapses");
                }
                next = sent;
            }
        }
        let age = pulse.map(Pulse::age).unwrap_or_default();
        if age >= BLOCKED && !blocked {
            tracing::warn!(
                for_ms = age.as_millis(),
                "the engine's runtime does not get to its tasks: a step that blocks its thread belongs in `tokio::task::spawn_blocking`"
            );
        }
        blocked = age >= BLOCKED;
    }
}

/// When the engine's runtime last got to a task.
struct Pulse(Mutex<Instant>);

impl Pulse {
    fn age(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

async fn feel(pulse: Arc<Pulse>, _runs: DropGuard) {
    loop {
        *pulse.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        sleep(BLOCKED / 10).await;
    }
}
