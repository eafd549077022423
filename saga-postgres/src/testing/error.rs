use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// Why there is no Postgres to test with.
///
/// The text of each error says what a person can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// No directory holds both `initdb` and `postgres`.
    #[error(
        "no Postgres found: no directory holds both `initdb` and `postgres`. \
         Install it (Debian, Ubuntu: `apt-get install postgresql`; Fedora: `dnf install postgresql-server`; \
         macOS: `brew install postgresql`), add its bin directory to PATH, \
         or set DATABASE_URL to a running server. Looked in: {}",
        list(searched)
    )]
    BinariesNotFound {
        /// Every directory that was looked at, in order.
        searched: Vec<PathBuf>,
    },

    /// This process is root, as whom Postgres refuses to run, and there is no other user to run it as.
    #[error(
        "Postgres refuses to run as root, and there is neither a user `postgres` nor a user `nobody` to run it as. \
         Add one (`useradd --system postgres`), run the tests as an ordinary user, or set DATABASE_URL"
    )]
    NoServerUser,

    /// This process is root, and the user the server runs as cannot reach the data directory.
    #[error(
        "Postgres runs as user {user} here, who cannot pass through {}. \
         Allow it (`chmod o+x`), or choose another data directory or TMPDIR", path.display()
    )]
    OutOfReach {
        /// The directory in the way.
        path: PathBuf,
        /// The user the server runs as.
        user: String,
    },

    /// `initdb` could not make the data directory.
    #[error("initdb failed ({status}) in {}:\n{output}", data_dir.display())]
    Initdb {
        /// Where it was to be made.
        data_dir: PathBuf,
        /// How `initdb` ended.
        status: ExitStatus,
        /// What `initdb` said.
        output: String,
    },

    /// The server ended before it accepted connections.
    #[error("the server ended ({status}) before it accepted connections; its log ends with:\n{log}")]
    Exited {
        /// How the server ended.
        status: ExitStatus,
        /// The last lines of its log.
        log: String,
    },

    /// The server runs, but does not accept connections in time.
    #[error("the server did not accept connections within {seconds} s; its log ends with:\n{log}")]
    TimedOut {
        /// How long was waited.
        seconds: u64,
        /// The last lines of its log.
        log: String,
    },

    /// The port that the server must have is in use.
    #[error("port {port} is in use: stop what listens there, or choose another port")]
    PortTaken {
        /// The port.
        port: u16,
    },

    /// The server is there, but could not be talked to.
    #[error("cannot connect to the Postgres server: {0}")]
    Connect(#[source] sqlx::Error),

    /// A database could not be created.
    #[error("cannot create database {name} (does the user have the right CREATEDB?): {source}")]
    CreateDatabase {
        /// The database.
        name: String,
        /// What the server said.
        source: sqlx::Error,
    },

    /// Only a private server can be restarted or crashed.
    #[error("this server was not started here, so it is not ours to restart: use Postgres::private()")]
    NotPrivate,

    /// The operating system refused something.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// What the system said.
        source: io::Error,
    },
}

impl StartError {
    /// For `map_err`: says what was tried.
    pub(super) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}

fn list(directories: &[PathBuf]) -> String {
    let shown: Vec<_> = directories.iter().map(|dir| dir.display().to_string()).collect();
    shown.join(", ")
}
