//! Two releases on one schema: roll-out and roll-back under traffic, with kills in between. In the end every saga has
//! ended, and none is parked.

use crate::{
    Result,
    books::Books,
    node::Node,
    stage::{pool, users_table},
    workload::Settings,
};
use saga_postgres::testing::Postgres;
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::{process::Command, time::sleep};

/// How many nodes are at work.
const NODES: usize = 3;
/// Short, so that kills are found out soon.
const LEASE: Duration = Duration::from_millis(1_500);
/// How long it may take until the last saga has ended, once nobody starts any more.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub struct Plan {
    /// The node of the previous release.
    #[arg(long)]
    old: PathBuf,
    /// The node of this one.
    #[arg(long)]
    new: PathBuf,
    /// How long there is traffic.
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// How many nodes are killed.
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// Where the nodes' logs go.
    #[arg(long, default_value = "target/side-by-side/logs")]
    logs: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Release {
    Old,
    New,
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Old { "old" } else { "new" })
    }
}

/// What happens, and at which part of the time.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A node of this release starts in this place, then the one that was there leaves.
    Replace(usize, Release),
    /// Some node is killed, and started again.
    Kill,
}

impl Plan {
    /// In their order. The roll-out takes a third of the time and the roll-back another one; kills come all the while.
    fn events(&self) -> Vec<(Duration, Event)> {
        let (total, kills) = (Duration::from_secs(self.seconds), f64::from(self.kills));
        let kills = (0..self.kills).map(|kill| ((f64::from(kill) + 0.5) / kills, Event::Kill));
        let out =
            [0.15, 0.25, 0.4].into_iter().enumerate().map(|(place, at)| (at, Event::Replace(place, Release::New)));
        let back =
            [0.6, 0.7, 0.85].into_iter().enumerate().map(|(place, at)| (at, Event::Replace(place, Release::Old)));
        let mut events: Vec<(f64, Event)> = kills.chain(out).chain(back).collect();
        events.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        events.into_iter().map(|(at, event)| (total.mul_f64(at), event)).collect()
    }
}

struct Fleet<'p> {
    plan: &'p Plan,
    store: String,
    books: Books,
    began: Instant,
    nodes: Vec<(Release, Node)>,
    /// Nodes that are gone, and their callers with them.
    lost: Vec<String>,
    started: usize,
}

pub async fn run(plan: &Plan) -> Result<()> {
    let _ = fs::remove_dir_all(&plan.logs);
    fs::create_dir_all(&plan.logs)?;
    let postgres = Postgres::private().await?;
    let server = Postgres::builder().setting("synchronous_commit", "off").start().await?;
    users_table(&postgres.url()).await?;
    let books = Books::open(&server, "ledger").await?;
    let (store, began) = (postgres.url(), Instant::now());
    let mut fleet = Fleet { plan, store, books, began, nodes: vec![], lost: vec![], started: 0 };
    println!("| second | nodes | sagas started | what happens |\n|---|---|---|---|");
    for _ in 0..NODES {
        let node = fleet.start(Release::Old, u64::MAX).await?;
        fleet.nodes.push((Release::Old, node));
    }
    fleet.say("the old release is at work").await?;
    for (at, event) in plan.events() {
        sleep(at.saturating_sub(fleet.began.elapsed())).await;
        fleet.happens(event).await?;
    }
    sleep(Duration::from_secs(plan.seconds).saturating_sub(fleet.began.elapsed())).await;
    fleet.close(&postgres).await?;
    postgres.stop().await;
    server.stop().await;
    Ok(())
}

impl Fleet<'_> {
    async fn start(&mut self, release: Release, sagas: u64) -> Result<Node> {
        self.started += 1;
        let name = format!("{release}{}", self.started);
        let program: &Path = if release == Release::Old { &self.plan.old } else { &self.plan.new };
        let settings = Settings {
            name,
            users: self.store.clone(),
            relay: Some(self.store.clone()),
            ledger: self.books.url.clone(),
            sagas,
            every: 150,
            rest_after: u64::MAX,
            patience: 20,
            connections: 4,
            lease: u64::try_from(LEASE.as_millis())?,
        };
        let mut command = Command::new(program);
        command.args(["--store", &self.store]);
        Node::spawn(command, &settings, &self.plan.logs).await
    }

    async fn happens(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Replace(place, release) => {
                let node = self.start(release, u64::MAX).await?;
                let (was, left) = std::mem::replace(&mut self.nodes[place], (release, node));
                self.lost.push(left.stop().await?);
                self.say(&format!("a node of the {was} release has left for one of the {release}")).await
            }
            Event::Kill => {
                let place = fastrand::usize(..self.nodes.len());
                let (release, node) = self.nodes.remove(place);
                self.lost.push(node.kill().await?);
                let node = self.start(release, u64::MAX).await?;
                self.nodes.insert(place, (release, node));
                self.say(&format!("a node of the {release} release was killed and started again")).await
            }
        }
    }

    async fn say(&self, what: &str) -> Result<()> {
        let nodes: Vec<String> = self.nodes.iter().map(|(release, _)| release.to_string()).collect();
        let (second, sagas) = (self.began.elapsed().as_secs_f64(), self.books.promised().await?);
        println!("| {second:.1} | {} | {sagas} | {what} |", nodes.join(" "));
        Ok(())
    }

    /// Nobody starts sagas any more; a node of each release ends what is left. Then the books are closed.
    async fn close(mut self, postgres: &Postgres) -> Result<()> {
        let mut last = vec![];
        for release in [Release::Old, Release::New] {
            last.push(self.start(release, 0).await?);
        }
        for (_, node) in self.nodes.drain(..).collect::<Vec<_>>() {
            self.lost.push(node.stop().await?);
        }
        let (began, pool) = (Instant::now(), pool(&postgres.url()).await?);
        self.books.until_ended(&pool, "saga", &self.lost, PATIENCE).await?;
        self.say(&format!("all have ended, {:.1} s after the last one was started", began.elapsed().as_secs_f64()))
            .await?;
        let verdict = self.books.verdict(&pool, "saga", &self.lost).await?;
        for node in last {
            node.stop().await?;
        }
        pool.close().await;
        let says = if verdict.wrong.is_empty() { "passed" } else { "FAILED" };
        println!(
            "\n| seconds | kills | completed | rolled back | parked | unfinished | calls made again | verdict |\n|---|---|---|---|---|---|---|---|\n\
             | {} | {} | {} | {} | {} | {} | {} | {says} |",
            self.plan.seconds,
            self.plan.kills,
            verdict.completed,
            verdict.rolled_back,
            verdict.parked,
            verdict.unfinished,
            verdict.repeated()
        );
        for wrong in verdict.wrong.iter().take(20) {
            println!("WRONG: {wrong}");
        }
        match verdict.wrong.len() {
            0 => Ok(()),
            wrong => Err(format!("{wrong} things are wrong").into()),
        }
    }
}
