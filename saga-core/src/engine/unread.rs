//! Journals that this release cannot read: a newer one wrote them, or they are damaged.
//!
//! They are left for those who can read them, with growing pauses. When no living worker can, and none has come for a while, the saga is parked: its row is marked, and its journal is left
//! as it is.

use super::{Mailbox, Place, Shared, journal, lease::Lease};
use crate::{
    SagaId,
    machine::{Event, FORMAT, Status},
    store::{Append, DefinitionId, Record, Then},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// The pause after the first try; it doubles each time.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// For so long a saga is left although nobody is known who could read it.
const PATIENCE: Duration = Duration::from_secs(180);

/// How often each saga was left, and since when.
#[derive(Debug, Default)]
pub(crate) struct Unread(Mutex<HashMap<SagaId, (u32, Instant)>>);

impl Unread {
    pub(crate) fn forget(&self, saga: SagaId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&saga);
    }

    fn again(&self, saga: SagaId) -> (u32, Duration) {
        let mut unread = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (tries, since) = unread.entry(saga).or_insert((0, Instant::now()));
        *tries += 1;
        (*tries, since.elapsed())
    }
}

pub(crate) async fn leave(
    shared: Arc<Shared>,
    lease: Lease,
    record: Record,
    error: serde_json::Error,
    _place: (Mailbox, Place),
) {
    let (tries, so_far) = shared.unread.again(record.saga);
    let definition = DefinitionId { name: record.name.clone(), version: record.version };
    let (saga, name) = (record.saga, &record.name);
    let newest = shared.store.reads(&definition).await.unwrap_or(FORMAT);
    let append = if newest > FORMAT || so_far < PATIENCE {
        let pause = PAUSE.saturating_mul(1 << tries.min(16).saturating_sub(1)).min(LONGEST_PAUSE);
        tracing::warn!(%saga, name, %error, ?pause, "this release cannot read the journal: the saga is left for one that can");
        Append { then: Then::Release { due_in: Some(pause.mul_f64(0.75 + 0.5 * fastrand::f64())) }, ..of(&record) }
    } else {
        tracing::warn!(%saga, name, %error, "parked: no living worker can read the journal");
        shared.unread.forget(saga);
        parked(record)
    };
    let _ = shared.committer.append(&lease, append).await;
}

fn of(record: &Record) -> Append {
    Append {
        saga: record.saga,
        epoch: record.epoch,
        seq: i32::try_from(record.journal.len() + 1).unwrap_or(i32::MAX),
        entry: None,
        read: vec![],
        status: None,
        then: Then::Release { due_in: None },
    }
}

/// What was said to the saga is noted for whoever can read on.
fn parked(record: Record) -> Append {
    let unheard = record.mail.iter().map(|mail| {
        let reason = format!("by a version that cannot read this journal: {}", String::from_utf8_lossy(&mail.body));
        Event::Refused { reason }
    });
    let unheard: Vec<Event> = unheard.collect();
    let entry = if unheard.is_empty() { None } else { journal::encode(&unheard).ok() };
    let append = of(&record);
    Append {
        entry,
        read: record.mail.into_iter().map(|mail| mail.message).collect(),
        status: Some(Status::Parked),
        ..append
    }
}
