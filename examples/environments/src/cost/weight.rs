//! Heavy sagas through a slow network, beside light ones.

use super::{millis, quantile, service::Small};
use crate::{Result, proxy::Proxy, stage::pool};
use saga_core::{Cx, Engine, Out, Saga, SagaBuilder, Sagas, StepError};
use saga_postgres::{PgStore, testing::Postgres};
use serde::{Deserialize, Serialize};
use std::{
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::{oneshot, watch},
    task::JoinSet,
    time::{interval, sleep, timeout},
};
use uuid::Uuid;

/// No task takes longer.
const PATIENCE: Duration = Duration::from_secs(600);
/// One light saga each so long.
const LIGHT_EACH: Duration = Duration::from_millis(50);

/// The process has no more than this, in megabytes.
const MEMORY: f64 = 500.0;
/// A light saga takes no longer, in milliseconds.
const HELD_UP: f64 = 1_000.0;

/// What there is to do.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    what: &'static str,
    sagas: usize,
    /// So many steps have an output of so many bytes.
    outputs: usize,
    bytes: usize,
    /// Of the network, in each direction.
    megabytes_per_s: u32,
    /// Another process has made the outputs, and was killed.
    taken_over: bool,
}

pub const TAKEN_OVER: Task = Task {
    what: "500 sagas with journals of 2.5 MB, taken over through 100 MB/s",
    sagas: 500,
    outputs: 5,
    bytes: 500_000,
    megabytes_per_s: 100,
    taken_over: true,
};

pub const AT_ONCE: Task = Task {
    what: "400 outputs of 1 MiB at once through 20 MB/s",
    sagas: 400,
    outputs: 1,
    // As JSON it has two bytes more.
    bytes: (1 << 20) - 2,
    megabytes_per_s: 20,
    taken_over: false,
};

/// A little of both.
pub const SHORT: [Task; 2] = [
    Task {
        what: "40 sagas with journals of 2.5 MB, taken over through 20 MB/s",
        sagas: 40,
        megabytes_per_s: 20,
        ..TAKEN_OVER
    },
    Task { what: "100 outputs of 1 MiB at once through 20 MB/s", sagas: 100, ..AT_ONCE },
];

/// What came of it.
pub struct Found {
    pub says: String,
    /// On a machine that does nothing else: how long light sagas took.
    pub missed: Vec<String>,
}

/// Does it. An error if a saga does not end, or the process takes too much memory.
pub async fn run(task: &Task) -> Result<Found> {
    let postgres = Postgres::private().await?;
    PgStore::connect(&postgres.url()).await?.migrate().await?;
    let proxy = Proxy::slow(postgres.port(), task.megabytes_per_s).await?;
    if task.taken_over {
        Process::start(&postgres.url(), task, Role::Dies)?.dies().await?;
    }
    let began = Instant::now();
    let mut second = Process::start(&proxy.url(), task, Role::Lives)?;
    let pool = pool(&postgres.url()).await?;
    let ended = async {
        loop {
            let sql = "SELECT count(*) FROM saga.saga WHERE name = 'heavy' AND status = 3";
            let ended: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await?;
            if ended == i64::try_from(task.sagas)? {
                return Ok::<_, Box<dyn std::error::Error + Send + Sync>>(());
            }
            sleep(Duration::from_millis(200)).await;
        }
    };
    let ended = tokio::select! {
        ended = timeout(PATIENCE, ended) => ended,
        left = second.child.wait() => return Err(format!("{}: the process left too early: {}", task.what, left?).into()),
    };
    let took = began.elapsed().as_secs_f64();
    let told = second.tells().await?;
    ended.map_err(|_| format!("{}: not all have ended within {PATIENCE:?}", task.what))??;
    pool.close().await;
    postgres.stop().await;

    let Told { light, p99_ms, slowest_ms, peak_mb } = told;
    let says = format!(
        "{}: all ended in {took:.1} s, {peak_mb:.0} MB of memory at most; of {light} light sagas beside them 99 % took \
         {p99_ms:.0} ms at most, the slowest {slowest_ms:.0} ms",
        task.what
    );
    if peak_mb > MEMORY {
        return Err(says.into());
    }
    let missed = if slowest_ms > HELD_UP { vec![says.clone()] } else { vec![] };
    Ok(Found { says, missed })
}

/// Of a process with heavy sagas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    /// It has them up to their last step, and is killed there.
    Dies,
    /// It ends them all, beside light ones.
    Lives,
}

#[derive(Debug, clap::Args)]
pub struct Work {
    #[arg(long)]
    url: String,
    #[arg(long, value_enum)]
    role: Role,
    /// How many it starts.
    #[arg(long)]
    sagas: usize,
    #[arg(long)]
    outputs: usize,
    #[arg(long)]
    bytes: usize,
    /// How many make their outputs at once.
    #[arg(long)]
    together: usize,
}

/// What the process says in the end.
#[derive(Serialize, Deserialize)]
struct Told {
    light: usize,
    p99_ms: f64,
    slowest_ms: f64,
    peak_mb: f64,
}

/// The process: works until its standard input ends.
pub async fn serve(work: &Work) -> Result<()> {
    let desk = Desk {
        together: work.together,
        stays: work.role == Role::Dies,
        came: watch::Sender::new(0),
        stay: watch::Sender::new(0),
        much: (0..work.bytes).map(|_| fastrand::alphanumeric()).collect(),
    };
    let mut stay = desk.stay.subscribe();
    let store = PgStore::connect(&work.url).await?;
    let engine = Engine::builder(store).register::<Heavy>(desk)?.register::<Small>(())?.configure(|config| {
        if work.role == Role::Dies {
            (config.memory, config.lease) = (8 << 30, Duration::from_secs(2));
        }
    });
    let engine = engine.start().await?;
    let (heavy, light) = (engine.sagas::<Heavy>(), engine.sagas::<Small>());
    let mut started = JoinSet::new();
    for number in 0..work.sagas {
        let (heavy, order) = (heavy.clone(), Order { outputs: work.outputs, bytes: work.bytes });
        started.spawn(async move { heavy.submit(format!("heavy-{number}"), order).await.map(drop) });
    }
    while let Some(started) = started.join_next().await {
        started??;
    }
    // On a thread that nobody waits for: the runtime would, for a read of its own.
    let (over, end) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = over.send(());
    });
    match work.role {
        Role::Dies => {
            stay.wait_for(|&stay| stay >= work.sagas).await?;
            println!("all are there");
            let _ = end.await;
        }
        Role::Lives => {
            let times = light_ones(&light, end).await?;
            let slowest_ms = quantile(times.clone(), 1.0);
            let (light, p99_ms, peak_mb) = (times.len(), quantile(times, 0.99), peak_mb()?);
            println!("{}", serde_json::to_string(&Told { light, p99_ms, slowest_ms, peak_mb })?);
        }
    }
    Ok(())
}

/// Light sagas, until there is an end of it; how long each took, in milliseconds.
async fn light_ones(sagas: &Sagas<Small>, mut end: oneshot::Receiver<()>) -> Result<Vec<f64>> {
    let (mut each, mut under_way, mut times) = (interval(LIGHT_EACH), JoinSet::new(), vec![]);
    loop {
        tokio::select! {
            _ = &mut end => break,
            Some(time) = under_way.join_next() => times.push(time??),
            _ = each.tick() => {
                let sagas = sagas.clone();
                under_way.spawn(async move {
                    let began = Instant::now();
                    sagas.submit(Uuid::now_v7().to_string(), ()).await?.outcome().await?;
                    Ok::<_, saga_core::Error>(millis(began.elapsed()))
                });
            }
        }
    }
    while let Some(time) = under_way.join_next().await {
        times.push(time??);
    }
    Ok(times)
}

/// The most that this process had, in megabytes.
fn peak_mb() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    Ok(peak.ok_or("a system that does not say how much memory a process had")?.parse::<f64>()? / 1e3)
}

/// A process that runs.
struct Process {
    child: Child,
    /// Its end is the process's end.
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(url: &str, task: &Task, role: Role) -> Result<Self> {
        let makes = role == Role::Dies || !task.taken_over;
        let number = |number: usize| number.to_string();
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["heavy", "--url", url, "--role", if role == Role::Dies { "dies" } else { "lives" }]);
        command.args(["--sagas", &number(if makes { task.sagas } else { 0 })]);
        command.args(["--outputs", &number(task.outputs), "--bytes", &number(task.bytes)]);
        command.args(["--together", &number(if task.taken_over { 0 } else { task.sagas })]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or("a child without stdout")?;
        Ok(Self { child, stdin, lines: BufReader::new(stdout).lines() })
    }

    async fn line(&mut self) -> Result<String> {
        let line = timeout(PATIENCE, self.lines.next_line()).await??;
        line.ok_or_else(|| "a process with heavy sagas ended without a word".into())
    }

    /// `kill -9`, when all of its sagas are at their last step.
    async fn dies(mut self) -> Result<()> {
        self.line().await?;
        Ok(self.child.kill().await?)
    }

    /// Ends it, and hears what it has to say.
    async fn tells(mut self) -> Result<Told> {
        drop(self.stdin.take());
        let told: Told = serde_json::from_str(&self.line().await?)?;
        let left = self.child.wait().await?;
        if !left.success() {
            return Err(format!("a process with heavy sagas left with {left}").into());
        }
        Ok(told)
    }
}

/// A saga with much to remember.
struct Heavy;

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Order {
    outputs: usize,
    bytes: usize,
}

/// What its steps have in common.
struct Desk {
    together: usize,
    stays: bool,
    /// How many have come to make their outputs, and to their last step.
    came: watch::Sender<usize>,
    stay: watch::Sender<usize>,
    /// What outputs are made of: to make it takes longer than to write it.
    much: String,
}

const STEPS: [&str; 5] = ["one", "two", "three", "four", "five"];

impl Saga for Heavy {
    const NAME: &'static str = "heavy";
    const VERSION: u32 = 1;
    type Input = Order;
    type Output = ();
    type Deps = Desk;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        for step in STEPS {
            saga.effect_free(step).timeout(PATIENCE).run(make);
        }
        saga.effect_free("last").timeout(PATIENCE).run(last)
    }
}

async fn make(cx: Cx<Desk>, order: Order) -> Result<String, StepError> {
    let number = STEPS.iter().position(|step| *step == cx.step());
    if number.is_none_or(|number| number >= order.outputs) {
        return Ok(String::new());
    }
    cx.came.send_modify(|came| *came += 1);
    cx.came.subscribe().wait_for(|&came| came >= cx.together).await?;
    let output = cx.much.get(..order.bytes).ok_or_else(|| StepError::fail("more than there is"))?;
    Ok(output.to_owned())
}

async fn last(cx: Cx<Desk>, _: Order) -> Result<(), StepError> {
    if cx.stays {
        cx.stay.send_modify(|stay| *stay += 1);
        std::future::pending::<()>().await;
    }
    Ok(())
}
