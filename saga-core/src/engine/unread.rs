//! Journals that this release cannot read: a newer one wrote them, or they are damaged.
//!
//! They are left for those who can read them, with growing pauses. When no living worker can, and none has come for a
//! while, the saga is parked: its row is marked, and its journal is left as it is.

use super::{Mailbox, Place, Shared, journal, lease::Lease};
use crate::{
    SagaId,
    machine::{Event, FORMAT, Status},
    store::{Append, DefinitionId, Record, SnapshotChange, Then},
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

/// What was not seen for so long is seen for the first time again.
const FORGOTTEN: Duration = Duration::from_secs(900);

/// How each saga was left.
#[derive(Debug, Default)]
pub(crate) struct Unread(Mutex<HashMap<SagaId, Left>>);

#[derive(Debug)]
struct Left {
    tries: u32,
    last: Instant,
    /// Since when nobody is known who could read it.
    nobody_since: Option<Instant>,
}

impl Unread {
    pub(crate) fn forget(&self, saga: SagaId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&saga);
    }

    /// Takes note of a try, and of whether it is known that nobody could read the journal. Says how many tries there
    /// were, and for how long that has been known.
    fn again(&self, saga: SagaId, nobody: bool) -> (u32, Duration) {
        let (now, mut unread) = (Instant::now(), self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let new = || Left { tries: 0, last: now, nobody_since: None };
        let left = unread.entry(saga).or_insert_with(new);
        if now - left.last > FORGOTTEN {
            *left = new();
        }
        left.tries += 1;
        left.last = now;
        left.nobody_since = nobody.then(|| left.nobody_since.unwrap_or(now));
        (left.tries, left.nobody_since.map(|since| now - since).unwrap_or_default())
    }
}

pub(crate) async fn leave(
    shared: Arc<Shared>,
    lease: Lease,
    record: Record,
    error: serde_json::Error,
    _place: (Mailbox, Place),
) {
    let definition = DefinitionId { name: record.name.clone(), version: record.version };
    let (saga, name) = (record.saga, &record.name);
    // Who could not ask knows nothing.
    let nobody = shared.store.reads(&definition).await.is_ok_and(|newest| newest <= FORMAT);
    let (tries, so_far) = shared.unread.again(saga, nobody);
    let append = if so_far < PATIENCE {
        let pause = PAUSE.saturating_mul(1 << tries.min(16).saturating_sub(1)).min(LONGEST_PAUSE);
        // With mail in its mailbox the saga comes back before the pause is over.
        if tries.is_power_of_two() {
            tracing::warn!(%saga, name, %error, tries, "this release cannot read the journal: the saga is left for one that can");
        }
        Append { then: Then::Release { due_in: Some(pause.mul_f64(0.75 + 0.5 * fastrand::f64())) }, ..of(&record) }
    } else {
        let reason = format!("no living process can read its journal: {error}");
        tracing::warn!(%saga, name, reason, "the saga is parked: a person has to look");
        shared.unread.forget(saga);
        parked(record)
    };
    let _ = shared.committer.append(&lease, append, None).await;
}

fn of(record: &Record) -> Append {
    Append {
        saga: record.saga,
        epoch: record.epoch,
        seq: record.seq().saturating_add(1),
        entry: None,
        read: vec![],
        status: None,
        then: Then::Release { due_in: None },
        age: record.age,
        snapshot: SnapshotChange::None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn patience_ends_when_nobody_could_read_it_all_the_time() {
        let (unread, saga) = (Unread::default(), SagaId::generate());
        for tries in 1..=7 {
            assert_eq!(unread.again(saga, true), (tries, LONGEST_PAUSE * (tries - 1)));
            advance(LONGEST_PAUSE).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn patience_begins_anew_when_there_was_somebody() {
        let (unread, saga) = (Unread::default(), SagaId::generate());
        unread.again(saga, true);
        advance(PATIENCE).await;
        assert_eq!(unread.again(saga, false), (2, Duration::ZERO));
        advance(PATIENCE).await;
        assert_eq!(unread.again(saga, true), (3, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_saga_that_others_went_on_with_is_new() {
        let (unread, saga) = (Unread::default(), SagaId::generate());
        unread.again(saga, true);
        advance(4 * FORGOTTEN).await;
        assert_eq!(unread.again(saga, true), (1, Duration::ZERO));
    }
}
