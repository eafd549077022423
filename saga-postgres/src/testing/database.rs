//! Statements about databases. They are run in another database of the same server, whose URL comes first.

use std::future::Future;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

/// How long one statement, connecting included, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `work` on a connection of its own, within bounded time.
async fn on<T, F, Fut>(url: &str, work: F) -> Result<T, sqlx::Error>
where
    F: FnOnce(PgConnection) -> Fut,
    Fut: Future<Output = Result<(T, PgConnection), sqlx::Error>>,
{
    let options: PgConnectOptions = url.parse()?;
    let bounded = tokio::time::timeout(PATIENCE, async {
        let (value, connection) = work(options.connect().await?).await?;
        connection.close().await?;
        Ok(value)
    });
    bounded.await.map_err(|_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))?
}

/// The server's version, such as `15.14 (Debian 15.14-0+deb12u1)`.
pub(super) async fn version(url: &str) -> Result<String, sqlx::Error> {
    on(url, async |mut connection| {
        let version = sqlx::query_scalar("SHOW server_version").fetch_one(&mut connection).await?;
        Ok((version, connection))
    })
    .await
}

/// Creates the database unless it exists.
pub(super) async fn create(url: &str, name: &str) -> Result<(), sqlx::Error> {
    on(url, async |mut connection| {
        let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(name)
            .fetch_one(&mut connection)
            .await?;
        if !exists {
            let sql = format!("CREATE DATABASE {}", quoted(name));
            match sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await {
                Ok(_) => {}
                Err(sqlx::Error::Database(error)) if is_duplicate(error.code().as_deref()) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(((), connection))
    })
    .await
}

/// Drops the database if it exists, whoever uses it.
pub(super) async fn drop_forced(url: &str, name: &str) -> Result<(), sqlx::Error> {
    execute(url, format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quoted(name))).await
}

/// Drops the database if it exists; fails if somebody uses it.
pub(super) async fn drop_unused(url: &str, name: &str) -> Result<(), sqlx::Error> {
    execute(url, format!("DROP DATABASE IF EXISTS {}", quoted(name))).await
}

async fn execute(url: &str, sql: String) -> Result<(), sqlx::Error> {
    on(url, async |mut connection| {
        sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await?;
        Ok(((), connection))
    })
    .await
}

/// The databases whose name begins so and to which nobody is connected.
pub(super) async fn idle(url: &str, prefix: &str) -> Result<Vec<String>, sqlx::Error> {
    on(url, async |mut connection| {
        let names = sqlx::query_scalar(
            "SELECT datname::text FROM pg_database d WHERE starts_with(datname::text, $1)
             AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.datid = d.oid)",
        )
        .bind(prefix)
        .fetch_all(&mut connection)
        .await?;
        Ok((names, connection))
    })
    .await
}

/// Two creating at once: the loser sees the name, or the index entry, of the winner.
fn is_duplicate(code: Option<&str>) -> bool {
    matches!(code, Some("42P04" | "23505"))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
