//! An account that somebody else has in use, so that a charge has to wait: for the tour, whichever way the charge comes.

use crate::Result;
use sqlx::{Connection, PgConnection};
use std::time::Duration;
use tokio::time::sleep;

pub struct AccountInUse {
    holder: PgConnection,
    database: String,
}

impl AccountInUse {
    /// Locks the account of a user in the payment service's database.
    pub async fn begin(database: &str, user: i64) -> Result<Self> {
        let mut holder = PgConnection::connect(database).await?;
        sqlx::raw_sql("BEGIN").execute(&mut holder).await?;
        sqlx::query("SELECT FROM account WHERE user_id = $1 FOR UPDATE").bind(user).execute(&mut holder).await?;
        Ok(Self { holder, database: database.into() })
    }

    /// Returns when a charge waits.
    pub async fn awaited(&self) -> Result<()> {
        let mut observer = PgConnection::connect(&self.database).await?;
        let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')";
        while !sqlx::query_scalar::<_, bool>(waits).fetch_one(&mut observer).await? {
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Frees it.
    pub async fn end(mut self) -> Result<()> {
        sqlx::raw_sql("ROLLBACK").execute(&mut self.holder).await?;
        Ok(())
    }
}
