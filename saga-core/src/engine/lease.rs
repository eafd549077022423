use crate::WorkerId;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What a worker believes about its own lease.
///
/// It is counted on the monotonic clock from *before* the heartbeat was sent, so that it always ends before the store's
/// count of it does. Once it has lapsed it stays so: the worker joins again under a new identity.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    worker: WorkerId,
    until: Arc<Mutex<Instant>>,
    lost: CancellationToken,
}

impl Lease {
    pub(crate) fn new(worker: WorkerId, until: Instant) -> Self {
        Self { worker, until: Arc::new(Mutex::new(until)), lost: CancellationToken::new() }
    }

    pub(crate) const fn worker(&self) -> WorkerId {
        self.worker
    }

    pub(crate) fn until(&self) -> Instant {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `false` when it had lapsed before: whoever saw that must not see it come back.
    pub(crate) fn extend(&self, longer: Instant) -> bool {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = !self.lost.is_cancelled() && Instant::now() < *until;
        if holds {
            *until = longer;
        }
        holds
    }

    /// Whether something that counts on the lease may begin now.
    pub(crate) fn holds(&self) -> bool {
        !self.lost.is_cancelled() && Instant::now() < self.until()
    }

    pub(crate) fn lose(&self) {
        self.lost.cancel();
    }

    /// Ends when the lease was lost.
    pub(crate) async fn lost(&self) {
        self.lost.cancelled().await;
    }
}
