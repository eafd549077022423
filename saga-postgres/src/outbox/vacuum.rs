//! Dead rows, out of the relay's way.
//!
//! A relay passes them with each whole look at its queue, at some 30 milliseconds a million, and those of the last
//! second with every look. Autovacuum looks once a minute at most, and a busy relay leaves a million in a minute.

use super::{Counters, PgOutbox};
use crate::{
    SetupError,
    connection::{Keeps, Route},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};

/// Worth the trouble.
const DEAD: u64 = 10_000;
const PAUSE: Duration = Duration::from_secs(1);
/// A connection that does not answer for so long leads nowhere.
const LONGEST: Duration = Duration::from_secs(3600);
/// It rests for so many times as long as it works: the whole index is read each time, and a backlog may have made it large.
const REST: u32 = 10;

/// Vacuums behind a relay, for ever. Whose user does not own the table does not vacuum it: Postgres skips it with a warning, and autovacuum is left.
pub(super) async fn behind(counters: Arc<Counters>, outbox: PgOutbox, route: Arc<Route>) {
    let (mut pause, mut vacuumed) = (PAUSE, 0);
    loop {
        sleep(pause).await;
        let published = counters.read().published;
        if published - vacuumed < DEAD {
            continue;
        }
        let began = Instant::now();
        let vacuum = async {
            let mut opened = route.open().await?;
            if route.keeps() == Keeps::Sessions {
                sqlx::raw_sql("SET statement_timeout = 0").execute(opened.connection()).await?;
            }
            // In the simple protocol: one that is sent in two parts may come to two sessions of a pooler.
            sqlx::raw_sql(outbox.inner.queries.vacuum.clone()).execute(opened.connection()).await?;
            Ok::<_, SetupError>(())
        };
        match timeout(LONGEST, vacuum).await {
            Ok(Ok(())) => vacuumed = published,
            Ok(Err(error)) => tracing::debug!(%error, "the outbox is not vacuumed"),
            Err(_) => tracing::debug!("the outbox is not vacuumed: no answer"),
        }
        pause = PAUSE.max(began.elapsed() * REST);
    }
}
