//! A running `postgres` or `initdb`, and how it is stopped.

use std::io;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::StartError;

const POLL: Duration = Duration::from_millis(5);

/// Signals to send one after the other, and how long each is given to work.
pub(super) type Shutdown = &'static [(Signal, Duration)];

/// Open transactions are rolled back, everything is written to disk; what takes too long is cut short.
pub(super) const FAST: Shutdown = &[
    (Signal::INT, Duration::from_secs(10)),
    (Signal::QUIT, Duration::from_secs(7)), // the server itself kills its children after 5 s
    (Signal::KILL, Duration::from_secs(2)),
];

/// As if the power failed: nothing is written, the next start recovers from the log.
pub(super) const IMMEDIATE: Shutdown =
    &[(Signal::QUIT, Duration::from_secs(7)), (Signal::KILL, Duration::from_secs(2))];

/// A child process that is shut down when dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
}

impl Process {
    pub(super) fn spawn(command: &mut Command) -> Result<Self, StartError> {
        let program = command.get_program().display().to_string();
        let child = command.spawn().map_err(StartError::io(format!("run {program}")))?;
        Ok(Self { child })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub(super) fn exited(&mut self) -> Result<Option<ExitStatus>, StartError> {
        self.child.try_wait().map_err(StartError::io("wait for a child process"))
    }

    /// How it ended, once it has.
    pub(super) async fn ended(&mut self) -> Result<ExitStatus, StartError> {
        loop {
            if let Some(status) = self.exited()? {
                return Ok(status);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Stops it without blocking the thread. After cancellation it may still run, and `drop` will stop it.
    pub(super) async fn shut_down(&mut self, shutdown: Shutdown) {
        for &(signal, patience) in shutdown {
            if self.is_gone_after(signal) || tokio::time::timeout(patience, self.ended()).await.is_ok() {
                return;
            }
        }
    }

    fn shut_down_blocking(&mut self, shutdown: Shutdown) {
        for &(signal, patience) in shutdown {
            let deadline = Instant::now() + patience;
            if self.is_gone_after(signal) {
                return;
            }
            while Instant::now() < deadline {
                thread::sleep(POLL);
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
            }
        }
        tracing::warn!(pid = self.child.id(), "a test server does not end");
    }

    /// Sends the signal, unless the process has ended already. The process id cannot have passed to another
    /// process: a child keeps it until it was waited for.
    fn is_gone_after(&mut self, signal: Signal) -> bool {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return true;
        }
        if let Err(error) = kill_process(Pid::from_child(&self.child), signal) {
            tracing::warn!(error = %io::Error::from(error), pid = self.child.id(), "cannot signal a test server");
        }
        false
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.shut_down_blocking(FAST);
    }
}
