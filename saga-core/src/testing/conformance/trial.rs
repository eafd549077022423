//! What the cases share: a store under trial, with its answers checked for what holds in every case.

use super::{Broken, PATIENCE};
use crate::{
    Encoded, SagaId, WorkerId,
    machine::Status,
    store::{
        Append, Appended, DefinitionId, Mail, Posted, Record, Ripe, Room, SnapshotChange, Start, Started, Store,
        StoreError, Then,
    },
    trace::TraceContext,
};
use futures::future::BoxFuture;
use std::{collections::HashSet, fmt::Debug, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// A lease that does not lapse while a case is tried.
pub(super) const LONG: Duration = Duration::from_secs(600);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// What a case comes to.
pub(super) type Verdict = Result<(), Broken>;

/// The store under trial. Clones share it, for what is done at the same time.
#[derive(Clone)]
pub(super) struct Trial(Arc<dyn Store>);

impl Trial {
    pub(super) fn on(store: impl Store) -> Self {
        Self(Arc::new(store))
    }

    pub(super) fn store(&self) -> &dyn Store {
        &*self.0
    }

    /// A living worker that can run these definitions.
    pub(super) async fn worker(&self, definitions: &[DefinitionId]) -> Result<WorkerId, Broken> {
        let worker = WorkerId::generate();
        self.join(worker, LONG, definitions).await?;
        Ok(worker)
    }

    pub(super) async fn join(&self, worker: WorkerId, lease: Duration, definitions: &[DefinitionId]) -> Verdict {
        done("join", || self.0.join(worker, lease, definitions)).await
    }

    /// A living worker that can run [`order`]s.
    pub(super) async fn clerk(&self) -> Result<WorkerId, Broken> {
        self.worker(&[order()]).await
    }

    /// Lets a living worker's lease lapse. The next sweeps find it.
    pub(super) async fn lapse(&self, worker: WorkerId) -> Verdict {
        promise!(
            self.beat(worker, Duration::from_millis(1)).await?,
            "the beat of a living worker was answered with false"
        );
        sleep(PAUSE).await;
        Ok(())
    }

    pub(super) async fn beat(&self, worker: WorkerId, lease: Duration) -> Result<bool, Broken> {
        done("beat", || self.0.beat(worker, lease)).await
    }

    pub(super) async fn leave(&self, worker: WorkerId) -> Verdict {
        done("leave", || self.0.leave(worker)).await
    }

    pub(super) async fn returned(&self, worker: WorkerId) -> Verdict {
        done("returned", || self.0.returned(worker)).await
    }

    pub(super) async fn sweep(&self, limit: usize) -> Result<usize, Broken> {
        let swept = done("sweep", || self.0.sweep(limit)).await?;
        promise!(swept <= limit, "a sweep of at most {limit} swept {swept}");
        Ok(swept)
    }

    /// Sweeps until that many sagas were swept, and finds no more.
    pub(super) async fn sweep_exactly(&self, expected: usize) -> Verdict {
        let mut swept = 0;
        eventually!("lapsed workers' sagas to be swept", {
            swept += self.sweep(100).await?;
            (swept >= expected).then_some(())
        });
        swept += self.sweep(100).await?;
        same("the number of sagas that were swept", swept, expected)
    }

    pub(super) async fn start(&self, batch: &[Start]) -> Result<Vec<Started>, Broken> {
        let answers = done("start", || self.0.start(batch)).await?;
        same("the number of answers to a batch of starts", answers.len(), batch.len())?;
        Ok(answers)
    }

    /// Starts a new saga.
    pub(super) async fn begin(&self, start: Start) -> Result<SagaId, Broken> {
        let answers = self.start(std::slice::from_ref(&start)).await?;
        same("the answer to a first start", &answers[..], &[Started::New])?;
        Ok(start.saga)
    }

    /// Starts a saga that `worker` owns, at epoch 1.
    pub(super) async fn begin_owned(&self, worker: WorkerId, key: &str) -> Result<SagaId, Broken> {
        self.begin(Start { owner: Some(worker), ..start(key) }).await
    }

    /// Appends, and tries again what is busy, as the engine does.
    pub(super) async fn append(&self, worker: WorkerId, batch: &[Append]) -> Result<Vec<Appended>, Broken> {
        let mut answers = vec![Appended::Busy; batch.len()];
        eventually!("busy appends to be written or refused", {
            let busy: Vec<usize> = (0..batch.len()).filter(|&i| answers[i] == Appended::Busy).collect();
            let open: Vec<Append> = busy.iter().map(|&i| batch[i].clone()).collect();
            let answered = done("append", || self.0.append(worker, &open)).await?;
            same("the number of answers to a batch of appends", answered.len(), open.len())?;
            for (i, answer) in busy.into_iter().zip(answered) {
                answers[i] = answer;
            }
            (!answers.contains(&Appended::Busy)).then_some(())
        });
        Ok(answers)
    }

    pub(super) async fn append_one(&self, worker: WorkerId, append: &Append) -> Result<Appended, Broken> {
        Ok(self.append(worker, std::slice::from_ref(append)).await?[0])
    }

    /// Appends what must be written.
    pub(super) async fn write(&self, worker: WorkerId, append: &Append) -> Verdict {
        same("the answer to an owner's append", self.append_one(worker, append).await?, Appended::Written)
    }

    /// Releases a saga, without an entry.
    pub(super) async fn release(
        &self,
        worker: WorkerId,
        saga: SagaId,
        epoch: i64,
        due_in: Option<Duration>,
    ) -> Verdict {
        let then = Then::Release { due_in };
        self.write(worker, &Append { then, ..no_entry(saga, epoch, 1) }).await
    }

    /// One claim.
    pub(super) async fn claim_ripe(&self, worker: WorkerId, ripe: Ripe, limit: usize) -> Result<Vec<Record>, Broken> {
        let definitions = [order()];
        done("claim", || self.0.claim(worker, &definitions, ripe, Room::of(limit))).await
    }

    /// As an engine claims: what has mail, and what is due.
    pub(super) async fn claim(
        &self,
        worker: WorkerId,
        definitions: &[DefinitionId],
        limit: usize,
    ) -> Result<Vec<Record>, Broken> {
        let mut claimed = done("claim", || self.0.claim(worker, definitions, Ripe::Mailed, Room::of(limit))).await?;
        let room = limit.saturating_sub(claimed.len());
        claimed.extend(done("claim", || self.0.claim(worker, definitions, Ripe::Due, Room::of(room))).await?);
        promise!(claimed.len() <= limit, "a claim of at most {limit} sagas answered with {}", claimed.len());
        let distinct: HashSet<SagaId> = claimed.iter().map(|record| record.saga).collect();
        same("the number of different sagas in the answer to a claim", distinct.len(), claimed.len())?;
        Ok(claimed)
    }

    /// One claim, by weight.
    pub(super) async fn claim_so_much(&self, worker: WorkerId, ripe: Ripe, room: Room) -> Result<Vec<Record>, Broken> {
        let definitions = [order()];
        done("claim", || self.0.claim(worker, &definitions, ripe, room)).await
    }

    /// Claims until these sagas were claimed, and no others; their records come in the order given.
    pub(super) async fn claim_exactly<const N: usize>(
        &self,
        worker: WorkerId,
        sagas: [SagaId; N],
    ) -> Result<[Record; N], Broken> {
        let mut claimed = vec![];
        eventually!("claimable sagas to be claimed", {
            claimed.extend(self.claim(worker, &[order()], N.max(1) + 1).await?);
            (claimed.len() >= N).then_some(())
        });
        claimed.extend(self.claim(worker, &[order()], 1).await?);
        let got: HashSet<SagaId> = claimed.iter().map(|record| record.saga).collect();
        same("the sagas that could be claimed", got, sagas.into())?;
        claimed.sort_by_key(|record| sagas.iter().position(|saga| *saga == record.saga));
        claimed.try_into().map_err(|_| Broken::new("a saga was claimed twice"))
    }

    pub(super) async fn claim_one(&self, worker: WorkerId, saga: SagaId) -> Result<Record, Broken> {
        let [record] = self.claim_exactly(worker, [saga]).await?;
        Ok(record)
    }

    /// Nothing can be claimed, neither now nor in a moment.
    pub(super) async fn nothing_to_claim(&self, worker: WorkerId, why: &str) -> Verdict {
        for _ in 0..3 {
            let claimed = self.claim(worker, &[order()], 10).await?;
            promise!(claimed.is_empty(), "{why}, but {claimed:?} could be claimed");
            sleep(PAUSE * 3).await;
        }
        Ok(())
    }

    pub(super) async fn owned(&self, worker: WorkerId) -> Result<HashSet<SagaId>, Broken> {
        let owned = done("owned", || self.0.owned(worker)).await?;
        let distinct: HashSet<SagaId> = owned.iter().map(|(saga, _)| *saga).collect();
        same("the number of different sagas that a worker owns", distinct.len(), owned.len())?;
        Ok(distinct)
    }

    /// Gives back at the epoch at which each of these sagas stands now.
    pub(super) async fn disown(&self, worker: WorkerId, sagas: &[SagaId]) -> Verdict {
        let mut claims = vec![];
        for saga in sagas {
            let record = done("read", || self.0.read(*saga)).await?;
            claims.push((*saga, record.map_or(1, |record| record.epoch)));
        }
        self.disown_at(worker, &claims).await
    }

    pub(super) async fn disown_at(&self, worker: WorkerId, claims: &[(SagaId, i64)]) -> Verdict {
        done("disown", || self.0.disown(worker, claims)).await
    }

    pub(super) async fn post(&self, batch: &[Mail]) -> Result<Vec<Posted>, Broken> {
        let answers = done("post", || self.0.post(batch)).await?;
        same("the number of answers to a batch of messages", answers.len(), batch.len())?;
        Ok(answers)
    }

    /// Posts what must be accepted.
    pub(super) async fn deliver(&self, mail: &Mail) -> Verdict {
        let answers = self.post(std::slice::from_ref(mail)).await?;
        same("the answer to a message to a saga that has not ended", &answers[..], [Posted::Accepted])
    }

    pub(super) async fn mail(&self, worker: WorkerId, limit: usize) -> Result<Vec<Mail>, Broken> {
        let definitions = [order()];
        let mail = done("mail", || self.0.mail(worker, &definitions, limit)).await?;
        promise!(mail.len() <= limit, "at most {limit} messages were asked for, {} came", mail.len());
        Ok(mail)
    }

    /// Asks until each of these messages was among the answers. No answer has another one, or another order.
    pub(super) async fn has_mail(&self, worker: WorkerId, promised: &[Mail]) -> Verdict {
        let (mut missing, mut looks) = (promised.to_vec(), Looks::for_mail());
        loop {
            let fetched = self.mail(worker, promised.len() + 1).await?;
            let known: Vec<&Mail> = promised.iter().filter(|mail| fetched.contains(mail)).collect();
            same("the mail", fetched.iter().collect::<Vec<_>>(), known)?;
            missing.retain(|mail| !fetched.contains(mail));
            if missing.is_empty() {
                return Ok(());
            }
            looks.pause("mail to be fetched").await?;
        }
    }

    pub(super) async fn find(&self, name: &str, key: &str) -> Result<Option<SagaId>, Broken> {
        done("find", || self.0.find(name, key)).await
    }

    pub(super) async fn statuses(&self, sagas: &[SagaId]) -> Result<Vec<Option<Status>>, Broken> {
        done("statuses", || self.0.statuses(sagas)).await
    }

    pub(super) async fn read(&self, saga: SagaId) -> Result<Option<Record>, Broken> {
        done("read", || self.0.read(saga)).await
    }

    /// A saga that must be there.
    pub(super) async fn record(&self, saga: SagaId) -> Result<Record, Broken> {
        self.read(saga).await?.ok_or_else(|| Broken::new("a saga that was started cannot be read"))
    }

    /// The journal is this one.
    pub(super) async fn has_journal(&self, saga: SagaId, entries: &[&str]) -> Verdict {
        let journal = self.record(saga).await?.journal;
        let journal: Vec<_> = journal.iter().map(|entry| String::from_utf8_lossy(entry)).collect();
        same("the journal", &journal[..], entries)
    }

    /// Saga, status, epoch and journal are as they were: a refused append left no trace.
    pub(super) async fn is_unchanged(&self, before: &Record) -> Verdict {
        let after = self.record(before.saga).await?;
        let what_counts = |r: &Record| (r.status, r.epoch, r.lapses, r.journal.clone(), r.mail.clone());
        same("(status, epoch, lapses, journal, mail) after a refused append", what_counts(&after), what_counts(before))
    }
}

/// Calls until the store is not contended.
pub(super) async fn done<'a, T>(
    method: &str,
    call: impl Fn() -> BoxFuture<'a, Result<T, StoreError>>,
) -> Result<T, Broken> {
    let mut looks = Looks::for_something();
    loop {
        match call().await {
            Ok(answer) => return Ok(answer),
            Err(StoreError::Contention(_)) => looks.pause("a contended store to answer").await?,
            Err(error) => return Err(Broken::new(format!("`{method}` failed: {error}"))),
        }
    }
}

/// Something is what it should be.
#[track_caller]
pub(super) fn same<A: Debug + PartialEq<B>, B: Debug>(what: &str, seen: A, promised: B) -> Verdict {
    if seen == promised {
        return Ok(());
    }
    let (seen, promised) = (format!("{seen:?}"), format!("{promised:?}"));
    Err(Broken::new(format!("{what}: {seen:.1000}, where {promised:.1000} is promised")))
}

/// Bounded polling.
pub(super) struct Looks {
    began: Instant,
    patience: Duration,
}

impl Looks {
    pub(super) fn for_something() -> Self {
        Self { began: Instant::now(), patience: PATIENCE }
    }

    /// Which may be left out of the answers for a minute.
    pub(super) fn for_mail() -> Self {
        Self { patience: PATIENCE + Duration::from_secs(60), ..Self::for_something() }
    }

    pub(super) async fn pause(&mut self, what: &str) -> Verdict {
        let Self { began, patience } = self;
        promise!(began.elapsed() < *patience, "waited {patience:?} for {what}, in vain");
        sleep(PAUSE).await;
        Ok(())
    }
}

pub(super) fn definition(name: &str, version: u32) -> DefinitionId {
    DefinitionId { name: name.into(), version }
}

/// The definition of most sagas here.
pub(super) fn order() -> DefinitionId {
    definition("order", 1)
}

/// An [`order`] that nobody owns.
pub(super) fn start(key: &str) -> Start {
    let DefinitionId { name, version } = order();
    let (saga, input, trace) = (SagaId::generate(), json(r#"{"item":7}"#), TraceContext::default());
    Start { saga, name, version, key: key.into(), input, trace, owner: None }
}

pub(super) fn json(text: &str) -> Encoded {
    Encoded::from_bytes(text.as_bytes()).expect("the suite's inputs are JSON")
}

/// An append that goes on owning.
pub(super) fn entry(saga: SagaId, epoch: i64, seq: i32, entry: &str) -> Append {
    Append { entry: Some(entry.into()), ..no_entry(saga, epoch, seq) }
}

/// An append that changes nothing.
pub(super) const fn no_entry(saga: SagaId, epoch: i64, seq: i32) -> Append {
    Append {
        saga,
        epoch,
        seq,
        entry: None,
        read: vec![],
        status: None,
        then: Then::Keep,
        age: Duration::ZERO,
        snapshot: SnapshotChange::None,
    }
}

pub(super) fn mail(saga: SagaId, message: &str) -> Mail {
    Mail { saga, message: message.into(), body: format!("this is {message}").into() }
}

pub(super) const WRITTEN: Appended = Appended::Written;
pub(super) const RELEASE: Then = Then::Release { due_in: None };
pub(super) const DUE_NOW: Option<Duration> = Some(Duration::ZERO);
