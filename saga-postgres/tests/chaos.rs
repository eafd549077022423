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
    pub(crate) mod errand;
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
    errand::{self, Errand, Task},
    fleet::{self, Fleet, Orders},
    ledger, now,
    proxy::{Proxy, What, When},
    purchase::{Fate, Order},
    verdict::{Attempt, Closing, Verdict},
};
use futures::future::join_all;
use saga_core::{
    Error, Outcome, SagaId, Sagas,
    machine::{Event, Status},
    store::StoreError,
};
use saga_postgres::{InTransaction, testing::Postgres};
use sqlx::{PgPool, postgres::PgPoolOptions};
use std::{
    collections::{BTreeMap, HashSet},
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{sleep, timeout},
};

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
    let orders = arena.orders(LEASE);
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
    surplus_attempts_were_in_flight_at_a_loss(&verdict, &fleet, &blows);
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
    customers: JoinSet<Vec<(SagaId, Outcome<String>)>>,
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
    async fn disperse(self) -> (Arc<Client>, Vec<(SagaId, Outcome<String>)>) {
        self.going.store(false, Ordering::Relaxed);
        let ended = self.customers.join_all().await;
        (self.client, ended.concat())
    }
}

async fn order(client: &Client, dice: &Dice, number: u64) -> (SagaId, Outcome<String>) {
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

fn the_crowd_was_told_the_truth(verdict: &Verdict, returned: &[(SagaId, Outcome<String>)]) {
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

/// An attempt is *surplus* if another one had to follow although this one did not say so. Each must have been in flight when its process
/// lost its sagas (by a kill, a freeze, or because it could not beat in time): begun, and not ended as the ledger says, or just ended
/// and its outcome still on the way into the journal.
fn surplus_attempts_were_in_flight_at_a_loss(verdict: &Verdict, fleet: &Fleet, blows: &[Blow]) {
    let slow = slow_losses(fleet, blows);
    let losses: Vec<Loss> = blows.iter().map(Loss::from).chain(slow.iter().copied()).collect();
    let bound: usize =
        losses.iter().map(|loss| verdict.attempts.iter().filter(|attempt| loss.hit(attempt)).count()).sum();
    let (mut hit, mut just_ended, mut longest, mut woken) = (0, 0, 0, vec![0; losses.len()]);
    for attempt in verdict.attempts.iter().filter(|attempt| verdict.closing(attempt) == Closing::Lost) {
        if losses.iter().any(|loss| loss.hit(attempt)) {
            hit += 1;
        } else if let Some(before) = losses.iter().filter_map(|loss| loss.just_before(attempt)).min() {
            just_ended += 1;
            longest = longest.max(before / 1000);
        } else if let Some(loss) = losses.iter().position(|loss| loss.woke(attempt)) {
            woken[loss] += 1;
        } else {
            let events = &verdict.sagas[&attempt.saga].events;
            panic!("nothing explains that another attempt followed {attempt:?}: {events:#?}");
        }
    }
    let closings = counted(verdict.attempts.iter().map(|attempt| verdict.closing(attempt)));
    let refused = verdict.attempts.iter().filter(|attempt| attempt.refused == Some(true)).count();
    println!("how attempts were followed: {closings:?}");
    println!(
        "surplus attempts: {hit} of the {bound} under way at {} blows and {} late heartbeats, {just_ended} that had ended at most {longest} ms before, {} that were just about to begin",
        blows.len(),
        slow.len(),
        woken.iter().sum::<usize>(),
    );
    println!("attempts that came after their undo and were refused: {refused}");
    assert!(hit <= bound);
    // The lease is looked at before an attempt begins. Between the look and the first step of the work lies nothing: only
    // a thread that was frozen exactly there begins it with no lease left.
    assert!(woken.iter().all(|woken| *woken <= fleet::THREADS), "attempts began without a lease: {woken:?}");
}

/// A process lost all its sagas.
#[derive(Clone, Copy)]
struct Loss {
    pid: i32,
    at: i64,
    until: Option<i64>,
}

impl From<&Blow> for Loss {
    fn from(blow: &Blow) -> Self {
        Self { pid: blow.pid, at: blow.at, until: blow.until }
    }
}

impl Loss {
    /// Whether the attempt was under way.
    fn hit(&self, attempt: &Attempt) -> bool {
        /// Between the system call and the last instruction of the process, on a busy machine.
        const TO_STOP: i64 = 200_000;
        attempt.pid == self.pid
            && attempt.started <= self.at + TO_STOP
            && attempt.ended.is_none_or(|ended| ended >= self.at)
    }

    /// How long before the attempt had ended, if not long.
    fn just_before(&self, attempt: &Attempt) -> Option<i64> {
        /// Between the end of an attempt and the commit of its outcome, with connections cut meanwhile. It was 2.8
        /// seconds on two cores with eight busy loops beside.
        const TO_BE_WRITTEN: i64 = 10_000_000;
        let before = self.at - attempt.ended?;
        (attempt.pid == self.pid && (0..TO_BE_WRITTEN).contains(&before)).then_some(before)
    }

    /// Whether the attempt began when the process woke up, before it knew.
    fn woke(&self, attempt: &Attempt) -> bool {
        const TO_KNOW: i64 = 500_000;
        let woke = self.until.map(|until| until..until + TO_KNOW);
        attempt.pid == self.pid && woke.is_some_and(|woke| woke.contains(&attempt.started))
    }
}

/// Leases that lapsed although nobody had touched the process, as its log says: cuts and a busy machine can do that.
fn slow_losses(fleet: &Fleet, blows: &[Blow]) -> Vec<Loss> {
    let logged = fleet.logged();
    let lapses = logged.iter().filter(|(_, line)| line.contains("the lease lapsed")).map(|(pid, line)| {
        let at = line.split_whitespace().next().unwrap();
        let at = chrono::DateTime::parse_from_rfc3339(at).unwrap().timestamp_micros();
        Loss { pid: *pid, at, until: None }
    });
    let after_a_freeze = |loss: &Loss| {
        let frozen = |blow: &Blow| Some(blow.at..blow.until? + LEASE.as_micros() as i64);
        blows.iter().any(|blow| blow.pid == loss.pid && frozen(blow).is_some_and(|frozen| frozen.contains(&loss.at)))
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_transaction_with_a_cancel_in_it_delays_no_other_saga() {
    const OPEN: Duration = Duration::from_secs(30);
    const TOLERANCE: Duration = Duration::from_secs(1);
    let _alone = ALONE.lock().await;
    let postgres = Postgres::private().await.unwrap();
    let pool = PgPoolOptions::new().max_connections(4).connect(&postgres.url()).await.unwrap();
    sqlx::raw_sql("CREATE TABLE note (text text)").execute(&pool).await.unwrap();
    // Whatever else this machine does meanwhile happens to both. Only one has the open transaction.
    let (engine, store) = errand::engine(&postgres.url(), "saga").await;
    let (other_engine, _) = errand::engine(&postgres.url(), "undisturbed").await;
    let (disturbed, undisturbed) = (engine.sagas::<Errand>(), other_engine.sagas::<Errand>());
    let waiting = disturbed.submit("waiting", Task::Wait).await.unwrap();

    let transaction = async {
        let mut tx = pool.begin().await.unwrap();
        sqlx::query("INSERT INTO note VALUES ('cancelled')").execute(&mut *tx).await.unwrap();
        disturbed.cancel_in(&store, &mut tx, waiting.id(), "changed my mind").await.unwrap();
        let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *tx).await.unwrap();
        let before = waiting.history().await.unwrap().events().len();
        let blocked = watch_for_blocked(&pool, backend, OPEN).await;
        let after = waiting.history().await.unwrap();
        tx.commit().await.unwrap();
        assert!(after.events().len() > before + 100, "the saga that is to be cancelled goes on meanwhile:\n{after}");
        assert_eq!(blocked, 0, "somebody waited for a lock of the user's transaction");
        after.events().len() - before
    };
    let (events, pairs) = tokio::join!(transaction, time_pairs(&disturbed, &undisturbed, OPEN));
    let committed = Instant::now();
    store.wake_cancelled();
    let outcome = waiting.outcome().await.unwrap();
    assert!(matches!(&outcome, Outcome::RolledBack(why) if why.to_string() == "changed my mind"), "{outcome:?}");

    let slower = pairs.iter().map(|(with, without)| with.saturating_sub(*without)).max().unwrap();
    let faster = pairs.iter().map(|(with, without)| without.saturating_sub(*with)).max().unwrap();
    let (with, without): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    println!(
        "{} pairs of sagas in {OPEN:?}: beside the open transaction {}, without it {}; a saga was slower than its twin by {slower:.1?} at most, and faster by {faster:.1?}",
        with.len(),
        spread(with),
        spread(without),
    );
    println!(
        "the cancelled saga wrote {events} events meanwhile, and was rolled back {:.1?} after the commit",
        committed.elapsed()
    );
    // What the machine does to one twin and not to the other it does in both directions.
    assert!(slower <= TOLERANCE + faster);
}

/// For so long: how often anybody was seen waiting for a lock that this backend holds.
async fn watch_for_blocked(pool: &PgPool, backend: i32, how_long: Duration) -> i64 {
    let began = Instant::now();
    let mut blocked = 0;
    while began.elapsed() < how_long {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))";
        blocked += sqlx::query_scalar::<_, i64>(sql).bind(backend).fetch_one(pool).await.unwrap();
        sleep(Duration::from_millis(50)).await;
    }
    blocked
}

/// Runs twins at the same time, one here, one there, twenty pairs a second.
async fn time_pairs(here: &Sagas<Errand>, there: &Sagas<Errand>, how_long: Duration) -> Vec<(Duration, Duration)> {
    let began = Instant::now();
    let mut pairs = JoinSet::new();
    for number in 0.. {
        if began.elapsed() > how_long {
            break;
        }
        let (here, there) = (here.clone(), there.clone());
        pairs.spawn(async move { tokio::join!(time_one(&here, number), time_one(&there, number)) });
        sleep(Duration::from_millis(50)).await;
    }
    pairs.join_all().await
}

async fn time_one(sagas: &Sagas<Errand>, number: u32) -> Duration {
    let began = Instant::now();
    let saga = sagas.submit(format!("errand-{number}"), Task::Say("hello".into())).await.unwrap();
    assert_eq!(saga.outcome().await.unwrap(), Outcome::Completed("hello".into()));
    began.elapsed()
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    format!("median {:.1?}, 99 % {:.1?}, slowest {:.1?}", at(50), at(99), at(100))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_with_one_bad_payload_commits_the_rest() {
    const SAGAS: usize = 200;
    let _alone = ALONE.lock().await;
    let postgres = Postgres::private().await.unwrap();
    let pool = PgPoolOptions::new().max_connections(2).connect(&postgres.url()).await.unwrap();
    let (engine, store) = errand::engine(&postgres.url(), "saga").await;
    let sagas = engine.sagas::<Errand>();
    let refuse =
        "ALTER TABLE saga.saga_journal ADD CONSTRAINT good CHECK (convert_from(entry, 'UTF8') !~ 'unspeakable')";
    sqlx::raw_sql(refuse).execute(&pool).await.unwrap();

    let culprit = sagas.submit("culprit", Task::Say("unspeakable".into()));
    let others = (0..SAGAS).map(|number| sagas.submit(format!("{number}"), Task::Say(format!("{number}"))));
    // Postgres takes no NUL in a text: the batch of starts has its own culprit.
    let (culprit, others, no_key) = tokio::join!(culprit, join_all(others), sagas.submit("no\0key", Task::Wait));
    assert!(matches!(no_key, Err(Error::Store(StoreError::Rejected(_)))), "{no_key:?}");
    for (number, saga) in others.into_iter().enumerate() {
        assert_eq!(saga.unwrap().outcome().await.unwrap(), Outcome::Completed(number.to_string()));
    }
    let culprit = culprit.unwrap();
    let Outcome::Parked(why) = culprit.outcome().await.unwrap() else { panic!("the culprit is not parked") };
    assert!(why.reason.contains("violates check constraint \"good\""), "{why}");
    println!("{SAGAS} sagas completed, in {} statements, beside one that is parked:", store.statements_sent());
    println!("{}", culprit.history().await.unwrap());

    sqlx::raw_sql("ALTER TABLE saga.saga_journal DROP CONSTRAINT good").execute(&pool).await.unwrap();
    sagas.resume(culprit.id(), "eve").await.unwrap();
    let ended = async {
        loop {
            match culprit.outcome().await.unwrap() {
                Outcome::Parked(_) => sleep(Duration::from_millis(10)).await,
                ended => return ended,
            }
        }
    };
    assert_eq!(timeout(ledger::PATIENCE, ended).await.unwrap(), Outcome::Completed("unspeakable".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saga_that_kills_its_workers_is_parked_after_three() {
    poison_is_parked(Duration::from_millis(300)).await;
}

/// One that kills at once leaves those that were claimed together with it no time to get anywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saga_that_kills_its_workers_at_once_takes_no_other_with_it() {
    poison_is_parked(Duration::ZERO).await;
}

const fn kind_of<T>(outcome: &Outcome<T>) -> Status {
    match outcome {
        Outcome::Completed(_) => Status::Completed,
        Outcome::RolledBack(_) => Status::RolledBack,
        Outcome::Parked(_) => Status::Parked,
    }
}

async fn poison_is_parked(poison: Duration) {
    const OTHERS: u64 = 60;
    let _alone = ALONE.lock().await;
    let arena = Arena::open().await;
    let mut fleet = Fleet::launch(2, &Orders { slow: 0, poison, ..arena.orders(LEASE) });
    let client = arena.client().await;
    let began = Instant::now();
    let others = (0..OTHERS).map(async |number| {
        let saga = client.submit(&number.to_string(), &Order { number, fate: Fate::Completes }).await;
        client.outcome(&saga).await
    });
    let culprit = async {
        let saga = client.submit("poison", &Order { number: OTHERS, fate: Fate::IsPoison }).await;
        (client.outcome(&saga).await, saga)
    };
    let (outcomes, (outcome, culprit)) = tokio::join!(join_all(others), culprit);
    let history = culprit.history().await.unwrap();
    println!("{history}");
    let died = fleet.ends().len();
    println!("{OTHERS} sagas beside the poison: {:?}", counted(outcomes.iter().map(kind_of)));
    println!("the poison was parked after {:.1?} and {died} dead workers", began.elapsed());
    assert!(matches!(&outcome, Outcome::Parked(why) if why.step.is_none()), "{outcome:?}");
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Completed(_))), "it took others with it");
    // Three in a row: with each progress of its other branch it may have been counted anew.
    let events = history.events().iter().skip_while(|event| !matches!(event, Event::Lapsed { .. }));
    let progress = events.filter(|event| !matches!(event, Event::Lapsed { .. } | Event::Parked { .. })).count();
    assert!((3..=3 + 2 * progress).contains(&died), "{died} workers died, with {progress} events of progress between");

    // Those who are left live on.
    let workers = [fleet.pid(0).await, fleet.pid(1).await];
    let number = OTHERS + 1;
    let last = client.submit("last", &Order { number, fate: Fate::Completes }).await;
    assert!(matches!(client.outcome(&last).await, Outcome::Completed(_)));
    sleep(2 * LEASE).await;
    assert_eq!([fleet.pid(0).await, fleet.pid(1).await], workers);
    fleet.scuttle().await;
    let verdict = Verdict::read(&arena.pool).await;
    verdict.all_ended_as_they_should();
    verdict.the_ledger_balances();
}
