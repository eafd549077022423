//! A heartbeat on a connection of its own.

use super::millis;
use crate::{
    connection::{Connections, Route},
    queries::Queries,
};
use async_trait::async_trait;
use saga_core::{
    WorkerId,
    store::{Heart, StoreError},
};
use sqlx::SqlStr;
use std::{sync::Arc, time::Duration};

pub(super) struct PgHeart {
    connection: Connections,
    beat: SqlStr,
}

impl PgHeart {
    pub(super) fn new(route: &Arc<Route>, queries: &Queries) -> Self {
        Self { connection: Connections::new(route.clone(), 1, route.patience()), beat: queries.beat.clone() }
    }
}

#[async_trait]
impl Heart for PgHeart {
    async fn beat(&mut self, worker: WorkerId, lease: Duration) -> Result<bool, StoreError> {
        let sql = self.connection.query(&self.beat).bind(worker.as_uuid()).bind(millis(lease));
        Ok(!self.connection.rows(sql).await?.is_empty())
    }
}
