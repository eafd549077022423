//! When a saga's state is kept, so that whoever claims it reads little more than that: a saga that is tried again for
//! days costs no more an attempt than a new one.

use crate::{
    machine::State,
    store::{Record, SnapshotChange},
};

/// So many entries are read after a snapshot at most, unless they are smaller than it: what is kept is written seldom
/// enough to cost no more than the journal itself.
const ENTRIES: usize = 64;

/// A state that is larger is read from the journal: a short cut is not to be what cannot be written.
const LARGEST: usize = 1 << 20;

/// What was written since the last snapshot.
#[derive(Debug, Default)]
pub(super) struct SinceSnapshot {
    entries: usize,
    bytes: usize,
    /// How large that one is; `None` when there is none.
    snapshot: Option<usize>,
}

impl SinceSnapshot {
    pub(super) fn of(record: &Record) -> Self {
        let snapshot = record.snapshot.as_ref().map(|snapshot| snapshot.state.len());
        Self { entries: record.journal.len(), bytes: record.journal.iter().map(Vec::len).sum(), snapshot }
    }

    /// One more entry is written, of so many bytes, which leads to this state.
    pub(super) fn written(&mut self, bytes: usize, state: &State) -> SnapshotChange {
        self.entries += 1;
        self.bytes += bytes;
        if state.status().is_final() {
            return if self.snapshot.is_some() { SnapshotChange::Remove } else { SnapshotChange::None };
        }
        if self.entries < ENTRIES || self.bytes < self.snapshot.unwrap_or_default() {
            return SnapshotChange::None;
        }
        // A state holds text and numbers only, which JSON can always express.
        let Ok(state) = state.to_bytes() else { return SnapshotChange::None };
        if state.len() > LARGEST {
            // It is looked at again when as much has been written as it has.
            *self = Self { entries: 0, bytes: 0, snapshot: Some(state.len()) };
            return SnapshotChange::None;
        }
        *self = Self { snapshot: Some(state.len()), ..Self::default() };
        SnapshotChange::Replace(state)
    }
}
