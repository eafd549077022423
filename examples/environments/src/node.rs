//! A process with an engine: this very program, called as `environments node ..`. Kill it whenever you like.

use crate::{
    Result,
    place::Place,
    workload::{self, Settings},
};
use rustix::process::{Pid, Signal, kill_process};
use std::{fs::File, path::Path, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

/// How long a node may take to join, or to leave. Machines may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs until it is told to stop.
pub async fn run(place: &Place, settings: Settings) -> Result<()> {
    workload::serve(place.connect().await?, settings).await
}

/// A node that runs.
pub struct Node {
    pub name: String,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// Open for as long as the node is wanted; not in `child`, which closes it when it is waited for.
    stdin: ChildStdin,
    log: std::path::PathBuf,
}

impl Node {
    /// Starts one in an environment, and waits until it is ready.
    pub async fn start(place: &Place, settings: &Settings, log: &Path) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["node", "--url", &place.url, "--schema", &place.schema]);
        if let Some(url) = &place.past_pooler {
            command.args(["--past-pooler", url]);
        }
        Self::spawn(command, settings, log).await
    }

    /// Starts one from any program that takes these settings.
    pub async fn spawn(mut command: Command, settings: &Settings, log: &Path) -> Result<Self> {
        let number = |number: u64| number.to_string();
        command.args(["--name", &settings.name, "--users", &settings.users, "--ledger", &settings.ledger]);
        command.args(["--sagas", &number(settings.sagas), "--every", &number(settings.every)]);
        command.args(["--patience", &number(settings.patience), "--lease", &number(settings.lease)]);
        if let Some(relay) = &settings.relay {
            command.args(["--relay", relay]);
        }
        command.args(["--rest-after", &number(settings.rest_after)]);
        command.args(["--connections", &number(settings.connections.into())]);
        let log = log.join(format!("{}.log", settings.name));
        // Of the log only the last line is shown; the rest is for whoever looks.
        command.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".into()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&log)?).kill_on_drop(true);
        let mut child = command.spawn()?;
        let stdin = child.stdin.take().ok_or("a child without stdin")?;
        let stdout = child.stdout.take().ok_or("a child without stdout")?;
        let lines = BufReader::new(stdout).lines();
        let mut node = Self { name: settings.name.clone(), child, lines, stdin, log };
        node.until("ready", PATIENCE).await?;
        Ok(node)
    }

    /// Waits until it knows that all of its sagas are started.
    pub async fn until_submitted(&mut self, patience: Duration) -> Result<()> {
        self.until("submitted", patience).await
    }

    /// Waits until it rests.
    pub async fn until_resting(&mut self, patience: Duration) -> Result<()> {
        self.until("resting", patience).await
    }

    /// Ends its rest.
    pub async fn go_on(&mut self) -> Result<()> {
        Ok(self.stdin.write_all(b"\n").await?)
    }

    async fn until(&mut self, what: &str, patience: Duration) -> Result<()> {
        match timeout(patience, self.lines.next_line()).await {
            Ok(Ok(Some(line))) if line == what => Ok(()),
            Ok(Ok(None)) => {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                Err(format!("node {} ended: {}", self.name, log.lines().last().unwrap_or("without a word")).into())
            }
            Ok(line) => Err(format!("node {} says {line:?}", self.name).into()),
            Err(_) => Err(format!("node {} is not {what} within {patience:?}", self.name).into()),
        }
    }

    /// `kill -9`. Its name, by which the ledger knows it.
    pub async fn kill(mut self) -> Result<String> {
        self.child.kill().await?;
        Ok(self.name)
    }

    /// Asks it to hand over, and sees to it.
    pub async fn stop(mut self) -> Result<String> {
        if let Some(id) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            kill_process(id, Signal::TERM)?;
        }
        match timeout(PATIENCE, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(self.name),
            Ok(ended) => Err(format!("node {} left with {ended:?}", self.name).into()),
            Err(_) => Err(format!("node {} did not hand over within {PATIENCE:?}", self.name).into()),
        }
    }
}
