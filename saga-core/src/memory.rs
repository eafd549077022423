use crate::{
    SagaId, WorkerId,
    machine::Status,
    store::{
        Append, Appended, Census, DefinitionId, Hint, Mail, Posted, Record, Ripe, Room, Snapshot, SnapshotChange,
        Start, Started, Store, StoreError, Then,
    },
};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::broadcast, time::Instant};

/// A store in memory, for tests and for trying things out: it keeps every promise of a store but durability.
///
/// Clones share what is stored, so that several engines in one process can work on it. Time is tokio's, and can be paused.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
    hints: broadcast::Sender<Hint>,
}

#[derive(Debug, Default)]
struct Inner {
    sagas: BTreeMap<SagaId, Row>,
    keys: HashMap<(String, String), SagaId>,
    mailbox: Vec<(Mail, bool)>,
    posted: HashSet<(SagaId, String)>,
    workers: HashMap<WorkerId, (Instant, Vec<DefinitionId>)>,
    definitions: HashMap<DefinitionId, String>,
}

#[derive(Debug)]
struct Row {
    record: Record,
    snapshot: Option<Snapshot>,
    started: Instant,
    owner: Option<WorkerId>,
    due: Option<Instant>,
    writers: Vec<WorkerId>,
    /// How old its owner said it was when it was put back, and when that was.
    told: Option<(Duration, Instant)>,
    /// Who was lost with it; `None` who came back since.
    lost_with: Vec<Option<WorkerId>>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self { inner: Arc::default(), hints: broadcast::channel(64).0 }
    }
}

impl MemoryStore {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn unread(&self, saga: SagaId) -> impl Iterator<Item = &Mail> {
        self.mailbox.iter().filter(move |(mail, read)| mail.saga == saga && !read).map(|(mail, _)| mail)
    }

    fn record(&self, saga: SagaId) -> Option<Record> {
        let row = self.sagas.get(&saga)?;
        let mail = self.unread(saga).cloned().collect();
        let survived = (1..).zip(&row.lost_with).filter(|(_, worker)| worker.is_none()).map(|(number, _)| number);
        let told = row.told.map(|(age, since)| age + since.elapsed()).unwrap_or_default();
        Some(Record { age: row.started.elapsed().max(told), survived: survived.collect(), mail, ..row.record.clone() })
    }
}

/// A time from now; what lies beyond all clocks comes in a century.
fn after(duration: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    Instant::now() + duration.min(CENTURY)
}

impl Row {
    fn is_one_of(&self, definitions: &[DefinitionId]) -> bool {
        definitions.iter().any(|known| known.name == self.record.name && known.version == self.record.version)
    }

    fn free(&mut self, due: Option<Instant>) {
        self.owner = None;
        self.due = due;
    }

    fn lapse(&mut self, lost: Option<WorkerId>) {
        self.free(Some(Instant::now()));
        self.record.epoch += 1;
        self.record.lapses += 1;
        self.lost_with.push(lost);
    }

    fn append(&mut self, worker: WorkerId, append: &Append) -> Appended {
        let place = usize::try_from(append.seq - 1).unwrap_or(usize::MAX);
        if append.entry.is_some()
            && let Some(writer) = self.writers.get(place)
        {
            return if *writer == worker { Appended::Written } else { Appended::Lost };
        }
        if self.owner != Some(worker) || self.record.epoch != append.epoch {
            return Appended::Lost;
        }
        if let Some(entry) = &append.entry {
            self.record.journal.push(entry.clone());
            self.writers.push(worker);
        }
        match &append.snapshot {
            SnapshotChange::None => {}
            SnapshotChange::Replace(state) => {
                self.snapshot = Some(Snapshot { seq: append.seq, state: state.clone() });
            }
            SnapshotChange::Remove => self.snapshot = None,
        }
        self.record.status = append.status.unwrap_or(self.record.status);
        if let Then::Release { due_in } = append.then {
            self.told = Some((append.age, Instant::now()));
            self.free(due_in.map(after));
        }
        Appended::Written
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn register(&self, definition: &DefinitionId, fingerprint: &str) -> Result<String, StoreError> {
        let mut inner = self.lock();
        Ok(inner.definitions.entry(definition.clone()).or_insert_with(|| fingerprint.into()).clone())
    }

    async fn join(&self, worker: WorkerId, lease: Duration, definitions: &[DefinitionId]) -> Result<(), StoreError> {
        self.lock().workers.insert(worker, (after(lease), definitions.to_vec()));
        Ok(())
    }

    async fn beat(&self, worker: WorkerId, lease: Duration) -> Result<bool, StoreError> {
        Ok(match self.lock().workers.get_mut(&worker) {
            Some((until, _)) => {
                *until = after(lease);
                true
            }
            None => false,
        })
    }

    async fn leave(&self, worker: WorkerId) -> Result<(), StoreError> {
        self.lock().workers.remove(&worker);
        Ok(())
    }

    async fn returned(&self, worker: WorkerId) -> Result<(), StoreError> {
        let mut inner = self.lock();
        inner.workers.remove(&worker);
        for row in inner.sagas.values_mut() {
            row.lost_with.iter_mut().filter(|lost| **lost == Some(worker)).for_each(|lost| *lost = None);
            if row.owner == Some(worker) {
                row.lapse(None);
            }
        }
        Ok(())
    }

    async fn sweep(&self, limit: usize) -> Result<usize, StoreError> {
        let (mut inner, now) = (self.lock(), Instant::now());
        let Inner { sagas, workers, .. } = &mut *inner;
        workers.retain(|_, (until, _)| *until > now);
        let orphaned = |row: &&mut Row| row.owner.is_some_and(|owner| !workers.contains_key(&owner));
        let mut swept = 0;
        for row in sagas.values_mut().filter(orphaned).take(limit) {
            row.lapse(row.owner);
            swept += 1;
        }
        Ok(swept)
    }

    async fn start(&self, batch: &[Start]) -> Result<Vec<Started>, StoreError> {
        let mut inner = self.lock();
        let start = |start: &Start| {
            let key = (start.name.clone(), start.key.clone());
            if let Some(&saga) = inner.keys.get(&key) {
                if saga == start.saga {
                    return Started::New;
                }
                let same_input = inner.sagas.get(&saga).is_some_and(|row| row.record.input == start.input);
                return Started::Existing { saga, same_input };
            }
            let record = Record {
                saga: start.saga,
                name: start.name.clone(),
                version: start.version,
                key: start.key.clone(),
                status: Status::Running,
                input: start.input.clone(),
                trace: start.trace.clone(),
                epoch: i64::from(start.owner.is_some()),
                lapses: 0,
                survived: vec![],
                age: Duration::ZERO,
                snapshot: None,
                journal: vec![],
                mail: vec![],
            };
            let due = start.owner.is_none().then(Instant::now);
            let row = Row {
                record,
                snapshot: None,
                started: Instant::now(),
                owner: start.owner,
                due,
                writers: vec![],
                told: None,
                lost_with: vec![],
            };
            inner.keys.insert(key, start.saga);
            inner.sagas.insert(start.saga, row);
            Started::New
        };
        Ok(batch.iter().map(start).collect())
    }

    async fn append(&self, worker: WorkerId, batch: &[Append]) -> Result<Vec<Appended>, StoreError> {
        let mut inner = self.lock();
        let append = |append: &Append| {
            let Some(row) = inner.sagas.get_mut(&append.saga) else { return Appended::Lost };
            let answer = row.append(worker, append);
            if answer == Appended::Written && !append.read.is_empty() {
                for (mail, read) in &mut inner.mailbox {
                    *read |= mail.saga == append.saga && append.read.contains(&mail.message);
                }
            }
            answer
        };
        Ok(batch.iter().map(append).collect())
    }

    async fn claim(
        &self,
        worker: WorkerId,
        definitions: &[DefinitionId],
        ripe: Ripe,
        room: Room,
    ) -> Result<Vec<Record>, StoreError> {
        let (mut inner, now) = (self.lock(), Instant::now());
        let mut found: Vec<(Option<Instant>, SagaId)> = vec![];
        for (&saga, row) in &inner.sagas {
            let survived = row.lost_with.iter().filter(|worker| worker.is_none()).count();
            let fits = row.is_one_of(definitions) && row.record.lapses as usize - survived <= room.lapses as usize;
            if row.owner.is_some() || row.record.status.is_final() || !fits {
                continue;
            }
            let is_ripe = match ripe {
                Ripe::Mailed => inner.unread(saga).next().is_some(),
                Ripe::Due => row.due.is_some_and(|due| due <= now),
            };
            if is_ripe {
                found.push((row.due, saga));
            }
        }
        found.sort_unstable();
        let mut bytes = 0;
        let claimed = found.iter().take(room.sagas).filter_map(|(_, saga)| {
            if bytes >= room.bytes && bytes > 0 {
                return None;
            }
            let row = inner.sagas.get_mut(saga)?;
            row.owner = Some(worker);
            row.due = None;
            row.record.epoch += 1;
            let snapshot = row.snapshot.clone();
            let read = snapshot.as_ref().and_then(|snapshot| usize::try_from(snapshot.seq).ok()).unwrap_or_default();
            let record = inner.record(*saga)?;
            let record = Record { journal: record.journal[read..].to_vec(), snapshot, ..record };
            bytes += record.bytes();
            Some(record)
        });
        Ok(claimed.collect())
    }

    async fn owned(&self, worker: WorkerId) -> Result<Vec<(SagaId, i64)>, StoreError> {
        let inner = self.lock();
        let owned = inner.sagas.iter().filter(|(_, row)| row.owner == Some(worker));
        Ok(owned.map(|(saga, row)| (*saga, row.record.epoch)).collect())
    }

    async fn disown(&self, worker: WorkerId, sagas: &[(SagaId, i64)]) -> Result<(), StoreError> {
        let mut inner = self.lock();
        for (saga, epoch) in sagas {
            if let Some(row) = inner.sagas.get_mut(saga)
                && row.owner == Some(worker)
                && row.record.epoch == *epoch
            {
                row.free(Some(Instant::now()));
                row.record.epoch += 1;
            }
        }
        Ok(())
    }

    async fn post(&self, batch: &[Mail]) -> Result<Vec<Posted>, StoreError> {
        let mut inner = self.lock();
        let post = |mail: &Mail| {
            let Some(row) = inner.sagas.get(&mail.saga) else { return Posted::NoSuchSaga };
            let ended = row.record.status.is_final();
            if inner.posted.contains(&(mail.saga, mail.message.clone())) {
                return Posted::Accepted;
            }
            if ended {
                return Posted::Ended;
            }
            inner.posted.insert((mail.saga, mail.message.clone()));
            inner.mailbox.push((mail.clone(), false));
            Posted::Accepted
        };
        Ok(batch.iter().map(post).collect())
    }

    async fn mail(
        &self,
        worker: WorkerId,
        definitions: &[DefinitionId],
        limit: usize,
    ) -> Result<Vec<Mail>, StoreError> {
        let inner = self.lock();
        let owned = |saga: &SagaId| {
            inner.sagas.get(saga).is_some_and(|row| row.owner == Some(worker) && row.is_one_of(definitions))
        };
        // Of each saga the first before the second of any.
        let (mut turns, mut found) = (HashMap::<SagaId, usize>::new(), vec![]);
        for (place, (mail, read)) in inner.mailbox.iter().enumerate() {
            if !read && owned(&mail.saga) {
                let turn = turns.entry(mail.saga).or_default();
                found.push((*turn, place));
                *turn += 1;
            }
        }
        found.sort_unstable();
        found.truncate(limit);
        found.sort_unstable_by_key(|(_, place)| *place);
        Ok(found.iter().map(|(_, place)| inner.mailbox[*place].0.clone()).collect())
    }

    async fn find(&self, name: &str, key: &str) -> Result<Option<SagaId>, StoreError> {
        Ok(self.lock().keys.get(&(name.into(), key.into())).copied())
    }

    async fn statuses(&self, sagas: &[SagaId]) -> Result<Vec<Option<Status>>, StoreError> {
        let inner = self.lock();
        Ok(sagas.iter().map(|saga| inner.sagas.get(saga).map(|row| row.record.status)).collect())
    }

    async fn read(&self, saga: SagaId) -> Result<Option<Record>, StoreError> {
        Ok(self.lock().record(saga))
    }

    async fn census(&self, names: &[String]) -> Result<Vec<Census>, StoreError> {
        let inner = self.lock();
        let of = |name: &String| {
            let rows = || inner.sagas.values().filter(|row| row.record.name == *name);
            let parked = rows().filter(|row| row.record.status == Status::Parked).count();
            let unfinished = rows().filter(|row| !row.record.status.is_final());
            Census { parked: parked as u64, oldest: unfinished.map(|row| row.started.elapsed()).max() }
        };
        Ok(names.iter().map(of).collect())
    }

    async fn unclaimable(&self) -> Result<Vec<DefinitionId>, StoreError> {
        let (inner, now) = (self.lock(), Instant::now());
        let due = inner.sagas.values().filter(|row| row.due.is_some_and(|due| due <= now));
        let wanted: HashSet<DefinitionId> =
            due.map(|row| DefinitionId { name: row.record.name.clone(), version: row.record.version }).collect();
        let served = |definition: &DefinitionId| {
            inner.workers.values().any(|(until, known)| *until > now && known.contains(definition))
        };
        Ok(wanted.into_iter().filter(|definition| !served(definition)).collect())
    }

    fn hint(&self, hint: Hint) {
        // Nobody listening is no error: a hint is only a hint.
        let _ = self.hints.send(hint);
    }

    fn hints(&self) -> broadcast::Receiver<Hint> {
        self.hints.subscribe()
    }
}
