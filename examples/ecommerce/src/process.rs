//! A service as a process of its own: this very program, called as `ecommerce serve <name>`.

use crate::{Result, telemetry};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use std::{
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, Command},
    time::{sleep, timeout},
};

pub struct Process {
    pub name: &'static str,
    pub url: String,
    pub database: String,
    arguments: Vec<String>,
    child: Child,
    /// It stops when this is closed, also by our death.
    stdin: Option<ChildStdin>,
}

impl Process {
    /// Starts a service and waits until it listens: on this port, or on any free one if it is 0.
    pub async fn start(name: &'static str, port: u16, database: String, arguments: Vec<String>) -> Result<Self> {
        let (child, stdin, url) = spawn(name, &format!("127.0.0.1:{port}"), &database, &arguments).await?;
        Ok(Self { name, url, database, arguments, child, stdin })
    }

    pub fn id(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// `kill -9`: it has no chance to say or do anything.
    pub async fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Stops it where it is, without its knowing; until it is thawed or killed. Returns when it stands still: until all
    /// its threads have heard of it, others go on.
    pub async fn freeze(&self) -> Result<()> {
        kill_process(self.pid()?, Signal::STOP)?;
        // To look is all: it is its `Child` that waits for its end.
        let look = WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let is_still = WaitIdOptions::STOPPED | WaitIdOptions::EXITED;
        while waitid(WaitId::Pid(self.pid()?), look | is_still)?.is_none() {
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    pub fn thaw(&self) -> Result<()> {
        Ok(kill_process(self.pid()?, Signal::CONT)?)
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(self.id().cast_signed()).ok_or("a process that has ended")?)
    }

    /// Starts it again, where it was.
    pub async fn start_again(&mut self) -> Result<()> {
        let listen = self.url.trim_start_matches("http://");
        (self.child, self.stdin, self.url) = spawn(self.name, listen, &self.database, &self.arguments).await?;
        Ok(())
    }

    pub async fn ended(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait().await?)
    }

    /// Asks it to stop, and sees to it.
    pub async fn stop(&mut self) -> Result<()> {
        drop(self.stdin.take());
        if timeout(Duration::from_secs(10), self.child.wait()).await.is_err() {
            self.kill().await?;
        }
        Ok(())
    }
}

async fn spawn(
    name: &str,
    listen: &str,
    database: &str,
    arguments: &[String],
) -> Result<(Child, Option<ChildStdin>, String)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["serve", name, "--listen", listen, "--until-stdin-closes"])
        .args(arguments)
        .args(telemetry::arguments())
        .env("DATABASE_URL", database)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0) // Ctrl-C is ours to hear
        .kill_on_drop(true)
        .spawn()?;
    // Taken out, because to wait for a child closes it.
    let stdin = child.stdin.take();
    let stdout = child.stdout.take().ok_or("a child without stdout")?;
    let url = timeout(Duration::from_secs(30), BufReader::new(stdout).lines().next_line()).await??;
    Ok((child, stdin, url.ok_or(format!("the service {name} did not start"))?))
}
