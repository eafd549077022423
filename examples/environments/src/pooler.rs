//! PgBouncer, in front of a server.

use crate::{
    Result,
    program::{free_port, open_directory, serve, unprivileged},
    world::World,
};
use std::{fs, path::Path};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// Which one.
#[derive(Clone, Copy, Debug)]
pub enum Version {
    /// As this system packages it.
    Packaged,
    /// As a later one does.
    Newer,
}

/// A pooler that runs.
pub struct PgBouncer {
    port: u16,
    /// As it says itself, such as `1.18.0`.
    pub version: String,
    _child: Child,
    _directory: TempDir,
}

impl PgBouncer {
    /// Starts one before the server on a port of this machine. `settings` are lines of its `[pgbouncer]` section,
    /// `pool_mode` among them.
    pub async fn start(world: &World, version: Version, upstream: u16, settings: &str) -> Result<Self> {
        let directory = open_directory()?;
        let (port, ini) = (free_port()?, directory.path().join("pgbouncer.ini"));
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={upstream} user=postgres\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             max_client_conn = 300\ndefault_pool_size = 60\n{settings}\n"
        );
        fs::write(&ini, text)?;
        let mut command = program(world, version)?;
        let version = Self::version(world, version).await?;
        command.arg(&ini);
        let child = serve(command, port, &directory.path().join("log")).await?;
        Ok(Self { port, version, _child: child, _directory: directory })
    }

    /// As it says itself, such as `1.18.0`.
    pub async fn version(world: &World, version: Version) -> Result<String> {
        let said = program(world, version)?.arg("--version").output().await?;
        let said = String::from_utf8_lossy(&said.stdout);
        Ok(said.split_whitespace().nth(1).unwrap_or("of an unknown version").into())
    }

    /// The server's URL through the pooler.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }
}

fn program(world: &World, version: Version) -> Result<Command> {
    match version {
        Version::Packaged => {
            let path = Path::new("/usr/sbin/pgbouncer");
            Ok(unprivileged(if path.exists() { path } else { Path::new("pgbouncer") }))
        }
        Version::Newer => {
            // It brings its own C library, and the loader that goes with it.
            let root = world.newer_pgbouncer()?;
            let libraries = root.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
            let loader = fs::read_dir(&libraries)?
                .flatten()
                .map(|entry| entry.path())
                .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux")));
            let mut command = unprivileged(&loader.ok_or("there is no loader beside the fetched PgBouncer")?);
            command.arg("--library-path").arg(&libraries).arg(root.join("usr/sbin/pgbouncer"));
            Ok(command)
        }
    }
}
