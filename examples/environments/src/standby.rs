//! A second server that follows the first one and can take its place.

use crate::{
    Result,
    books::POLL,
    program::{free_port, open_directory, serve, unprivileged},
    stage::pool,
};
use saga_postgres::testing::Postgres;
use sqlx::PgPool;
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{process::Child, time::sleep};

/// How long the two may take to meet.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a server has to be told to have a standby: what was acknowledged is there, too.
pub const PRIMARY: [(&str, &str); 3] =
    [("synchronous_standby_names", "standby"), ("synchronous_commit", "on"), ("wal_level", "replica")];

/// A standby that runs.
pub struct Standby {
    pub port: u16,
    _child: Child,
    _directory: TempDir,
}

impl Standby {
    /// Makes a copy of the primary, and waits until commits there wait for it.
    pub async fn of(primary: &Postgres) -> Result<Self> {
        let directory = open_directory()?;
        let (data, port) = (directory.path().join("data"), free_port()?);
        let source = format!("host=127.0.0.1 port={} user=postgres application_name=standby", primary.port());
        let mut copy = unprivileged(&programs()?.join("pg_basebackup"));
        copy.args(["-c", "fast", "-X", "stream", "-R", "-d", &source, "-D"]).arg(&data);
        let copied = copy.output().await?;
        if !copied.status.success() {
            return Err(format!("pg_basebackup: {}", String::from_utf8_lossy(&copied.stderr)).into());
        }
        let mut command = unprivileged(&programs()?.join("postgres"));
        command.arg("-D").arg(&data).args(["-p", &port.to_string()]);
        command.args([
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "unix_socket_directories=",
            "-c",
            "max_connections=200",
        ]);
        command.args(["-c", "synchronous_standby_names="]);
        let child = serve(command, port, &directory.path().join("log")).await?;
        let pool = pool(&primary.url()).await?;
        let follows = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')";
        until(&pool, follows, "the standby follows").await?;
        Ok(Self { port, _child: child, _directory: directory })
    }

    /// How to connect to it.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Makes it the primary.
    pub async fn promote(&self) -> Result<()> {
        let pool = pool(&self.url()).await?;
        sqlx::query("SELECT pg_promote()").execute(&pool).await?;
        until(&pool, "SELECT NOT pg_is_in_recovery()", "the standby is the primary").await
    }
}

/// Where the programs of the packaged server are, `pg_basebackup` among them.
pub fn programs() -> Result<PathBuf> {
    let packaged = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&in_path).chain(packaged.map(|version| version.path().join("bin")));
    let complete =
        |place: &PathBuf| ["postgres", "initdb", "pg_basebackup"].iter().all(|program| place.join(program).exists());
    let found = places.filter(|place| place.is_absolute()).find(complete);
    found.ok_or_else(|| "there is no pg_basebackup beside a postgres".into())
}

/// Waits until a statement says that something is so.
pub async fn until(pool: &PgPool, sql: &'static str, what: &str) -> Result<()> {
    let began = Instant::now();
    while !sqlx::query_scalar::<_, bool>(sql).fetch_one(pool).await? {
        if began.elapsed() > PATIENCE {
            return Err(format!("not within {PATIENCE:?}: {what}").into());
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// The process of a server with this data directory.
pub fn postmaster(data: &Path) -> Result<rustix::process::Pid> {
    let lock = std::fs::read_to_string(data.join("postmaster.pid"))?;
    let pid = lock.lines().next().and_then(|line| line.trim().parse().ok()).and_then(rustix::process::Pid::from_raw);
    pid.ok_or_else(|| "a server without a number".into())
}
