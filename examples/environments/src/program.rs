//! Programs that run beside us: as an unprivileged user, because servers refuse to be root, and not for longer than we
//! do.

use crate::Result;
use std::{
    fs::{self, File},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::sleep,
};

/// How long a program may take until it serves.
const PATIENCE: Duration = Duration::from_secs(20);

/// A call of a program by the user `postgres`, else `nobody`, when we are root; else by ourselves. It is killed when
/// the thread that started it ends.
pub fn unprivileged(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if rustix::process::geteuid().is_root() {
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let (user, group) = match users.lines().any(|line| line.starts_with("postgres:")) {
            true => ("postgres", "postgres"),
            false => ("nobody", "nogroup"),
        };
        command.args(["--reuid", user, "--regid", group, "--clear-groups"]);
    }
    command.arg("--").arg(program).current_dir("/").env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// A new directory that anybody may write to.
pub fn open_directory() -> Result<TempDir> {
    let directory = tempfile::Builder::new().prefix("saga-environment-").tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777))?;
    Ok(directory)
}

/// A port that nobody listens on now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Starts a server that writes its log to `log`, and waits until it listens.
pub async fn serve(mut command: Command, port: u16, log: &Path) -> Result<Child> {
    let file = File::create(log)?;
    let mut child = command.stdout(file.try_clone()?).stderr(file).spawn()?;
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        if let Some(status) = child.try_wait()? {
            let log = fs::read_to_string(log).unwrap_or_default();
            return Err(format!("a server ended with {status}: {}", log.lines().last().unwrap_or_default()).into());
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("a server does not listen on its port within {PATIENCE:?}").into());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(child)
}
