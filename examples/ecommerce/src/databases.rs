//! A database for each service: on the server in `DATABASE_URL`, else on a private one that ends with us.

use crate::Result;
use saga_postgres::testing::Postgres;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

/// Creates what is missing of a service's tables. One process at a time: `IF NOT EXISTS` fails if another one is about to create the same.
pub async fn create_tables(db: &PgPool, schema: &'static str) -> Result<()> {
    let mut transaction = db.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock(hashtext('tables'))").execute(&mut *transaction).await?;
    sqlx::raw_sql(schema).execute(&mut *transaction).await?;
    Ok(transaction.commit().await?)
}

pub struct Databases {
    server: Postgres,
    prefix: String,
    created: Vec<String>,
}

impl Databases {
    /// The databases' names begin with this.
    pub async fn start(prefix: impl Into<String>) -> Result<Self> {
        Ok(Self { server: Postgres::start().await?, prefix: prefix.into(), created: vec![] })
    }

    /// Which Postgres is in use.
    pub fn in_use(&self) -> String {
        let origin = match self.server.is_private() {
            true => "private, started from the binaries on this machine",
            false => "the one in DATABASE_URL",
        };
        format!("Postgres {}, port {} ({origin})", self.server.version(), self.server.port())
    }

    /// The URL of a service's database, which is created unless it is there.
    pub async fn of(&mut self, service: &str) -> Result<String> {
        let name = format!("{}_{service}", self.prefix);
        self.server.create_database(&name).await?;
        let url = self.server.socket_url_for(&name);
        self.created.push(name);
        Ok(url)
    }

    /// Ends a private server; on another one, the databases stay.
    pub async fn stop(self) {
        self.server.stop().await;
    }

    /// As if nothing had been.
    pub async fn remove(self) -> Result<()> {
        if !self.server.is_private() {
            let mut server = PgConnection::connect(&self.server.url()).await?;
            for name in &self.created {
                let sql = format!(r#"DROP DATABASE "{name}" WITH (FORCE)"#);
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut server).await?;
            }
        }
        self.stop().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::join_all;

    #[tokio::test]
    async fn tables_are_created_though_all_nodes_start_at_once() {
        let postgres = Postgres::start().await.unwrap();
        let db = PgPool::connect(&postgres.url()).await.unwrap();
        let schema = "CREATE TABLE IF NOT EXISTS a (id int); CREATE TABLE IF NOT EXISTS b (id int);
            CREATE TABLE IF NOT EXISTS c (id int); INSERT INTO a VALUES (1)";
        let nodes = join_all((0..8).map(|_| create_tables(&db, schema))).await;
        assert!(nodes.iter().all(Result::is_ok), "{nodes:?}");
        db.close().await;
        postgres.stop().await;
    }
}
