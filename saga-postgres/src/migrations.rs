//! Migrations, under traffic.
//!
//! # Two releases on one schema
//!
//! A migration is *needed* when a release that does not know it would go wrong on it, and an *addition* otherwise: a
//! column with a default, an index, a table of its own. What is needed is noted in `saga_migration`, additions in
//! `saga_addition`. A release works on every schema whose needed migrations it knows. So an older node may start, and
//! may call `migrate`, on a schema that a newer one has added to. Releases before 0.2 know `saga_migration` alone, and
//! read it in the same way.
//!
//! # Nobody is held up
//!
//! Each part of a migration is a transaction of its own. One that would have to wait for a lock gives up soon and tries
//! again, so that nobody queues behind it. Indexes are built concurrently.
//!
//! # Several processes at once
//!
//! Parts run one at a time, and a process that waits for its turn looks again whether another one has done its work.
//! Only indexes are built outside of such a turn: Postgres sees to it that one process builds. What is left of one that
//! died is dropped in a turn, behind a lock that a builder holds all the time. But it lets that lock go a moment
//! *before* it commits that its index is valid, so there is one more look: whether a transaction is about to say so.

use crate::{
    SetupError,
    connection::{Keeps, Route, Settings},
    error::{meaning_of, told},
};
use saga_core::store::StoreError;
use sqlx::{
    AssertSqlSafe, Connection, PgConnection, PgPool, Row,
    postgres::{PgConnectOptions, PgDatabaseError},
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// One migration, in its order; the first has version 1.
struct Migration {
    sql: &'static str,
    /// Whether a release that does not know it goes wrong on it.
    needed: bool,
}

const fn needed(sql: &'static str) -> Migration {
    Migration { sql, needed: true }
}

const fn addition(sql: &'static str) -> Migration {
    Migration { sql, needed: false }
}

const MIGRATIONS: &[Migration] = &[
    needed(include_str!("migrations/0001_sagas.sql")),
    needed(include_str!("migrations/0002_inbox.sql")),
    needed(include_str!("migrations/0003_outbox.sql")),
    needed(include_str!("migrations/0004_inbox_open.sql")),
    needed(include_str!("migrations/0005_inbox_functions.sql")),
    needed(include_str!("migrations/0006_unfinished.sql")),
    needed(include_str!("migrations/0007_outbox_checks.sql")),
    needed(include_str!("migrations/0008_inbox_batches.sql")),
    addition(include_str!("migrations/0009_specversion.sql")),
    addition(include_str!("migrations/0010_life.sql")),
    addition(include_str!("migrations/0011_cost.sql")),
    addition(include_str!("migrations/0012_outbox_topics.sql")),
];

/// What ends a part of a migration. Each part but the last one can be done again: a process may die between them. The
/// last one is noted together with what it does.
const NEXT: &str = "-- next transaction\n";
/// In a part that is an index alone.
const CONCURRENTLY: &str = "CREATE INDEX CONCURRENTLY IF NOT EXISTS ";
/// How long a migration waits for a lock before it lets others pass. Shorter than the [store](Settings::of_the_store)
/// waits for one: what queues up behind it is not refused.
const LOCK_MS: u32 = 80;
/// Each tenth time: where a commit takes its time, there may be no moment as short as the other one without somebody
/// who writes.
const LONG_LOCK_MS: u32 = 400;
/// A tenth of the time others may have to wait, at most.
const PAUSE: Duration = Duration::from_millis(700);
/// A migration that gets no lock for so long is reported, and again after as long.
const REPORTED_AFTER: Duration = Duration::from_secs(5);

/// A schema's name goes into the SQL in quotes.
pub(crate) fn check_name(schema: &str) -> Result<(), SetupError> {
    let wellformed = schema.len() <= 40
        && schema.starts_with(|c: char| c.is_ascii_lowercase())
        && schema.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if wellformed { Ok(()) } else { Err(SetupError::SchemaName(schema.into())) }
}

/// Puts a schema's name into SQL: `{schema}` where it is a name, which may be a word of SQL, `{name}` where it is a
/// part of a text.
pub(crate) fn in_schema(sql: &str, schema: &str) -> String {
    sql.replace("{schema}", &format!("\"{schema}\"")).replace("{name}", schema)
}

/// All migrations of a schema as SQL, for those who run their own. For an empty database, so that nothing has to be
/// built beside anything.
pub(crate) fn printed(schema: &str) -> String {
    let mut sql = in_schema(&format!("CREATE SCHEMA IF NOT EXISTS {{schema}};\n{BOOKS}"), schema);
    for (version, migration) in (1..).zip(MIGRATIONS) {
        let done = migration.sql.replace(CONCURRENTLY, "CREATE INDEX ").replace(NEXT, "");
        sql += &format!("\n-- Migration {version}\n{}", in_schema(&done, schema));
        sql += &migration.noted(version, schema);
    }
    sql
}

const BOOKS: &str = "\
CREATE TABLE IF NOT EXISTS {schema}.saga_migration (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS {schema}.saga_addition (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now());
";

impl Migration {
    fn noted(&self, version: i32, schema: &str) -> String {
        let book = if self.needed { "saga_migration" } else { "saga_addition" };
        in_schema(
            &format!("INSERT INTO {{schema}}.{book} (version) VALUES ({version}) ON CONFLICT DO NOTHING;\n"),
            schema,
        )
    }
}

/// An index that is built concurrently.
struct Index<'m> {
    name: &'m str,
    table: &'m str,
}

impl<'m> Index<'m> {
    /// By the rest of its statement, from the name on.
    fn of(statement: &'m str) -> Self {
        let mut words = statement.split_whitespace();
        let name = words.next().unwrap_or_default();
        Self { name, table: words.nth(1).unwrap_or_default() }
    }
}

/// What a schema is at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    migrations: Vec<i32>,
    additions: Vec<i32>,
}

impl Standing {
    /// Reads it, without any right but to read the two tables.
    pub(crate) async fn read(connection: &mut PgConnection, schema: &str) -> Result<Self, sqlx::Error> {
        let mut standing = Self::default();
        for (book, versions) in
            [("saga_migration", &mut standing.migrations), ("saga_addition", &mut standing.additions)]
        {
            // By a look into the catalog: `to_regclass` may answer by what this session knew before it waited for the
            // process that made the table.
            let there = format!(
                "SELECT EXISTS (
                     SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                     WHERE n.nspname = '{schema}' AND c.relname = '{book}'
                 ) AS there"
            );
            let there = sqlx::raw_sql(AssertSqlSafe(there)).fetch_one(&mut *connection).await?;
            if there.try_get("there")? {
                let read = in_schema(&format!("SELECT version FROM {{schema}}.{book} ORDER BY version"), schema);
                for row in sqlx::raw_sql(AssertSqlSafe(read)).fetch_all(&mut *connection).await? {
                    versions.push(row.try_get("version")?);
                }
            }
        }
        Ok(standing)
    }

    fn has(&self, version: i32) -> bool {
        self.migrations.contains(&version) || self.additions.contains(&version)
    }

    /// The migrations that this release knows and the schema does not have.
    pub(crate) fn missing(&self) -> Vec<i32> {
        (1..).zip(MIGRATIONS).map(|(version, _)| version).filter(|version| !self.has(*version)).collect()
    }

    /// # Errors
    /// [`SetupError::TooNew`] when a migration is needed that is not known here.
    pub(crate) fn is_known(&self, schema: &str) -> Result<(), SetupError> {
        let known = i32::try_from(MIGRATIONS.len()).unwrap_or(i32::MAX);
        match self.migrations.iter().max() {
            Some(&found) if found > known => Err(SetupError::TooNew { schema: schema.into(), found, known }),
            _ => Ok(()),
        }
    }
}

/// Brings a schema to this release. Several processes may do so at once, and others may use it meanwhile.
///
/// On a connection of its own, which takes its time for building an index.
pub(crate) async fn run(route: &Route, schema: &str) -> Result<(), SetupError> {
    let mut opened = route.open().await?;
    let connection = opened.connection();
    if route.keeps() == Keeps::Sessions {
        sqlx::raw_sql("SET statement_timeout = 0; SET lock_timeout = 0").execute(&mut *connection).await?;
    }
    bring(connection, schema).await
}

/// On a user's pool: along the same way. Says whether its connections keep their sessions.
pub(crate) async fn run_on(pool: &PgPool, schema: &str) -> Result<Keeps, SetupError> {
    let server = PgConnectOptions::clone(&pool.connect_options());
    let route = Route::of_a_user(server, Settings::of_the_store()).await?;
    run(&route, schema).await?;
    Ok(route.keeps())
}

async fn bring(connection: &mut PgConnection, schema: &str) -> Result<(), SetupError> {
    let standing = Standing::read(connection, schema).await?;
    standing.is_known(schema)?;
    if standing.missing().is_empty() {
        return Ok(());
    }
    if standing == Standing::default() {
        let there = format!("SELECT to_regnamespace('\"{schema}\"') IS NOT NULL AS there");
        let there = sqlx::raw_sql(AssertSqlSafe(there)).fetch_one(&mut *connection).await?.try_get("there")?;
        // Whoever may not create a schema may have been given one.
        let sql = printed(schema);
        let sql = if there { sql.split_once('\n').map_or(sql.as_str(), |(_, rest)| rest) } else { &sql };
        in_a_transaction(connection, schema, 1, sql).await?;
    } else {
        in_a_transaction(connection, schema, 0, &in_schema(BOOKS, schema)).await?;
    }
    for version in Standing::read(connection, schema).await?.missing() {
        let migration = &MIGRATIONS[usize::try_from(version - 1).unwrap_or(0)];
        let mut parts = migration.sql.split(NEXT).peekable();
        while let Some(part) = parts.next() {
            let noted = if parts.peek().is_none() { migration.noted(version, schema) } else { String::new() };
            let sql = in_schema(part, schema);
            if let Some((_, index)) = part.split_once(CONCURRENTLY) {
                build_index(connection, schema, version, &Index::of(index), &sql).await?;
                in_a_transaction(connection, schema, version, &noted).await?;
            } else {
                in_a_transaction(connection, schema, version, &(sql + &noted)).await?;
            }
        }
    }
    Ok(())
}

/// Runs a part of a migration, unless another process has done that migration meanwhile (0: of none). One process at a
/// time.
async fn in_a_transaction(
    connection: &mut PgConnection,
    schema: &str,
    version: i32,
    sql: &str,
) -> Result<(), SetupError> {
    let began = Instant::now();
    let mut reported = REPORTED_AFTER;
    for tries in 1.. {
        let lock_ms = if tries % 10 == 0 { LONG_LOCK_MS } else { LOCK_MS };
        match once(connection, schema, version, sql, lock_ms).await {
            Ok(()) => return Ok(()),
            Err(error) if is_a_race(&error) => {
                if began.elapsed() >= reported {
                    reported += REPORTED_AFTER;
                    tracing::warn!(
                        version,
                        schema,
                        "a migration waits for a lock that a transaction holds: it tries again, and holds up nobody"
                    );
                }
                sleep(PAUSE).await;
            }
            Err(source) => {
                return Err(SetupError::Migration { version, schema: schema.into(), reason: told(&source), source });
            }
        }
    }
    Ok(())
}

async fn once(
    connection: &mut PgConnection,
    schema: &str,
    version: i32,
    sql: &str,
    lock_ms: u32,
) -> Result<(), sqlx::Error> {
    let mut tx = connection.begin().await?;
    // A large table may take its time. In a short wait for a lock nobody queues behind us for long.
    let limits = format!("SET LOCAL lock_timeout = {lock_ms}; SET LOCAL statement_timeout = 0");
    sqlx::raw_sql(AssertSqlSafe(limits)).execute(&mut *tx).await?;
    let alone = format!("SELECT pg_advisory_xact_lock(hashtextextended('saga_migration {schema}', 0))");
    sqlx::raw_sql(AssertSqlSafe(alone)).execute(&mut *tx).await?;
    if version == 0 || !Standing::read(&mut tx, schema).await?.has(version) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *tx).await?;
    }
    tx.commit().await
}

/// Builds an index beside what goes on. A process that dies while it does leaves one that is not valid, which is
/// dropped.
async fn build_index(
    connection: &mut PgConnection,
    schema: &str,
    version: i32,
    index: &Index<'_>,
    sql: &str,
) -> Result<(), SetupError> {
    let failed = |source| SetupError::Migration { version, schema: schema.into(), reason: told(&source), source };
    let Index { name, table } = index;
    let valid = format!("SELECT indisvalid AS valid FROM pg_index WHERE indexrelid = to_regclass('{{schema}}.{name}')");
    let drop = format!(
        "LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE;
         DO $$ BEGIN
             IF EXISTS (
                 SELECT FROM pg_index i JOIN pg_locks l ON l.transactionid = i.xmax
                 WHERE i.indexrelid = to_regclass('{{schema}}.{name}')
             ) THEN
                 RAISE 'the index is about to be valid' USING ERRCODE = 'lock_not_available';
             END IF;
             IF NOT ({valid}) THEN
                 DROP INDEX {{schema}}.{name};
             END IF;
         END $$;"
    );
    let (valid, drop) = (in_schema(&valid, schema), in_schema(&drop, schema));
    loop {
        let found = sqlx::raw_sql(AssertSqlSafe(valid.clone())).fetch_optional(&mut *connection).await;
        let found = found.and_then(|row| row.map(|row| row.try_get("valid")).transpose());
        match found.map_err(failed)? {
            Some(true) => return Ok(()),
            Some(false) => in_a_transaction(connection, schema, 0, &drop).await?,
            None => match sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *connection).await {
                Ok(_) => {}
                // Two processes at the same index: one of them looks again.
                Err(error) if is_a_race(&error) || is_there_already(&error) => sleep(PAUSE).await,
                Err(error) => return Err(failed(error)),
            },
        }
    }
}

/// Whether somebody else was at the same thing: a lock was not to be had, or two have written one row of the catalog,
/// which Postgres calls an internal error. Done again, it goes well.
fn is_a_race(error: &sqlx::Error) -> bool {
    let database = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    matches!(meaning_of(error), StoreError::Contention(_))
        || database.is_some_and(|database| match database.code() {
            "23505" => database.schema() == Some("pg_catalog"),
            "XX000" => matches!(database.routine(), Some("simple_heap_update" | "simple_heap_delete")),
            _ => false,
        })
}

fn is_there_already(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).as_deref() == Some("42P07")
}
