//! Sees to it that a private server does not outlive this process.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::Pid;

use super::StartError;

const SCRIPT: &str = include_str!("keeper.sh");

/// A small shell that waits for this process to end, then stops the server and removes its directory.
///
/// Why a pipe and not `PR_SET_PDEATHSIG`: that signal comes when the *thread* that spawned the server ends, and
/// under `#[tokio::test]` threads come and go with each test. A pipe lasts as long as the process, on every Unix,
/// and leaves someone alive to remove the directory.
///
/// Why a process group of its own: Ctrl-C in a terminal goes to the whole foreground group. The tests should die
/// of it; the server should be shut down in order, by the keeper.
#[derive(Debug)]
pub(super) struct Keeper {
    /// Holds the write end of the pipe. Rust opens it close-on-exec, so no other child keeps it open; and a child
    /// that was forked but has not yet called exec still holds it, so the keeper cannot miss a server being spawned.
    shell: Child,
}

impl Keeper {
    /// Starts to keep `data_dir`: once this process is gone, the server in it is stopped and, if asked, it is removed.
    pub(super) fn watch(data_dir: &Path, remove: bool) -> Result<Self, StartError> {
        let shell = Command::new("/bin/sh")
            .args(["-c", "eval \"$KEEPER\"", "saga-postgres-keeper"]) // what `ps` shows
            .arg(data_dir)
            .arg(if remove { "remove" } else { "keep" })
            .env("KEEPER", SCRIPT)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(StartError::io("start /bin/sh"))?;
        Ok(Self { shell })
    }

    /// Puts the command into the keeper's care from its first instruction on.
    pub(super) fn adopt(&self, command: &mut Command) {
        command.process_group(Pid::from_child(&self.shell).as_raw_nonzero().get());
    }

    /// A process that makes the data directory is about to be spawned. It is let undo its work, if this process ends
    /// meanwhile: it holds no lock file to wait for. This process may end before it knows the other one's number.
    pub(super) fn will_make(&mut self) -> Result<(), StartError> {
        self.tell("making")
    }

    /// It was spawned, with this number.
    pub(super) fn wait_for(&mut self, initdb: u32) -> Result<(), StartError> {
        self.tell(&initdb.to_string())
    }

    fn tell(&mut self, line: &str) -> Result<(), StartError> {
        let Some(pipe) = &mut self.shell.stdin else { return Ok(()) };
        writeln!(pipe, "{line}").map_err(StartError::io("write to the keeper of a test server"))
    }
}

/// Dismisses the keeper: its owner has cleaned up.
impl Drop for Keeper {
    fn drop(&mut self) {
        let dismissed = self.shell.kill().and_then(|()| self.shell.wait());
        if let Err(error) = dismissed {
            tracing::warn!(%error, "cannot dismiss the keeper of a test server");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn who_makes_a_directory_may_undo_it_though_its_number_was_never_said() {
        const MAKES: &str = "trap 'sleep 1; rm half; exit 1' INT; touch half; while :; do sleep 0.1; done";
        let directory = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::watch(directory.path(), false).unwrap();
        keeper.will_make().unwrap();
        // Who starts the tests in the background of a script has them ignore an interrupt, and no shell traps what it was
        // told to ignore. initdb does, whatever it was told.
        let mut command = Command::new("env");
        if cfg!(target_os = "linux") {
            command.arg("--default-signal=INT,QUIT");
        }
        keeper.adopt(command.args(["/bin/sh", "-c", MAKES]).current_dir(directory.path()));
        let mut making = command.spawn().unwrap();
        let half = directory.path().join("half");
        let began = Instant::now();
        while !half.exists() {
            assert!(began.elapsed() < Duration::from_secs(60), "nothing is made");
            std::thread::sleep(Duration::from_millis(10));
        }
        // As if this process had ended.
        drop(keeper.shell.stdin.take());
        let (told, ended) = (Instant::now(), making.wait().unwrap());
        assert_eq!(ended.code(), Some(1), "it was killed in the middle, after {:?}: {ended}", told.elapsed());
        assert!(!half.exists());
        keeper.shell.wait().unwrap();
    }
}
