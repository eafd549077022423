//! A private server: a data directory and the process that serves it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::StartError;
use super::account::Account;
use super::binaries::Binaries;
use super::builder::Builder;
use super::keeper::Keeper;
use super::process::{Process, Shutdown};
use super::scratch::Scratch;

/// How long a server may take to accept connections, recovery included.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long the former server on a kept data directory may take to go: its keeper may be at work still.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);
/// How long a port that must be had may stay in use.
const PORT_PATIENCE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);
/// A socket's path has 103 bytes on every Unix, and its name up to 15 of them.
const LONGEST_SOCKET_DIRECTORY: usize = 103 - "/.s.PGSQL.65535".len();

/// What the server listens on and how it is tuned; a user's settings come after these and win.
/// Durability stays at the server's defaults.
const SETTINGS: [(&str, &str); 3] = [
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_directories", "."), // the data directory
    ("max_connections", "200"),
];

/// The fields drop in this order: the server stops, the directory goes, then the keeper may.
#[derive(Debug)]
pub(super) struct Cluster {
    server: Option<Process>,
    _scratch: Option<Scratch>,
    keeper: Keeper,
    data_dir: PathBuf,
    account: Option<Account>,
    binaries: Binaries,
    settings: Vec<(String, String)>,
    port: Option<u16>,
}

/// What became of one attempt to start the server.
enum Outcome {
    Ready,
    Exited(ExitStatus, String),
}

impl Cluster {
    /// Makes the data directory if need be, and starts the server.
    pub(super) async fn start(builder: Builder) -> Result<Self, StartError> {
        let binaries = match &builder.binaries {
            Some(directory) => Binaries::in_directory(directory)?,
            None => Binaries::find()?,
        };
        let (scratch, data_dir, account) = match &builder.data_dir {
            None => {
                let account = Account::for_new_server()?;
                let scratch = scratch_directory(account.as_ref())?;
                let data_dir = scratch.path().to_owned();
                (Some(scratch), data_dir, account)
            }
            Some(kept) => {
                let (data_dir, account) = kept_directory(kept)?;
                (None, data_dir, account)
            }
        };
        // Before there is anything to keep: this process may end at any moment.
        let keeper = Keeper::watch(&data_dir, scratch.is_some())?;
        if let Some(scratch) = &scratch {
            scratch.make().map_err(StartError::io(format!("make {}", data_dir.display())))?;
            account.as_ref().map_or(Ok(()), |account| account.own(&data_dir))?;
        }
        let mut settings: Vec<_> = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        settings.extend(builder.settings);
        let mut cluster =
            Self { server: None, _scratch: scratch, keeper, data_dir, account, binaries, settings, port: builder.port };
        if !is_initialised(&cluster.data_dir) {
            cluster.initdb().await?;
        }
        cluster.launch().await?;
        Ok(cluster)
    }

    /// Stops the server in the given way and starts it again on the same port.
    pub(super) async fn restart(&mut self, shutdown: Shutdown) -> Result<(), StartError> {
        if let Some(server) = &mut self.server {
            server.shut_down(shutdown).await;
        }
        self.launch().await
    }

    pub(super) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The directory of its Unix socket, unless it is somewhere else, or too far away for a client.
    pub(super) fn socket(&self) -> Option<&Path> {
        let moved = self.settings[SETTINGS.len()..].iter().any(|(name, _)| name == "unix_socket_directories");
        (!moved && self.data_dir.as_os_str().len() <= LONGEST_SOCKET_DIRECTORY).then_some(&self.data_dir)
    }

    pub(super) fn port(&self) -> u16 {
        self.port.unwrap_or_default()
    }

    async fn initdb(&mut self) -> Result<(), StartError> {
        let mut output = tempfile::tempfile().map_err(StartError::io("make a temporary file"))?;
        let mut command = self.command(&self.binaries.initdb, &output)?;
        command.args(["-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "-U", "postgres"]);
        self.keeper.will_make()?;
        let mut initdb = Process::spawn(&mut command)?;
        self.keeper.wait_for(initdb.id())?;
        let status = initdb.ended().await?;
        if status.success() {
            return Ok(());
        }
        let output = last_lines(&mut output, 0);
        Err(StartError::Initdb { data_dir: self.data_dir.clone(), status, output })
    }

    /// Starts the server, again if another port or a little patience is what it takes.
    async fn launch(&mut self) -> Result<(), StartError> {
        let begun = Instant::now();
        loop {
            let port = self.port.map_or_else(free_port, Ok)?;
            match self.attempt(port).await? {
                Outcome::Ready => {
                    self.port = Some(port);
                    tracing::debug!(port, data_dir = %self.data_dir.display(), took = ?begun.elapsed(), "test server is up");
                    return Ok(());
                }
                Outcome::Exited(status, log) => {
                    let waited = begun.elapsed();
                    let port_taken = log.contains("could not create any TCP/IP sockets");
                    let locked = log.contains("lock file \"postmaster.pid\" already exists");
                    match self.port {
                        Some(port) if port_taken && waited >= PORT_PATIENCE => {
                            return Err(StartError::PortTaken { port });
                        }
                        _ if port_taken && waited < START_PATIENCE => {}
                        _ if locked && waited < LOCK_PATIENCE => {}
                        _ => return Err(StartError::Exited { status, log }),
                    }
                    tokio::time::sleep(POLL * 5).await;
                }
            }
        }
    }

    async fn attempt(&mut self, port: u16) -> Result<Outcome, StartError> {
        let path = self.data_dir.join("server.log");
        let action = || format!("write {}", path.display());
        let mut log = open_log(&path).map_err(StartError::io(action()))?;
        let begin = log.seek(SeekFrom::End(0)).map_err(StartError::io(action()))?;

        let mut command = self.command(&self.binaries.postgres, &log)?;
        command.args(["-p", &port.to_string()]);
        for (name, value) in &self.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let server = self.server.insert(Process::spawn(&mut command)?);

        let deadline = Instant::now() + START_PATIENCE;
        loop {
            if let Some(status) = server.exited()? {
                return Ok(Outcome::Exited(status, last_lines(&mut log, begin)));
            }
            if says_ready(&self.data_dir, server.id()) {
                return Ok(Outcome::Ready);
            }
            if Instant::now() >= deadline {
                let log = last_lines(&mut log, begin);
                return Err(StartError::TimedOut { seconds: START_PATIENCE.as_secs(), log });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// A program on this data directory, run as the right user, in the keeper's care, its output in a file.
    fn command(&self, program: &Path, output: &File) -> Result<Command, StartError> {
        let handle = || output.try_clone().map_err(StartError::io("open a log file once more"));
        let mut command = Command::new(program);
        command
            .arg("-D")
            .arg(&self.data_dir)
            .current_dir(&self.data_dir) // ours may be closed to the server's user
            .env("LC_ALL", "C") // messages are read here, and macOS's own locale upsets the server
            .stdin(Stdio::null())
            .stdout(handle()?)
            .stderr(handle()?);
        if let Some(account) = &self.account {
            account.run(&mut command);
        }
        self.keeper.adopt(&mut command);
        Ok(command)
    }
}

/// A directory that goes with its handle, where the server's user can reach it. It is not made yet.
fn scratch_directory(account: Option<&Account>) -> Result<Scratch, StartError> {
    let mut place = std::env::temp_dir();
    if let Some(account) = account
        && let Err(out_of_reach) = account.reaches(&place)
    {
        place = PathBuf::from("/tmp"); // such as when TMPDIR lies in root's home
        account.reaches(&place).map_err(|_| out_of_reach)?;
    }
    Scratch::named_in(&place).map_err(StartError::io(format!("use {}", place.display())))
}

/// The user's own directory, made if need be, and whom the server runs as there.
fn kept_directory(data_dir: &Path) -> Result<(PathBuf, Option<Account>), StartError> {
    let action = || format!("use {} as data directory", data_dir.display());
    fs::create_dir_all(data_dir).map_err(StartError::io(action()))?;
    let data_dir = data_dir.canonicalize().map_err(StartError::io(action()))?;
    let initialised = is_initialised(&data_dir);
    let account = if initialised { Account::owning(&data_dir)? } else { Account::for_new_server()? };
    if let Some(account) = &account {
        account.reaches(data_dir.parent().unwrap_or(&data_dir))?;
        let is_empty = fs::read_dir(&data_dir).map_err(StartError::io(action()))?.next().is_none();
        if is_empty {
            account.own(&data_dir)?;
        }
    }
    Ok((data_dir, account))
}

fn is_initialised(data_dir: &Path) -> bool {
    data_dir.join("PG_VERSION").exists()
}

/// Whether the server's lock file names this very process and says that it accepts connections.
/// Asking the port alone could reach somebody else's server that was quicker to take it.
fn says_ready(data_dir: &Path, pid: u32) -> bool {
    let lock = fs::read_to_string(data_dir.join("postmaster.pid")).unwrap_or_default();
    let lines: Vec<&str> = lock.lines().map(str::trim).collect();
    lines.first() == Some(&pid.to_string().as_str()) && lines.get(7) == Some(&"ready")
}

/// A port that nobody listens on now; somebody may before the server does.
fn free_port() -> Result<u16, StartError> {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(StartError::io("find a free port"))
}

fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).read(true).append(true).open(path)
}

/// The end of what was written to the file after `begin`.
fn last_lines(file: &mut File, begin: u64) -> String {
    let mut bytes = Vec::new();
    let read = file.seek(SeekFrom::Start(begin)).and_then(|_| file.read_to_end(&mut bytes));
    if let Err(error) = read {
        return format!("(unreadable: {error})");
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
