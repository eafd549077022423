use saga_core::store::StoreError;

/// The store could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The schema's name would need quoting.
    #[error("`{0}` cannot be the name of a schema: use up to 40 of a-z, 0-9 and _, beginning with a letter")]
    SchemaName(String),
    /// Postgres said no.
    #[error("Postgres: {0}")]
    Postgres(#[from] sqlx::Error),
    /// A migration failed; nothing of it stands.
    #[error("migration {version} of schema `{schema}` failed, nothing of it stands: {source}")]
    Migration {
        /// Which one.
        version: i32,
        /// Of which schema.
        schema: String,
        /// Why.
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
        "schema `{schema}` is at migration {found}, this version of the library knows up to {known}: upgrade the library"
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

/// What an error of Postgres means for whoever wrote.
///
/// Contention says that nothing was written; a refusal of the data, that it never will be. Everything else that has to do with the
/// connection, the server or its set-up leaves the outcome open: the same call, made again, resolves it.
pub(crate) fn meaning_of(error: &sqlx::Error) -> StoreError {
    let sqlx::Error::Database(database) = error else {
        return StoreError::Unavailable(error.to_string());
    };
    let code = database.code().unwrap_or_default();
    let text = format!("{database} ({code})");
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
