use crate::SetupError;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// The migrations in their order; the first has version 1.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_sagas.sql"),
    include_str!("migrations/0002_inbox.sql"),
    include_str!("migrations/0003_outbox.sql"),
    include_str!("migrations/0004_inbox_open.sql"),
    include_str!("migrations/0005_inbox_functions.sql"),
    include_str!("migrations/0006_unfinished.sql"),
    include_str!("migrations/0007_outbox_checks.sql"),
    include_str!("migrations/0008_inbox_batches.sql"),
    include_str!("migrations/0009_specversion.sql"),
];

/// A schema's name goes into the SQL as it is.
pub(crate) fn check_name(schema: &str) -> Result<(), SetupError> {
    let wellformed = schema.len() <= 40
        && schema.starts_with(|c: char| c.is_ascii_lowercase())
        && schema.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if wellformed { Ok(()) } else { Err(SetupError::SchemaName(schema.into())) }
}

/// All migrations of a schema as SQL, for those who run their own.
pub(crate) fn printed(schema: &str) -> String {
    let mut sql = format!("CREATE SCHEMA IF NOT EXISTS {schema};\n{}", version_table(schema));
    for (version, migration) in (1..).zip(MIGRATIONS) {
        sql += &format!("\n-- Migration {version}\n{}", migration.replace("{schema}", schema));
        sql += &format!("INSERT INTO {schema}.saga_migration (version) VALUES ({version});\n");
    }
    sql
}

/// Brings a schema to the newest version. Several processes may do so at once: all but one wait.
pub(crate) async fn run(connection: &mut PgConnection, schema: &str) -> Result<(), SetupError> {
    let mut tx = connection.begin().await?;
    // The others may take their time.
    sqlx::raw_sql("SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0").execute(&mut *tx).await?;
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('saga_migration ' || $1, 0))")
        .bind(schema)
        .execute(&mut *tx)
        .await?;
    let prepare = format!("CREATE SCHEMA IF NOT EXISTS {schema}; {}", version_table(schema));
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut *tx).await?;
    let newest = format!("SELECT coalesce(max(version), 0) FROM {schema}.saga_migration");
    let found: i32 = sqlx::query_scalar(AssertSqlSafe(newest)).fetch_one(&mut *tx).await?;
    let known = i32::try_from(MIGRATIONS.len()).unwrap_or(i32::MAX);
    if found > known {
        return Err(SetupError::TooNew { schema: schema.into(), found, known });
    }
    for (version, migration) in (1..).zip(MIGRATIONS).filter(|(version, _)| *version > found) {
        let failed = |source| SetupError::Migration { version, schema: schema.into(), source };
        let sql = migration.replace("{schema}", schema);
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await.map_err(failed)?;
        let done = format!("INSERT INTO {schema}.saga_migration (version) VALUES ($1)");
        sqlx::query(AssertSqlSafe(done)).bind(version).execute(&mut *tx).await.map_err(failed)?;
    }
    tx.commit().await?;
    Ok(())
}

fn version_table(schema: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {schema}.saga_migration \
         (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now());\n"
    )
}
