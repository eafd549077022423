//! A database for each service: on the server in `DATABASE_URL`, else on a private one that ends with us.

use crate::Result;
use saga_postgres::testing::Postgres;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

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
        let url = self.server.url_for(&name);
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
