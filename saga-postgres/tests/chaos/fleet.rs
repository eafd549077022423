//! Worker processes: this test binary, run again. A worker that ends is replaced at once.

use super::{ledger::Ledger, now, purchase::Purchase};
use rustix::process::{Pid, Signal, kill_process};
use saga_core::Engine;
use saga_postgres::PgStore;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs::{self, File},
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{process::Command, sync::watch, task::JoinSet, time::sleep};

/// The test that is a worker when this variable is set.
pub(crate) const WORKER: (&str, &str) = ("worker_process", "SAGA_CHAOS_WORKER");

/// How many things a worker does at the same instant.
pub(crate) const THREADS: usize = 2;

/// What a worker is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) store: String,
    pub(crate) ledger: String,
    pub(crate) lease: Duration,
    /// See [`Ledger`].
    pub(crate) slow: u64,
    /// See [`Ledger`].
    pub(crate) poison: Duration,
}

#[derive(Debug)]
pub(crate) struct Fleet {
    workers: Vec<watch::Receiver<Option<i32>>>,
    shared: Arc<Shared>,
    keepers: JoinSet<()>,
    logs: tempfile::TempDir,
}

#[derive(Debug, Default)]
struct Shared {
    logs: Mutex<HashMap<i32, PathBuf>>,
    /// Which processes ended, and when that was noticed.
    ends: Mutex<Vec<(i32, i64)>>,
    stopping: Mutex<bool>,
}

impl Fleet {
    pub(crate) fn launch(size: usize, orders: &Orders) -> Self {
        let shared = Arc::new(Shared::default());
        let logs = tempfile::tempdir().unwrap();
        let mut keepers = JoinSet::new();
        let keep = |place| {
            let (pid, seen) = watch::channel(None);
            let log = logs.path().join(format!("{place}"));
            keepers.spawn(keep(shared.clone(), orders.clone(), log, pid));
            seen
        };
        let workers = (0..size).map(keep).collect();
        Self { workers, shared, keepers, logs }
    }

    pub(crate) fn places(&self) -> usize {
        self.workers.len()
    }

    /// The process in this place, once there is one.
    pub(crate) async fn pid(&self, place: usize) -> i32 {
        let mut pid = self.workers[place].clone();
        let pid = pid.wait_for(Option::is_some).await.unwrap();
        pid.unwrap()
    }

    /// The processes that have ended so far, by themselves or by force.
    pub(crate) fn ends(&self) -> Vec<(i32, i64)> {
        self.shared.ends.lock().unwrap().clone()
    }

    /// Ends all workers. Nothing runs any more afterwards.
    pub(crate) async fn scuttle(&mut self) {
        *self.shared.stopping.lock().unwrap() = true;
        for worker in &self.workers {
            let pid = *worker.borrow();
            if let Some(pid) = pid {
                signal(pid, Signal::KILL);
            }
        }
        while self.keepers.join_next().await.is_some() {}
    }

    /// What all workers logged: who, and the line.
    pub(crate) fn logged(&self) -> Vec<(i32, String)> {
        let logs = self.shared.logs.lock().unwrap();
        let lines = |(pid, path): (&i32, &PathBuf)| {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.lines().map(|line| (*pid, line.to_owned())).collect::<Vec<_>>()
        };
        logs.iter().flat_map(lines).collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.logs.disable_cleanup(true);
            println!("the workers' logs are in {}", self.logs.path().display());
        }
    }
}

async fn keep(shared: Arc<Shared>, orders: Orders, log: PathBuf, pid: watch::Sender<Option<i32>>) {
    for generation in 0.. {
        if *shared.stopping.lock().unwrap() {
            return;
        }
        let log = log.with_extension(format!("{generation}.log"));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([WORKER.0, "--exact", "--nocapture", "--test-threads=1"])
            .env(WORKER.1, serde_json::to_string(&orders).unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let id = child.id().unwrap().cast_signed();
        shared.logs.lock().unwrap().insert(id, log);
        pid.send_replace(Some(id));
        child.wait().await.unwrap();
        pid.send_replace(None);
        shared.ends.lock().unwrap().push((id, now()));
    }
}

pub(crate) fn signal(pid: i32, signal: Signal) {
    // One that has just ended by itself cannot be hit any more.
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

/// What a worker process does, until it is killed. With as many threads as [`THREADS`] says.
#[tokio::main(worker_threads = 2)]
pub(crate) async fn work(orders: &str) {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_ansi(false).with_writer(std::io::stderr).init();
    let orders: Orders = serde_json::from_str(orders).unwrap();
    let mut ledger = Ledger::connect(&orders.ledger).await;
    (ledger.slow, ledger.poison) = (orders.slow, orders.poison);
    let ledger = Arc::new(ledger);
    // A connection may be cut even now.
    let _engine = loop {
        if let Ok(store) = PgStore::connect(&orders.store).await {
            let engine = Engine::builder(store).register::<Purchase>(ledger.clone()).unwrap().configure(|config| {
                config.lease = orders.lease;
                config.poll = Duration::from_millis(100);
            });
            match engine.start().await {
                Ok(engine) => break engine,
                Err(error) => tracing::warn!(%error, "cannot start"),
            }
        }
        sleep(Duration::from_millis(20)).await;
    };
    std::future::pending::<()>().await;
}
