//! Chaos: worker processes that are killed, frozen and cut off from Postgres in the middle of what they do, and all the
//! promises kept. Each test prints what it did and saw (`--nocapture`).
//!
//! `SAGA_CHAOS_SEED` begins a run with the same dice; processes do not follow dice, so that it goes its own way all the same.
//! `SAGA_CHAOS=short` does a tenth of everything.
#![cfg(all(feature = "testing", unix))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod chaos {
    pub(crate) mod arena;
    pub(crate) mod blows;
    pub(crate) mod dice;
    pub(crate) mod fleet;
    pub(crate) mod ledger;
    pub(crate) mod proxy;
    pub(crate) mod purchase;
    pub(crate) mod verdict;

    /// Microseconds since 1970, on the clock that all processes of this machine share.
    pub(crate) fn now() -> i64 {
        chrono::Utc::now().timestamp_micros()
    }
}

use chaos::{
    arena::{Arena, Client},
    blows::{self, Blow, Kind},
    dice::Dice,
    fleet::{self, Fleet, Orders},
    now,
    proxy::{Proxy, What, When},
    purchase::{Fate, Order},
    verdict::{Attempt, Closing, Verdict},
};
use saga_core::Outcome;
use std::{
    collections::{BTreeMap, HashSet},
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::Mutex, task::JoinSet, time::sleep};

/// Not a test: what a worker process runs.
#[test]
fn worker_process() {
    if let Ok(orders) = std::env::var(fleet::WORKER.1) {
        fleet::work(&orders);
    }
}

/// One test at a time: they measure, and they are many processes each.
static ALONE: Mutex<()> = Mutex::const_new(());

const LEASE: Duration = Duration::from_millis(1000);

/// How much is done.
struct Scale {
    kills: usize,
    freezes: usize,
    cuts: usize,
}

impl Scale {
    fn chosen() -> Self {
        match std::env::var("SAGA_CHAOS").as_deref() {
            Ok("short") => Self { kills: 3, freezes: 5, cuts: 20 },
            _ => Self { kills: 30, freezes: 50, cuts: 200 },
        }
    }
}

fn dice() -> Arc<Dice> {
    let seed = std::env::var("SAGA_CHAOS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| now().unsigned_abs());
    println!("SAGA_CHAOS_SEED={seed}");
    Arc::new(Dice::new(seed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sagas_outlive_kills_freezes_and_lost_answers_to_commits() {
    const IN_FLIGHT: usize = 200;
    let _alone = ALONE.lock().await;
    let began = Instant::now();
    let (dice, scale) = (dice(), Scale::chosen());
    let arena = Arena::open().await;
    let orders = Orders { store: arena.store_url.clone(), ledger: arena.ledger_url.clone(), lease: LEASE, slow: 30 };
    let mut fleet = Fleet::launch(2, &orders);
    let crowd = Crowd::gather(IN_FLIGHT, arena.client().await, dice.clone());

    let kinds = [vec![Kind::Kill; scale.kills], vec![Kind::Freeze; scale.freezes]].concat();
    let (blows, ()) = tokio::join!(
        blows::deal(&fleet, &arena.pool, &dice, LEASE, kinds),
        cut_connections(&arena.proxy, &dice, scale.cuts)
    );
    let chaos = began.elapsed();
    let (client, returned) = crowd.disperse().await;
    fleet.scuttle().await;

    let verdict = Verdict::read(&arena.pool).await;
    println!("{} sagas in {:.0?} of chaos: {:?}", verdict.sagas.len(), chaos, verdict.count_by_status());
    println!("{:?}", counted(blows.iter().map(|blow| blow.kind)));
    println!("cuts: {:?}", counted(arena.proxy.made()));
    println!(
        "calls of clients without an answer: {}, of which {} had done what was asked",
        client.unanswered.load(Ordering::Relaxed),
        client.resolved.load(Ordering::Relaxed)
    );
    verdict.all_ended_as_they_should();
    the_crowd_was_told_the_truth(&verdict, &returned);
    verdict.the_ledger_balances();
    let keys = verdict.no_key_has_two_payloads();
    println!("{} attempts under {keys} keys, {} effects repeated", verdict.attempts.len(), verdict.repeated_effects());
    verdict.no_attempt_has_a_twin();
    surplus_attempts_were_under_way_at_a_loss(&verdict, &fleet, &blows);
}

/// Cuts connections at commits, `cuts` times after the commit was sent, and some times before.
async fn cut_connections(proxy: &Proxy, dice: &Dice, cuts: usize) {
    let sent = || proxy.made().iter().filter(|(_, when)| *when != When::Uncommitted).count();
    while sent() < cuts {
        let what = match dice.within(0..100) {
            0..50 => What::Append,
            50..65 => What::Start,
            65..80 => What::Claim,
            80..90 => What::Transaction,
            _ => What::Other,
        };
        let when = match dice.within(0..100) {
            0..60 => When::Answered,
            60..85 => When::Sent,
            _ => When::Uncommitted,
        };
        proxy.cut_next(what, when);
        sleep(dice.millis(50..700)).await;
    }
}

/// Customers, each of whom orders again when the last order has ended.
struct Crowd {
    client: Arc<Client>,
    going: Arc<AtomicBool>,
    customers: JoinSet<Vec<(saga_core::SagaId, Outcome<String>)>>,
}

impl Crowd {
    fn gather(size: usize, client: Client, dice: Arc<Dice>) -> Self {
        let (client, going, numbers) = (Arc::new(client), Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let mut customers = JoinSet::new();
        for _ in 0..size {
            let (client, dice, going, numbers) = (client.clone(), dice.clone(), going.clone(), numbers.clone());
            customers.spawn(async move {
                let mut ended = vec![];
                while going.load(Ordering::Relaxed) {
                    ended.push(order(&client, &dice, numbers.fetch_add(1, Ordering::Relaxed)).await);
                }
                ended
            });
        }
        Self { client, going, customers }
    }

    /// Waits until all that was ordered has ended.
    async fn disperse(self) -> (Arc<Client>, Vec<(saga_core::SagaId, Outcome<String>)>) {
        self.going.store(false, Ordering::Relaxed);
        let ended = self.customers.join_all().await;
        (self.client, ended.concat())
    }
}

async fn order(client: &Client, dice: &Dice, number: u64) -> (saga_core::SagaId, Outcome<String>) {
    let fate = match dice.within(0..100) {
        0..60 => Fate::Completes,
        60..75 => Fate::IsDeclined,
        75..85 => Fate::LosesAnswers,
        _ => Fate::MayBeCancelled,
    };
    let order = Order { number, fate };
    let key = format!("purchase-{number}");
    let saga = match dice.percent(20) {
        true => client.submit_in_a_transaction(&key, &order).await,
        false => client.submit(&key, &order).await,
    };
    if fate == Fate::MayBeCancelled {
        sleep(dice.millis(0..2000)).await;
        client.cancel(&saga).await;
    }
    (saga.id(), client.outcome(&saga).await)
}

fn the_crowd_was_told_the_truth(verdict: &Verdict, returned: &[(saga_core::SagaId, Outcome<String>)]) {
    let ids: HashSet<_> = returned.iter().map(|(id, _)| *id).collect();
    assert_eq!(
        (ids.len(), returned.len()),
        (verdict.sagas.len(), verdict.sagas.len()),
        "a saga for each order, no more"
    );
    for (id, outcome) in returned {
        let saga = &verdict.sagas[&id.as_uuid()];
        let receipt = saga.receipt.as_ref().map(|receipt| receipt.decode::<String>().unwrap());
        match outcome {
            Outcome::Completed(told) => assert_eq!(Some(told), receipt.as_ref()),
            Outcome::RolledBack(_) => assert_eq!(receipt, None),
            Outcome::Parked(why) => panic!("{id} is parked: {why}"),
        }
    }
}

/// An attempt is *surplus* if another one had to follow although this one did not say so. Each must have been under way, or just
/// ended and on its way into the journal, when its process lost its sagas: by a kill, a freeze, or because it could not beat in time.
fn surplus_attempts_were_under_way_at_a_loss(verdict: &Verdict, fleet: &Fleet, blows: &[Blow]) {
    /// Between the system call and the last instruction of the process.
    const TO_DIE: i64 = 5_000;
    /// Between the end of an attempt and the commit of its outcome, retries included.
    const TO_BE_WRITTEN: i64 = 1_500_000;
    let slow = slow_losses(fleet, blows);
    let losses: Vec<(i32, i64)> = blows.iter().map(|blow| (blow.pid, blow.at)).chain(slow.iter().copied()).collect();
    let under_way = |attempt: &Attempt, (pid, at): (i32, i64)| {
        attempt.pid == pid && attempt.started <= at + TO_DIE && attempt.ended.is_none_or(|ended| ended >= at)
    };
    let just_ended = |attempt: &Attempt, (pid, at): (i32, i64)| {
        attempt.pid == pid && attempt.ended.is_some_and(|ended| (at - TO_BE_WRITTEN..at).contains(&ended))
    };
    let closings = counted(verdict.attempts.iter().map(|attempt| verdict.closing(attempt)));
    let surplus: Vec<&Attempt> =
        verdict.attempts.iter().filter(|attempt| verdict.closing(attempt) == Some(Closing::Lost)).collect();
    let (caught, late): (Vec<&Attempt>, Vec<&Attempt>) =
        surplus.iter().copied().partition(|attempt| losses.iter().any(|loss| under_way(attempt, *loss)));
    let bound =
        losses.iter().map(|loss| verdict.attempts.iter().filter(|a| under_way(a, *loss)).count()).sum::<usize>();
    println!(
        "attempts: {closings:?}\n{} surplus attempts: {} of the {bound} under way at {} blows and {} late heartbeats, and {} that had just ended; {} came after their undo and were refused",
        surplus.len(),
        caught.len(),
        blows.len(),
        slow.len(),
        late.len(),
        verdict.attempts.iter().filter(|attempt| attempt.refused == Some(true)).count(),
    );
    for attempt in late {
        let events = &verdict.sagas[&attempt.saga].events;
        let explained = losses.iter().any(|loss| just_ended(attempt, *loss));
        assert!(explained, "nothing explains that another attempt followed {attempt:?}: {events:#?}");
    }
    assert!(surplus.len() <= bound, "{} surplus attempts, {bound} under way at losses", surplus.len());
}

/// Leases that lapsed although nobody had touched the process, as its log says: cuts and a busy machine can do that.
fn slow_losses(fleet: &Fleet, blows: &[Blow]) -> Vec<(i32, i64)> {
    let logged = fleet.logged();
    let lapses = logged.iter().filter(|(_, line)| line.contains("the lease lapsed")).map(|(pid, line)| {
        let at = line.split_whitespace().next().unwrap();
        (*pid, chrono::DateTime::parse_from_rfc3339(at).unwrap().timestamp_micros())
    });
    let after_a_freeze = |(pid, at): &(i32, i64)| {
        let lease = LEASE.as_micros() as i64;
        blows.iter().any(|blow| blow.pid == *pid && (blow.at..blow.at + 2 * lease).contains(at))
    };
    lapses.filter(|lapse| !after_a_freeze(lapse)).collect()
}

fn counted<T: Debug>(items: impl IntoIterator<Item = T>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for item in items {
        *counts.entry(format!("{item:?}")).or_default() += 1;
    }
    counts
}
