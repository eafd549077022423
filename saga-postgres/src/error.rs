use saga_core::store::StoreError;
use sqlx::postgres::PgDatabaseError;
use std::fmt;

/// The store could not be set up.
///
/// Its `Debug` is the sentence as well: that is what a `main` shows which returns it.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The schema's name would need quoting.
    #[error("`{0}` cannot be the name of a schema: use up to 40 of a-z, 0-9 and _, beginning with a letter")]
    SchemaName(String),
    /// The URL leads nowhere.
    #[error("the database's URL cannot be used: {reason}; it looks like `postgres://user:password@host:5432/database`")]
    Url {
        /// Why.
        reason: String,
    },
    /// There is no connection to be had.
    #[error("no connection to Postgres at {address}: {reason}")]
    Unreachable {
        /// Host and port, or the socket.
        address: String,
        /// What the network or the server says.
        reason: String,
    },
    /// The server is a standby, or was made read-only.
    #[error("the server at {address} cannot write (a standby, or read-only): connect to the primary")]
    ReadOnly {
        /// Host and port, or the socket.
        address: String,
    },
    /// None of several servers is a primary that can be reached.
    #[error("none of the servers is a primary that can be reached: {reasons}")]
    NoPrimary {
        /// What each of them says.
        reasons: String,
    },
    /// A pooler between shares the server's sessions, so that settings and statements of one transaction are gone in
    /// the next.
    #[error(
        "the connection to {address} does not keep its session: a pooler between is in transaction mode. Give the server's own URL or that of a pooler in \
         session mode; or say `PgStoreOptions::transaction_pooler()`, with `.direct(url)` for a URL past the pooler"
    )]
    Pooler {
        /// Host and port of the pooler.
        address: String,
    },
    /// The schema's tables are not there, or not as this library needs them.
    #[error(
        "schema `{schema}` is not migrated for this version of the library: run `migrate()` first (missing: {missing})"
    )]
    NotMigrated {
        /// Which schema.
        schema: String,
        /// The migrations that are missing, or what is.
        missing: String,
    },
    /// The role may not do what has to be done.
    #[error(
        "the role has not the rights that it needs in schema `{schema}`: {reason}. Grant it USAGE on the schema, SELECT, INSERT, UPDATE, DELETE on its tables and EXECUTE on its functions; where \
         row level security is on, the role has to own the tables or have BYPASSRLS, or it would not see its own sagas"
    )]
    Rights {
        /// Which schema.
        schema: String,
        /// What Postgres says.
        reason: String,
    },
    /// The server is older than this library was tried with.
    #[error("this is PostgreSQL {found}: 15 or newer is needed")]
    Version {
        /// Its major version.
        found: u32,
    },
    /// Postgres said no.
    #[error("Postgres: {reason}")]
    Postgres {
        /// What it said, with the code of the error.
        reason: String,
        /// The error as it came.
        source: sqlx::Error,
    },
    /// A migration failed.
    #[error(
        "migration {version} of schema `{schema}` failed: {reason}; what it did before that stands, and `migrate` goes on from there"
    )]
    Migration {
        /// Which one.
        version: i32,
        /// Of which schema.
        schema: String,
        /// Why, in words.
        reason: String,
        /// The error as it came.
        source: sqlx::Error,
    },
    /// An inbox forgets too soon.
    #[error(
        "the inbox keeps its rows for {keep:?}, and a command may come again for {}: let it keep them for longer (`PgInbox::keep_for`), or the topic less (`retention.ms`)",
        .needed.map_or("ever".into(), |needed| format!("{needed:?}"))
    )]
    Retention {
        /// For how long it keeps a row.
        keep: std::time::Duration,
        /// For how long it has to; `None` is for ever.
        needed: Option<std::time::Duration>,
    },
    /// The schema was migrated by a newer version of this library.
    #[error(
        "schema `{schema}` needs a library that knows migration {found}, this one knows up to {known}: upgrade the library"
    )]
    TooNew {
        /// Which schema.
        schema: String,
        /// Its migration.
        found: i32,
        /// The last one that is known here.
        known: i32,
    },
}

impl fmt::Debug for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl SetupError {
    /// Whether the server, the database or the role has no place for another connection.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::Unreachable { reason, .. } if reason.contains("(53300)"))
    }
}

impl From<sqlx::Error> for SetupError {
    fn from(error: sqlx::Error) -> Self {
        Self::Postgres { reason: told(&error), source: error }
    }
}

/// An error in words: what Postgres says, with its code, its detail and its hint, but without the line of *its* source.
pub(crate) fn told(error: &sqlx::Error) -> String {
    let sqlx::Error::Database(database) = error else {
        return error.to_string();
    };
    let mut text = format!("{} ({})", database.message(), database.code().unwrap_or_default());
    if let Some(error) = database.try_downcast_ref::<PgDatabaseError>() {
        for more in [error.detail(), error.hint()].into_iter().flatten() {
            text += &format!("; {more}");
        }
    }
    text
}

/// What an error of Postgres means for whoever wrote.
///
/// Contention says that nothing was written; a refusal of the data, that it never will be. Everything else that has to do with the
/// connection, the server or its set-up leaves the outcome open: the same call, made again, resolves it.
pub(crate) fn meaning_of(error: &sqlx::Error) -> StoreError {
    let sqlx::Error::Database(database) = error else {
        return StoreError::Unavailable(error.to_string());
    };
    let code = database.code().unwrap_or_default();
    let text = told(error);
    match &*code {
        "42P01" | "3F000" => StoreError::Unavailable(format!("{text}; was `PgStore::migrate` run on this schema?")),
        // Serialization failure, deadlock, lock timeout, statement timeout.
        "40001" | "40P01" | "55P03" | "57014" => StoreError::Contention(text),
        // Connection, a plan or a statement that the connection has lost, transaction state, authorization, catalog, resources, missing tables, operator's intervention, system.
        _ => match code.get(..2) {
            Some("08" | "0A" | "25" | "26" | "28" | "3D" | "3F" | "40" | "42" | "53" | "57" | "58") | None => {
                StoreError::Unavailable(text)
            }
            _ => StoreError::Rejected(text),
        },
    }
}
