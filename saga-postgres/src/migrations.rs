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
//! again, so that nobody queues behind it. Indexes are built concurrently, and dropped so where there may be no moment
//! without somebody who uses the table.
//!
//! # Several processes at once
//!
//! Parts run one at a time, and a process that waits for its turn looks again whether another one has done its work.
//! Indexes, which no transaction can build concurrently, have turns of their own; behind a pooler that shares sessions
//! there are none, and two builders may meet: Postgres ends one of them, and it begins again. What is left of a builder
//! that died is told by a lock on the table that a builder holds all the time. But it lets that lock go a moment *before*
//! it commits that its index is valid, so there is one more look: whether a transaction is about to say so.

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
use std::{borrow::Cow, time::Duration};
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
    addition(include_str!("migrations/0013_letters.sql")),
    addition(include_str!("migrations/0014_inbox_received.sql")),
];

/// What ends a part of a migration. Each part but the last one can be done again: a process may die between them. The
/// last one is noted together with what it does.
const NEXT: &str = "-- next transaction\n";
/// In a part that is an index alone, and in one that drops an index and does nothing else.
const BUILDS: &str = "CREATE INDEX CONCURRENTLY ";
const DROPS: &str = "DROP INDEX CONCURRENTLY ";
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
        let done = migration.sql.replace(BUILDS, "CREATE INDEX ").replace(DROPS, "DROP INDEX ").replace(NEXT, "");
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
    bring(connection, schema, route.keeps()).await
}

/// On a user's pool: along the same way. Says whether its connections keep their sessions.
pub(crate) async fn run_on(pool: &PgPool, schema: &str) -> Result<Keeps, SetupError> {
    let server = PgConnectOptions::clone(&pool.connect_options());
    let route = Route::of_a_user(server, Settings::of_the_store()).await?;
    run(&route, schema).await?;
    Ok(route.keeps())
}

async fn bring(connection: &mut PgConnection, schema: &str, keeps: Keeps) -> Result<(), SetupError> {
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
            if let Some((_, index)) = part.split_once(BUILDS).or_else(|| part.split_once(DROPS)) {
                let index = Index { schema, version, ..Index::of(index) };
                if keeps == Keeps::Sessions {
                    // A builder that waits for another one would hold the snapshot that the other one waits for.
                    index.await_turn(connection).await?;
                    index.change(connection, &sql).await?;
                    index.end_turn(connection).await?;
                } else {
                    index.change(connection, &sql).await?;
                }
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
    let mut tx = connection.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
    // A large table may take its time. In a short wait for a lock nobody queues behind us for long.
    // One whose process stands still holds up nobody for longer than ten seconds. A busy machine may take one.
    let limits = format!(
        "SET LOCAL lock_timeout = {lock_ms}; SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 10000"
    );
    sqlx::raw_sql(AssertSqlSafe(limits)).execute(&mut *tx).await?;
    let alone = format!("SELECT pg_advisory_xact_lock(hashtextextended('saga_migration {schema}', 0))");
    sqlx::raw_sql(AssertSqlSafe(alone)).execute(&mut *tx).await?;
    if version == 0 || !Standing::read(&mut tx, schema).await?.has(version) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *tx).await?;
    }
    tx.commit().await
}

/// An index that is built or dropped concurrently.
struct Index<'m> {
    name: &'m str,
    table: &'m str,
    schema: &'m str,
    version: i32,
}

impl<'m> Index<'m> {
    /// By the rest of the statement that builds it, from the name on. One that is dropped needs no name here: its statement
    /// has it.
    fn of(statement: &'m str) -> Self {
        let mut words = statement.split_whitespace();
        let name = words.next().unwrap_or_default();
        Self { name, table: words.nth(1).unwrap_or_default(), schema: "", version: 0 }
    }

    fn sql(&self, sql: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(in_schema(&sql.replace("{index}", self.name).replace("{table}", self.table), self.schema))
    }

    fn failed(&self, source: sqlx::Error) -> SetupError {
        SetupError::Migration { version: self.version, schema: self.schema.into(), reason: told(&source), source }
    }

    /// One process at a time builds or drops indexes. It does not wait in a lock: that would be one more snapshot.
    async fn await_turn(&self, connection: &mut PgConnection) -> Result<(), SetupError> {
        let mine = "SELECT pg_try_advisory_lock(hashtextextended('saga_index {name}', 0)) AS mine";
        while !sqlx::raw_sql(self.sql(mine)).fetch_one(&mut *connection).await?.try_get("mine")? {
            sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn end_turn(&self, connection: &mut PgConnection) -> Result<(), SetupError> {
        let done = "SELECT pg_advisory_unlock(hashtextextended('saga_index {name}', 0))";
        sqlx::raw_sql(self.sql(done)).execute(connection).await?;
        Ok(())
    }

    /// Builds it or drops it, whichever the statement does.
    async fn change(&self, connection: &mut PgConnection, sql: &str) -> Result<(), SetupError> {
        if sql.contains(DROPS) { self.remove(connection, sql).await } else { self.build(connection, sql).await }
    }

    /// Drops it beside what goes on, unless another process has done the migration meanwhile. Those who use the table are
    /// waited for, and hold up nobody. What is left by a process that dies meanwhile is dropped by the next one.
    async fn remove(&self, connection: &mut PgConnection, sql: &str) -> Result<(), SetupError> {
        while !Standing::read(connection, self.schema).await?.has(self.version) {
            match sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *connection).await {
                Ok(_) => break,
                Err(error) if is_a_race(&error) && !is_cut_off(&error) => sleep(PAUSE / 10).await,
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(())
    }

    /// Builds it beside what goes on, unless another process has done the migration meanwhile. A process that dies while
    /// it builds leaves an index that is not valid: it is renamed, and dropped.
    async fn build(&self, connection: &mut PgConnection, sql: &str) -> Result<(), SetupError> {
        let mut taken = 0;
        loop {
            if Standing::read(connection, self.schema).await?.has(self.version) {
                return Ok(());
            }
            self.drop_the_broken(connection).await?;
            match self.is_valid(connection).await? {
                Some(true) => return Ok(()),
                Some(false) => self.rename_if_broken(connection).await?,
                None => {
                    // Waits for others who build on the table, and holds up none of them.
                    in_a_transaction(connection, self.schema, self.version, &self.sql(LOCK).0).await?;
                    match sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *connection).await {
                        Ok(_) => {}
                        // By another process, which may be dropped again; or the name is something else's.
                        Err(error) if is_taken(&error) && taken < 3 => taken += 1,
                        Err(error) if is_a_race(&error) && !is_cut_off(&error) => {}
                        Err(error) => return Err(self.failed(error)),
                    }
                    sleep(PAUSE / 10).await;
                }
            }
        }
    }

    /// `None`: there is none on this table.
    async fn is_valid(&self, connection: &mut PgConnection) -> Result<Option<bool>, SetupError> {
        let found = sqlx::raw_sql(self.sql(VALID)).fetch_optional(connection).await;
        found.and_then(|row| row.map(|row| row.try_get("valid")).transpose()).map_err(|error| self.failed(error))
    }

    /// The lock is not to be had as long as somebody builds an index on the table.
    async fn rename_if_broken(&self, connection: &mut PgConnection) -> Result<(), SetupError> {
        let rename = format!(
            "{LOCK};
             DO $$ BEGIN
                 IF EXISTS (
                     SELECT FROM pg_index i JOIN pg_locks l ON l.transactionid = i.xmax
                     WHERE i.indexrelid = to_regclass('{{schema}}.{{index}}')
                 ) THEN
                     RAISE 'the index is about to be valid' USING ERRCODE = 'lock_not_available';
                 END IF;
                 IF NOT ({VALID}) THEN
                     EXECUTE 'ALTER INDEX {{schema}}.{{index}} RENAME TO {{index}}_broken_'
                         || to_regclass('{{schema}}.{{index}}')::oid;
                 END IF;
             END $$"
        );
        in_a_transaction(connection, self.schema, self.version, &self.sql(&rename).0).await
    }

    /// Concurrently: it needs no moment in which nobody uses the table.
    async fn drop_the_broken(&self, connection: &mut PgConnection) -> Result<(), SetupError> {
        let broken = "SELECT c.relname AS name FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
            WHERE i.indrelid = to_regclass('{table}') AND NOT i.indisvalid AND starts_with(c.relname, '{index}_broken_')";
        for row in sqlx::raw_sql(self.sql(broken)).fetch_all(&mut *connection).await? {
            let name: String = row.try_get("name")?;
            let drop = self.sql(&format!("DROP INDEX CONCURRENTLY IF EXISTS {{schema}}.{name}"));
            match sqlx::raw_sql(drop).execute(&mut *connection).await {
                Ok(_) => {}
                // Another process drops it.
                Err(error) if is_a_race(&error) && !is_cut_off(&error) => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(())
    }
}

const LOCK: &str = "LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE";
const VALID: &str = "SELECT indisvalid AS valid FROM pg_index
    WHERE indexrelid = to_regclass('{schema}.{index}') AND indrelid = to_regclass('{table}')";

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

fn is_taken(error: &sqlx::Error) -> bool {
    code(error).as_deref() == Some("42P07")
}

/// By a limit of time of the role, behind a pooler, or by a person: it would be again.
fn is_cut_off(error: &sqlx::Error) -> bool {
    matches!(code(error).as_deref(), Some("57014" | "55P03"))
}

fn code(error: &sqlx::Error) -> Option<Cow<'_, str>> {
    error.as_database_error().and_then(|error| error.code())
}
