//! Appends.

use super::{
    PgStore,
    rows::{code, column, millis},
};
use saga_core::{
    SagaId, WorkerId,
    store::{Append, Appended, SnapshotChange, StoreError, Then},
};
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

impl PgStore {
    /// [`Store::append`](saga_core::store::Store::append).
    pub(super) async fn write(&self, worker: WorkerId, batch: &[Append]) -> Result<Vec<Appended>, StoreError> {
        // When a saga is alone there is a shorter way. What it cannot answer goes the long one.
        if let [one] = batch
            && self.append_one(worker, one).await?
        {
            return Ok(vec![Appended::Written]);
        }
        let mut answers = match self.append_all(worker, batch).await {
            // An entry stands already: an earlier statement came through after all. Those that stand are answered, the
            // others are tried again.
            Err(error) if stands_already(&error) => HashMap::new(),
            answers => answers?,
        };
        let open: Vec<&Append> =
            batch.iter().filter(|append| answers.get(&append.saga) != Some(&Appended::Written)).collect();
        if !open.is_empty() {
            for (saga, answer) in self.written_before(worker, &open).await? {
                // What was refused stays refused, unless it had been written before.
                match answers.get(&saga) {
                    Some(Appended::Lost) if answer != Appended::Written => {}
                    _ => drop(answers.insert(saga, answer)),
                }
            }
        }
        Ok(batch.iter().map(|append| answers.get(&append.saga).copied().unwrap_or(Appended::Lost)).collect())
    }

    /// Whether one append could be written in the short form.
    async fn append_one(&self, worker: WorkerId, append: &Append) -> Result<bool, StoreError> {
        if !append.read.is_empty() || append.snapshot != SnapshotChange::None {
            return Ok(false);
        }
        let changes = append.then != Then::Keep || append.status.is_some();
        if append.entry.is_none() && !changes {
            return Ok(false);
        }
        let sql = if changes { &self.queries().change_one } else { &self.queries().append_one };
        let sql = self.query(sql).bind(worker.as_uuid()).bind(append.saga.as_uuid()).bind(append.epoch);
        let sql = sql.bind(append.seq).bind(append.entry.as_deref());
        let sql = match changes {
            false => sql,
            true => {
                let sql = sql.bind(append.status.map(code)).bind(append.then != Then::Keep);
                sql.bind(due_in(append)).bind(millis(append.age))
            }
        };
        match self.rows(sql).await {
            Err(error) if stands_already(&error) => Ok(false),
            rows => Ok(!rows?.is_empty()),
        }
    }

    async fn append_all(&self, worker: WorkerId, batch: &[Append]) -> Result<HashMap<SagaId, Appended>, StoreError> {
        let ids: Vec<Uuid> = batch.iter().map(|append| append.saga.as_uuid()).collect();
        let epochs: Vec<i64> = batch.iter().map(|append| append.epoch).collect();
        let seqs: Vec<i32> = batch.iter().map(|append| append.seq).collect();
        let entries: Vec<Option<&[u8]>> = batch.iter().map(|append| append.entry.as_deref()).collect();
        let statuses: Vec<Option<i16>> = batch.iter().map(|append| append.status.map(code)).collect();
        let releases: Vec<bool> = batch.iter().map(|append| append.then != Then::Keep).collect();
        let due: Vec<Option<i64>> = batch.iter().map(due_in).collect();
        let ages: Vec<i64> = batch.iter().map(|append| millis(append.age)).collect();
        let snapshots: Vec<Option<&[u8]>> = batch
            .iter()
            .map(|append| match &append.snapshot {
                SnapshotChange::None => None,
                SnapshotChange::Replace(state) => Some(state.as_slice()),
                SnapshotChange::Remove => Some(b"".as_slice()),
            })
            .collect();
        let (read_by, read): (Vec<Uuid>, Vec<&str>) = batch
            .iter()
            .flat_map(|append| append.read.iter().map(|message| (append.saga.as_uuid(), message.as_str())))
            .unzip();
        let sql = self.query(&self.queries().append).bind(worker.as_uuid());
        let sql = sql.bind(ids).bind(epochs).bind(seqs).bind(entries).bind(statuses).bind(releases).bind(due);
        let rows = self.rows(sql.bind(read_by).bind(read).bind(ages).bind(snapshots)).await?;
        rows.iter()
            .map(|row| {
                let mine = column::<bool>(row, "mine")?;
                let answer = if mine { Appended::Written } else { Appended::Lost };
                Ok((SagaId::from(column::<Uuid>(row, "id")?), answer))
            })
            .collect()
    }

    /// Those appends that this worker wrote before, in a statement whose answer was lost.
    async fn written_before(
        &self,
        worker: WorkerId,
        open: &[&Append],
    ) -> Result<HashMap<SagaId, Appended>, StoreError> {
        let ids: Vec<Uuid> = open.iter().map(|append| append.saga.as_uuid()).collect();
        let seqs: Vec<i32> = open.iter().map(|append| append.seq).collect();
        let rows = self.rows(self.query(&self.queries().append_written).bind(ids).bind(seqs)).await?;
        let entries: HashSet<SagaId> =
            open.iter().filter(|append| append.entry.is_some()).map(|append| append.saga).collect();
        rows.iter()
            .map(|row| {
                let saga = SagaId::from(column::<Uuid>(row, "id")?);
                let answer = match column::<Option<Uuid>>(row, "writer")?.filter(|_| entries.contains(&saga)) {
                    Some(writer) if writer == worker.as_uuid() => Appended::Written,
                    Some(_) => Appended::Lost,
                    None if column::<bool>(row, "exists")? => Appended::Busy,
                    None => Appended::Lost,
                };
                Ok((saga, answer))
            })
            .collect()
    }
}

/// An entry is there, at a place of a journal where one was to be written.
fn stands_already(error: &StoreError) -> bool {
    matches!(error, StoreError::Rejected(text) if text.contains("saga_journal_pkey"))
}

/// In milliseconds.
fn due_in(append: &Append) -> Option<i64> {
    match append.then {
        Then::Release { due_in } => due_in.map(millis),
        Then::Keep => None,
    }
}
