//! Waiting for the end of sagas that run elsewhere: one query for all who wait.

use super::{Shared, rarely::Rarely};
use crate::{SagaId, machine::Status, store::StoreError};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    sync::{Notify, oneshot},
    time::sleep,
};

#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    waiting: Mutex<HashMap<SagaId, Vec<oneshot::Sender<bool>>>>,
    pub(crate) look: Notify,
}

impl Outcomes {
    /// Resolves when the saga has ended or is parked; `false` when there is no such saga.
    pub(crate) async fn ended(&self, shared: &Shared, saga: SagaId) -> Result<bool, StoreError> {
        let (ended, answer) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).entry(saga).or_default().push(ended);
        self.look.notify_one();
        let stopped = || StoreError::Unavailable("the engine has stopped".into());
        tokio::select! {
            answer = answer => answer.map_err(|_| stopped()),
            () = shared.killed.cancelled() => Err(stopped()),
        }
    }

    /// Those that somebody still waits for.
    fn wanted(&self) -> Vec<SagaId> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, waiting| {
            waiting.retain(|waiting| !waiting.is_closed());
            !waiting.is_empty()
        });
        waiting.keys().copied().collect()
    }

    fn answer(&self, saga: SagaId, exists: bool) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for waiting in waiting.remove(&saga).into_iter().flatten() {
            let _ = waiting.send(exists);
        }
    }
}

pub(crate) async fn watch_outcomes(shared: Arc<Shared>) {
    let mut rarely = Rarely::default();
    loop {
        let wanted = shared.outcomes.wanted();
        if wanted.is_empty() {
            shared.outcomes.look.notified().await;
            continue;
        }
        match shared.store.statuses(&wanted).await {
            Ok(statuses) => {
                rarely.over();
                for (saga, status) in wanted.into_iter().zip(statuses) {
                    match status {
                        None => shared.outcomes.answer(saga, false),
                        Some(Status::Running | Status::Compensating) => {}
                        Some(_) => shared.outcomes.answer(saga, true),
                    }
                }
            }
            Err(error) if rarely.now() => {
                tracing::warn!(%error, "cannot look for the ends of sagas: it is tried again");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = sleep(shared.config.poll) => {}
            () = shared.outcomes.look.notified() => {}
        }
    }
}
