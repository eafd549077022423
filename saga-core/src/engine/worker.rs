//! What a process does besides running its sagas: it stays alive, finds work and mail, and takes over from the dead.
//!
//! Four loops, each of one shape: wait for a hint or the time to poll, ask the store, hand on what it says. None of them
//! ends because the store fails.

use super::{
    Mailbox, Place, Shared,
    drive::{Drive, QUARANTINE, QUARANTINED, SUSPECT},
    journal,
    lease::Lease,
    rarely::Rarely,
    unread,
};
use crate::{
    WorkerId,
    definition::Process,
    machine::State,
    store::{DefinitionId, Hint, Record, Ripe, Room, Snapshot, StoreError},
};
use futures::{
    FutureExt as _,
    future::{BoxFuture, join_all},
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::{broadcast::error::RecvError, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

/// How many sagas are claimed, or swept, at a time.
const AT_A_TIME: usize = 500;
/// What was claimed and weighs so much may have left others behind for their weight.
const A_LOAD: usize = 256 << 10;
/// How many messages are fetched at a time.
const MAIL_AT_A_TIME: usize = 1000;

/// What takes long and is done again and again takes one part in so many of the time.
pub(crate) const SELDOM: u32 = 20;

/// Between two looks for what is owned here and not known, if these take long.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long what is put back is waited for.
const A_WHILE: Duration = Duration::from_secs(2);

/// Between two looks for the dead, at most.
const LOOK: Duration = Duration::from_secs(2);

/// Registers a new identity with the store.
pub(crate) async fn join(shared: &Shared) -> Result<Lease, StoreError> {
    let worker = WorkerId::generate();
    let sent = Instant::now();
    shared.store.join(worker, shared.config.lease, &shared.definitions).await?;
    let sagas: Vec<String> = shared.definitions.iter().map(|id| format!("{} v{}", id.name, id.version)).collect();
    tracing::info!(%worker, lease = ?shared.config.lease, ?sagas, "joined");
    Ok(Lease::new(worker, sent + shared.config.lease))
}

/// What a worker sent before it lapsed may arrive for so long after that, and what it takes then is nobody's.
const LATE: Duration = Duration::from_secs(180);
/// Between two looks for that, at most.
const LOOK_FOR_LATE: Duration = Duration::from_secs(30);

/// When the lease lapses, everything that counts on it is dropped at once. As soon as the store can be spoken to again
/// it is told that this process was silent and not dead, and the worker joins under a new identity.
pub(crate) async fn stay_alive(shared: Arc<Shared>) {
    loop {
        let lease = shared.lease();
        lease.lost().await;
        let (worker, sagas) = (lease.worker(), shared.in_memory().len());
        tracing::warn!(%worker, sagas, "the lease lapsed: others take over what ran here");
        // Whoever cannot say so for long works all the same, and says it later.
        let saying = until_done(&shared, "cannot say that this process lives", || say(&shared, worker));
        let _ = timeout(LATE, saying).await;
        shared.spawn(say_again(shared.clone(), worker));
        let joined = until_done(&shared, "cannot join", || join(&shared)).await;
        shared.replace_lease(joined);
        shared.work.notify_one();
    }
}

async fn say(shared: &Shared, worker: WorkerId) -> Result<(), StoreError> {
    match shared.store.returned(worker).await {
        // Somebody holds a saga, which waits for itself.
        Err(StoreError::Contention(_)) => Ok(()),
        said => said,
    }
}

/// Says again that a former worker of this process was silent and not dead: of what somebody held, and of what it sent
/// before and arrived late.
async fn say_again(shared: Arc<Shared>, worker: WorkerId) {
    let (until, mut pause, mut said) = (Instant::now() + LATE, LOOK, false);
    while !said || Instant::now() < until {
        sleep(pause).await;
        said = match shared.store.returned(worker).await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, %worker, "cannot say yet that it lives");
                false
            }
        };
        pause = if said { (2 * pause).min(LOOK_FOR_LATE) } else { LOOK };
    }
}

async fn until_done<T, C: Future<Output = Result<T, StoreError>>>(
    shared: &Shared,
    what: &str,
    call: impl Fn() -> C,
) -> T {
    let mut rarely = Rarely::default();
    loop {
        match call().await {
            Ok(done) => return done,
            Err(error) if rarely.now() => tracing::warn!(%error, "{what}: it is tried again"),
            Err(_) => {}
        }
        sleep(shared.config.poll).await;
    }
}

/// Claims sagas that have mail, and sagas that are due, as long as there is room for them.
///
/// Mail is looked for when there was a hint of it, and once a poll, however many hints of work there are: most sagas that have some have an owner, which brings it to them, and so it is a long look.
pub(crate) async fn find_work(shared: Arc<Shared>) {
    let (mut give_back_at, mut look_for_mail_at) = (Instant::now(), Instant::now());
    let (mut rarely, mut rarely_back) = (Rarely::default(), Rarely::default());
    // Whether all that is owned here is in memory.
    let mut is_known = true;
    let mut turns = Turns::default();
    // Those that there was no room for when mail was looked for last. As soon as there is, it is theirs first.
    let mut without_mail = vec![];
    while !shared.draining.is_cancelled() {
        let lease = shared.lease();
        let now = Instant::now();
        if now >= give_back_at {
            is_known = give_back(&shared, &lease, &mut rarely_back).await;
            let (took, config) = (now.elapsed(), &shared.config);
            let pause = if is_known {
                (config.lease / 2).max((SELDOM * took).min(LONGEST_PAUSE))
            } else {
                config.poll.max(took)
            };
            give_back_at = Instant::now() + pause;
        }
        tokio::select! {
            () = shared.memory.opens(&shared.definitions) => {}
            () = sleep_until(give_back_at) => continue,
            () = shared.draining.cancelled() => return,
        }
        if !lease.holds() {
            sleep(shared.config.poll).await;
            continue;
        }
        let hinted = shared.mailed.swap(false, Ordering::AcqRel) || shared.memory.is_any_open(&without_mail);
        let mailed = hinted || Instant::now() >= look_for_mail_at;
        let (mut more, mut closed) = (false, vec![]);
        for ripe in if mailed { [Ripe::Mailed, Ripe::Due].as_slice() } else { &[Ripe::Due] } {
            let mut vacancy = shared.memory.vacancy(&shared.definitions, AT_A_TIME);
            closed = std::mem::take(&mut vacancy.closed);
            if *ripe == Ripe::Mailed {
                without_mail.clone_from(&closed);
            }
            if vacancy.open.is_empty() {
                break;
            }
            let lapses = if is_known { turns.most_lapses(&shared) } else { 0 };
            let asked = Room { sagas: vacancy.sagas, bytes: vacancy.bytes, lapses };
            match shared.store.claim(lease.worker(), &vacancy.open, *ripe, asked).await {
                Ok(claimed) => {
                    rarely.over();
                    let bytes = claimed.iter().map(Record::bytes).sum::<usize>();
                    more = claimed.len() >= vacancy.sagas || bytes >= vacancy.bytes.min(A_LOAD);
                    let (mut runs, mut lost, mut left) = (vec![], vec![], false);
                    for record in claimed {
                        match take(&shared, &lease, record) {
                            Claimed::Runs(begins) => runs.push(begins),
                            Claimed::Lost(drive) => lost.push(*drive),
                            Claimed::Left => left = true,
                        }
                    }
                    drop(vacancy);
                    // What was put back would be claimed again at once, for its mail.
                    more &= isolate(&shared, lost, turns.are_the_suspects).await && !left;
                    // Not before that: one of them may be what kills this worker.
                    runs.into_iter().for_each(|begins| shared.spawn_drive(begins));
                    if more && *ripe == Ripe::Mailed {
                        shared.mailed.store(true, Ordering::Release);
                    }
                }
                Err(error) => {
                    if rarely.now() {
                        tracing::warn!(%error, "cannot look for work: it is tried again");
                    }
                    // The claim may stand all the same: what it took is given back, and claimed again.
                    (give_back_at, is_known) = (Instant::now(), false);
                    shared.mailed.fetch_or(mailed, Ordering::AcqRel);
                    break;
                }
            }
        }
        if mailed {
            look_for_mail_at = Instant::now() + shared.config.poll;
        }
        if more {
            continue;
        }
        tokio::select! {
            () = sleep_until(look_for_mail_at) => {}
            // What waits in the store for that is not hinted at again.
            () = shared.memory.opens(&closed), if !closed.is_empty() => {}
            () = shared.work.notified() => {}
            () = shared.draining.cancelled() => {}
        }
    }
}

/// What becomes of a claimed saga.
enum Claimed {
    Runs(BoxFuture<'static, ()>),
    /// A worker died with it: how it runs is decided together with the others.
    Lost(Box<Drive>),
    /// It cannot be run here.
    Left,
}

fn take(shared: &Arc<Shared>, lease: &Lease, record: Record) -> Claimed {
    let definition = DefinitionId { name: record.name.clone(), version: record.version };
    let place = shared.processes.get(&definition).zip(shared.memory.place_for_claimed(&definition));
    let Some((process, weight)) = place else {
        // The store answered with what was not asked for. The next round gives it back.
        tracing::error!(?definition, "claimed a saga of an unknown definition");
        return Claimed::Left;
    };
    let (place, mailbox) = Place::take(shared, record.saga, weight);
    let Some(beginning) = journal::beginning(process.graph(), &record) else {
        let whole = run_from_its_journal(shared.clone(), lease.clone(), process.clone(), record, (mailbox, place));
        return Claimed::Runs(whole.boxed());
    };
    match drive(shared, lease, process, record, beginning, (mailbox, place)) {
        Some(drive) if drive.was_lost() => Claimed::Lost(Box::new(drive)),
        Some(drive) => Claimed::Runs(drive.run()),
        None => Claimed::Left,
    }
}

/// A saga as its journal goes on from there. One that cannot be read is left.
fn drive(
    shared: &Arc<Shared>,
    lease: &Lease,
    process: &Arc<dyn Process>,
    record: Record,
    beginning: State,
    (mailbox, place): (Mailbox, Place),
) -> Option<Drive> {
    match journal::replay(process.graph(), beginning, &record.journal) {
        Ok(state) => {
            shared.unread.forget(record.saga);
            let (ended, _) = watch::channel(None);
            Some(Drive::new(process.clone(), lease.clone(), record, state, mailbox, ended, place))
        }
        Err(error) => {
            shared.spawn_drive(unread::leave(shared.clone(), lease.clone(), record, error, (mailbox, place)).boxed());
            None
        }
    }
}

/// A saga whose snapshot is of another release: its journal is there as well.
async fn run_from_its_journal(
    shared: Arc<Shared>,
    lease: Lease,
    process: Arc<dyn Process>,
    mut record: Record,
    place: (Mailbox, Place),
) {
    let Some(whole) = shared.reread(&lease, record.saga).await else { return };
    // It counts as one of the beginning, until it is written anew or removed.
    (record.snapshot, record.journal) = (Some(Snapshot { seq: 0, state: vec![] }), whole.journal);
    let beginning = State::new(process.graph());
    match drive(&shared, &lease, &process, record, beginning, place) {
        Some(drive) if drive.was_lost() => drop(isolate(&shared, vec![drive], false).await),
        Some(drive) => drive.run().await,
        None => {}
    }
}

/// So many times as long as somebody may be in quarantine, suspects wait at most until it is their turn.
const TURN: u32 = 4;

/// Whose turn it is to be in quarantine.
#[derive(Default)]
struct Turns {
    /// Since when somebody has been in it all the time.
    taken: Option<Instant>,
    /// They waited for so long that none else is let in before one of them was.
    are_the_suspects: bool,
    rarely: Rarely,
}

impl Turns {
    /// How often a saga may have lapsed that could begin here now. One that could not is not even claimed: while it is
    /// owned, it may be lost with a saga in quarantine that kills this worker.
    ///
    /// Lapses are no fewer than deaths: a saga that has made progress since may wait without need.
    fn most_lapses(&mut self, shared: &Shared) -> u32 {
        let patience = TURN * shared.config.lease.max(QUARANTINED);
        let waited = self.taken.map(|since| since.elapsed()).unwrap_or_default();
        let free = shared.quarantine.available_permits();
        if free >= QUARANTINE as usize {
            (self.are_the_suspects, self.taken) = (waited > patience, None);
            return u32::MAX;
        }
        self.taken.get_or_insert_with(Instant::now);
        if waited > patience && self.rarely.now() {
            tracing::info!(
                ?waited,
                "sagas that workers were lost with wait for others of their kind to do no harm here"
            );
        }
        if free == 0 || waited > patience { 0 } else { SUSPECT - 1 }
    }
}

/// Of the suspects one runs at a time in a process, and no other saga beside it that was lost: the others are put back
/// before it begins, so that they are not lost with it. Whether there were none of those.
async fn isolate(shared: &Shared, lost: Vec<Drive>, suspects_first: bool) -> bool {
    let (suspects, lost_once): (Vec<Drive>, Vec<Drive>) = lost.into_iter().partition(Drive::is_suspect);
    let (mut running, mut put_back) = (vec![], vec![]);
    let mut turns: Vec<(Drive, u32)> = lost_once.into_iter().map(|drive| (drive, 1)).collect();
    turns.extend(suspects.into_iter().map(|drive| (drive, QUARANTINE)));
    if suspects_first {
        turns.reverse();
    }
    for (drive, share) in turns {
        match shared.quarantine.clone().try_acquire_many_owned(share) {
            Ok(permit) => running.push(drive.quarantined(permit)),
            Err(_) => put_back.push(drive.put_back()),
        }
    }
    let none = put_back.is_empty();
    if !running.is_empty() {
        tracing::info!(sagas = running.len(), "taking over from workers that were lost");
    }
    // Whoever holds one of their rows holds up no others.
    let _ = timeout(A_WHILE, join_all(put_back)).await;
    running.into_iter().for_each(|drive| shared.spawn_drive(drive.run()));
    none
}

/// Gives back what the store says is owned here and is not in memory: the answer to a claim or a start was lost.
///
/// What is in memory is looked at *after* the store was asked, since a saga enters memory before its start is sent. No claim
/// is under way meanwhile. The lease is looked at last: when it is lost, all sagas leave memory, attempts under way and all, and must lapse.
///
/// Whether there was nothing to give back.
async fn give_back(shared: &Shared, lease: &Lease, rarely: &mut Rarely) -> bool {
    let unknown = async {
        let mut owned = shared.store.owned(lease.worker()).await?;
        owned.retain(|(saga, _)| !shared.is_in_memory(*saga));
        if !owned.is_empty() && lease.holds() {
            tracing::info!(sagas = owned.len(), "giving back sagas whose claim had not been answered");
            shared.store.disown(lease.worker(), &owned).await?;
        }
        Ok::<_, StoreError>(owned.is_empty())
    };
    match unknown.await {
        Ok(nothing) => {
            rarely.over();
            nothing
        }
        Err(error) => {
            if rarely.now() {
                tracing::warn!(%error, "cannot give back: it is tried again");
            }
            false
        }
    }
}

/// Brings mail to the sagas in memory. What is for others is found by whoever claims them.
pub(crate) async fn bring_mail(shared: Arc<Shared>) {
    let mut rarely = Rarely::default();
    loop {
        if shared.has_sagas_in_memory() {
            match shared.store.mail(shared.lease().worker(), &shared.definitions, MAIL_AT_A_TIME).await {
                Ok(mail) => {
                    rarely.over();
                    for mail in mail {
                        shared.deliver(mail);
                    }
                }
                Err(error) if rarely.now() => tracing::warn!(%error, "cannot fetch mail: it is tried again"),
                Err(_) => {}
            }
        }
        tokio::select! {
            () = sleep(shared.config.poll) => {}
            () = shared.mail.notified() => {}
        }
    }
}

/// Makes due what dead workers owned.
pub(crate) async fn take_over_from_the_dead(shared: Arc<Shared>) {
    let mut rarely = Rarely::default();
    loop {
        match shared.store.sweep(AT_A_TIME).await {
            Ok(0) => rarely.over(),
            Ok(swept) => {
                rarely.over();
                tracing::info!(swept, "sagas of lost workers are due again");
                shared.store.hint(Hint::Work);
                if swept == AT_A_TIME {
                    continue;
                }
            }
            Err(error) if rarely.now() => {
                tracing::warn!(%error, "cannot look for dead processes: it is tried again");
            }
            Err(_) => {}
        }
        // Workers that started together spread out.
        sleep((shared.config.lease / 4).min(LOOK).mul_f64(0.75 + 0.5 * fastrand::f64())).await;
    }
}

/// Turns hints into looks.
pub(crate) async fn follow_hints(shared: Arc<Shared>) {
    let mut hints = shared.store.hints();
    loop {
        match hints.recv().await {
            Ok(Hint::Work) => shared.work.notify_one(),
            Ok(Hint::Mail) => {
                shared.mail.notify_one();
                shared.mailed.store(true, Ordering::Release);
                shared.work.notify_one();
            }
            Ok(Hint::Ended) => shared.outcomes.look.notify_one(),
            Err(RecvError::Lagged(_)) => {
                shared.mailed.store(true, Ordering::Release);
                shared.work.notify_one();
                shared.mail.notify_one();
                shared.outcomes.look.notify_one();
            }
            Err(RecvError::Closed) => return,
        }
    }
}
