//! The fault run: brokers, databases and processes go away and come back while hundreds of purchases are under way, and somebody writes repeats and rubbish into the
//! topics. In the end every saga has ended, every book balances and no partition is stuck.

use crate::{
    Result,
    arena::{Arena, Broker},
    mischief,
    node::{Node, Role},
    purchase::{COMMANDS, Number, Purchase, REPLIES},
    verdict::{self, Verdict},
};
use saga_core::{Engine, Sagas};
use saga_postgres::PgStore;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::Mutex, task::JoinSet, time::sleep};

/// How many partitions each topic has.
pub const PARTITIONS: i32 = 6;

#[derive(Debug, clap::Args)]
pub struct Plan {
    /// How often the broker is stopped and started again.
    #[arg(long, default_value_t = 20)]
    outages: usize,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 30)]
    outage: u64,
    /// How often a node is killed, each time after another 100 commands were handled.
    #[arg(long, default_value_t = 150)]
    kills: usize,
    /// How often Postgres is restarted.
    #[arg(long, default_value_t = 20)]
    restarts: usize,
    /// How many purchases are under way at once.
    #[arg(long, default_value_t = 100)]
    in_flight: usize,
}

/// What happens while the faults happen.
struct Run {
    began: Instant,
    arena: Mutex<Arena>,
    /// Commands that were handled, as far as the ledger knows.
    handled: AtomicU64,
    submitted: AtomicU64,
    ended: AtomicU64,
    kills: AtomicUsize,
    joined: AtomicUsize,
    stop: AtomicBool,
}

impl Run {
    fn say(&self, what: &str) {
        let (handled, ended) = (self.handled.load(Ordering::Relaxed), self.ended.load(Ordering::Relaxed));
        println!("{:>7.1} s  {handled:>7} handled  {ended:>6} ended  {what}", self.began.elapsed().as_secs_f64());
    }

    fn over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

pub async fn run(brokers: &str, plan: &Plan) -> Result<()> {
    let broker = Broker::of_the_script()?;
    let arena = Arena::open(brokers, PARTITIONS).await?;
    let (places, sagas, ledger) = (arena.places.clone(), arena.sagas.clone(), arena.ledger.clone());
    let mut nodes = vec![];
    for role in [Role::Orchestrator, Role::Participants, Role::Orchestrator, Role::Participants] {
        nodes.push(Node::start(role, &places).await?);
    }
    let client = Engine::builder(PgStore::connect(&places.sagas).await?).start().await?;
    let run = Arc::new(Run {
        began: Instant::now(),
        arena: Mutex::new(arena),
        handled: AtomicU64::new(0),
        submitted: AtomicU64::new(0),
        ended: AtomicU64::new(0),
        kills: AtomicUsize::new(0),
        joined: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
    });
    run.say(&format!("{plan:?}"));

    let mut buyers = JoinSet::new();
    for _ in 0..plan.in_flight {
        buyers.spawn(buy(run.clone(), client.sagas()));
    }
    let counts = Arc::new(mischief::Counts::default());
    let rascal = tokio::spawn({
        let (counts, brokers) = (counts.clone(), brokers.to_owned());
        async move { mischief::make(&brokers, &counts).await }
    });
    let progress = tokio::spawn(follow_progress(run.clone(), ledger));
    let killing = tokio::spawn(kill_and_replace(run.clone(), nodes, plan.kills));
    let moving = tokio::spawn(join_and_leave(run.clone(), places));

    for at in 0..plan.outages.max(plan.restarts) {
        if at < plan.restarts {
            let mut arena = run.arena.lock().await;
            let hard = at % 2 == 1;
            run.say(if hard { "Postgres crashes" } else { "Postgres is restarted" });
            match hard {
                true => arena.postgres.crash().await?,
                false => arena.postgres.restart().await?,
            }
        }
        progress_by(&run, 300).await?;
        if at < plan.outages {
            let hard = at % 2 == 1;
            run.say(if hard { "the broker is killed" } else { "the broker is stopped" });
            broker.stop(hard).await?;
            sleep(Duration::from_secs(plan.outage)).await;
            broker.start().await?;
            run.say("the broker is back");
        }
        progress_by(&run, 300).await?;
    }
    while run.kills.load(Ordering::Relaxed) < plan.kills {
        progress_by(&run, 100).await?;
    }
    rascal.abort();
    run.stop.store(true, Ordering::Relaxed);
    run.say("all faults are over; waiting for every saga to end");
    moving.await??;
    let last = Instant::now();
    while let Some(bought) = buyers.join_next().await {
        bought??;
    }
    run.say(&format!("the last saga ended {:.1} s after the last fault", last.elapsed().as_secs_f64()));
    let empty = no_lag(brokers).await?;
    run.say(&format!("the last record was handled {empty:.1} s after that"));
    progress.abort();
    for node in killing.await?? {
        node.stop().await?;
    }
    client.kill().await;
    drop(sagas);

    let arena = Arc::try_unwrap(run).map_err(|_| "somebody still runs")?;
    let (submitted, kills, joined) =
        (arena.submitted.into_inner(), arena.kills.into_inner(), arena.joined.into_inner());
    let arena = arena.arena.into_inner();
    let verdict = Verdict::of(&arena).await?;
    let mut dead = 0;
    for topic in COMMANDS.iter().chain(&[REPLIES]) {
        dead += verdict::records(brokers, &format!("{topic}.dlt"))?;
    }
    arena.close().await;
    let (repeated, corrupted) = (counts.repeated.load(Ordering::Relaxed), counts.corrupted.load(Ordering::Relaxed));
    println!(
        "\n{submitted} purchases: {} completed, {} rolled back, {} parked, {} unfinished\n\
         {kills} nodes killed, {joined} joined and left, {} broker outages of {} s, {} restarts of Postgres\n\
         {repeated} records written again, {corrupted} broken ones; {dead} dead letters",
        verdict.completed,
        verdict.rolled_back,
        verdict.parked,
        verdict.unfinished,
        plan.outages,
        plan.outage,
        plan.restarts
    );
    for wrong in verdict.wrong.iter().take(20) {
        println!("WRONG: {wrong}");
    }
    if verdict.wrong.is_empty()
        && u64::try_from(verdict.sagas).ok() == Some(submitted)
        && dead >= corrupted.cast_signed()
    {
        println!("every saga ended, every book balances, no partition is stuck");
        return Ok(());
    }
    Err(format!("{} sagas are wrong ({} in the store)", verdict.wrong.len(), verdict.sagas).into())
}

/// One purchase after the other, each to its end.
async fn buy(run: Arc<Run>, sagas: Sagas<Purchase>) -> Result<()> {
    while !run.over() {
        let number = run.submitted.fetch_add(1, Ordering::Relaxed);
        let input = Number { number, trouble: true };
        let patience = Instant::now() + Duration::from_secs(600);
        loop {
            // The same key each time: an answer that was lost does no harm.
            let ended = async { sagas.submit(format!("purchase-{number}"), input).await?.outcome().await };
            match ended.await {
                Ok(_) => break,
                Err(error) if Instant::now() > patience => {
                    return Err(format!("purchase {number} has not ended: {error}").into());
                }
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        }
        run.ended.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

async fn follow_progress(run: Arc<Run>, ledger: sqlx::PgPool) {
    loop {
        let handled: Result<i64, _> =
            sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM ledger").fetch_one(&ledger).await;
        if let Ok(handled) = handled {
            run.handled.store(handled.unsigned_abs(), Ordering::Relaxed);
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until so many more commands were handled. An error if that takes minutes: something is stuck.
async fn progress_by(run: &Run, more: u64) -> Result<()> {
    let goal = run.handled.load(Ordering::Relaxed) + more;
    let patience = Instant::now() + Duration::from_secs(180);
    while run.handled.load(Ordering::Relaxed) < goal {
        if Instant::now() > patience {
            run.say("no progress for three minutes");
            return Err("no progress for three minutes: a partition is stuck".into());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Kills a node each time that another 100 commands were handled, and puts one in its place.
async fn kill_and_replace(run: Arc<Run>, mut nodes: Vec<Node>, kills: usize) -> Result<Vec<Node>> {
    for kill in 0..kills {
        let goal = run.handled.load(Ordering::Relaxed) + 100;
        while run.handled.load(Ordering::Relaxed) < goal && !run.over() {
            sleep(Duration::from_millis(20)).await;
        }
        // Three times in four it is one of the participants.
        let number = if kill % 4 == 3 { kill / 4 % 2 * 2 } else { kill % 2 * 2 + 1 };
        if let Some(node) = nodes.get_mut(number) {
            node.kill().await?;
            run.kills.fetch_add(1, Ordering::Relaxed);
            if kill % 10 == 9 {
                run.say(&format!("{} nodes killed", kill + 1));
            }
            while let Err(error) = node.start_again().await {
                run.say(&format!("a node does not start: {error}"));
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
    Ok(nodes)
}

/// One more node comes, works for a while, and hands over.
async fn join_and_leave(run: Arc<Run>, places: crate::node::Places) -> Result<()> {
    while !run.over() {
        let role =
            if run.joined.load(Ordering::Relaxed).is_multiple_of(2) { Role::Participants } else { Role::Orchestrator };
        match Node::start(role, &places).await {
            Ok(node) => {
                sleep(Duration::from_secs(fastrand::u64(2..8))).await;
                if let Err(error) = node.stop().await {
                    run.say(&format!("a node that was to leave: {error}"));
                }
                run.joined.fetch_add(1, Ordering::Relaxed);
            }
            // The database or the broker may be away just now.
            Err(_) => sleep(Duration::from_secs(1)).await,
        }
    }
    Ok(())
}

/// Waits until every record of every topic was handled; how long that took, in seconds.
async fn no_lag(brokers: &str) -> Result<f64> {
    let began = Instant::now();
    loop {
        let found = tokio::task::spawn_blocking({
            let brokers = brokers.to_owned();
            move || verdict::lag(&brokers).map_err(|error| error.to_string())
        });
        let lag = found.await??;
        if lag.values().all(|&lag| lag == 0) {
            return Ok(began.elapsed().as_secs_f64());
        }
        if began.elapsed() > Duration::from_secs(120) {
            return Err(format!("a partition is stuck: {lag:?} records are not handled").into());
        }
        sleep(Duration::from_millis(500)).await;
    }
}
