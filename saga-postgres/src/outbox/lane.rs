//! One of a relay's lanes: a connection, a share of the shards, one round after the other.

use super::{
    Counters, PgOutbox,
    plan::{Batch, Key, Place, Plan},
    row::Row,
    waiting::Waiting,
};
use crate::{
    SetupError,
    connection::{Keeps, Opened, Route, in_time},
};
use futures::FutureExt;
use saga_core::{
    trace::UnderWay,
    transport::{Outgoing, PublishError, Transport},
};
use sqlx::{
    Connection, Postgres, Row as _, SqlStr, Transaction,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use std::{
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::watch,
    time::{sleep, sleep_until, timeout},
};

/// How many bytes of one shard a round takes at most; a single event may be larger.
const BYTES: i64 = 512 * 1024;
/// After a round with less than a batch, what commits within this time goes together in the next.
const GATHERING: Duration = Duration::from_millis(10);
/// The pause after the first round that failed, or in which the broker took nothing; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

pub(super) struct Lane {
    pub(super) outbox: PgOutbox,
    pub(super) route: Arc<Route>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) shards: Vec<i16>,
    pub(super) batch: u32,
    pub(super) poll: Duration,
    pub(super) lease: Duration,
    pub(super) counters: Arc<Counters>,
    pub(super) committed: watch::Receiver<()>,
    pub(super) stopping: watch::Receiver<bool>,
    pub(super) waiting: Waiting,
}

/// How a round ended.
enum Round {
    /// The queue is shorter now, and there may be more.
    Moved {
        /// It was a batch or more.
        full: bool,
    },
    /// The broker took nothing of what there was.
    Stuck,
    /// There was nothing to do in the shards that were free.
    Idle {
        /// Whether there is something in others.
        others: bool,
    },
}

impl Lane {
    /// Goes on until it is told to stop.
    pub(super) async fn run(mut self) {
        let (mut connection, mut failures, mut contended) = (None, 0, 0);
        while !*self.stopping.borrow() {
            if let Some(until) = self.waiting.full_until() {
                self.pause(until, false).await;
            }
            // What commits before this is in the round, if its shard is free.
            self.committed.mark_unchanged();
            let now = tokio::time::Instant::now;
            match self.round(&mut connection).await {
                Ok(Round::Moved { full }) => {
                    (failures, contended) = (0, 0);
                    if !full {
                        self.pause(now() + GATHERING, false).await;
                    }
                }
                Ok(Round::Idle { others }) => {
                    failures = 0;
                    contended = if others { contended + 1 } else { 0 };
                    // Another relay may have read its shards just before what this one was woken for.
                    let poll = if others { doubled(contended).min(self.poll) } else { self.poll };
                    let due = self.waiting.next();
                    self.pause(due.unwrap_or(now() + poll).min(now() + poll), true).await;
                }
                Ok(Round::Stuck) => {
                    failures += 1;
                    self.pause(now() + doubled(failures), false).await;
                }
                Err(error) => {
                    let schema = &self.outbox.inner.schema;
                    tracing::warn!(%error, %schema, "the relay of the outbox cannot use the database: it tries again");
                    connection = None;
                    failures += 1;
                    self.pause(now() + doubled(failures), false).await;
                }
            }
        }
    }

    async fn pause(&mut self, until: tokio::time::Instant, unless_woken: bool) {
        tokio::select! {
            () = sleep_until(until) => {}
            _ = self.committed.changed(), if unless_woken => {}
            _ = self.stopping.changed() => {}
        }
    }

    /// A statement of a lane. Where sessions do not last it has no name.
    fn query(&self, sql: &SqlStr) -> Query<'static, Postgres, PgArguments> {
        sqlx::query(sql.clone()).persistent(self.route.keeps() == Keeps::Sessions)
    }

    /// What happens if it ends anywhere: before the commit nothing is deleted, so what was sent is sent again; there is nothing to do after it.
    async fn round(&mut self, held: &mut Option<Opened>) -> Result<Round, SetupError> {
        // "There is nothing to do" is believed from the primary alone.
        if let Some(opened) = held
            && !opened.still_holds().await?
        {
            *held = None;
        }
        let opened = match held {
            Some(opened) => opened,
            None => held.insert(self.route.open().await?),
        };
        let begin = opened.begin(self.route.settings());
        let connection = opened.connection();
        let queries = &self.outbox.inner.queries;
        let keeps = self.route.keeps();
        // Most looks are this one statement. It needs settings, so where sessions do not last it is left out.
        let work = match keeps {
            Keeps::Sessions => {
                shards_of(&in_time(self.query(&queries.work).bind(&self.shards).fetch_all(&mut *connection)).await?)?
            }
            Keeps::Transactions => self.shards.clone(),
        };
        if work.is_empty() {
            return Ok(Round::Idle { others: false });
        }
        let mut tx = match keeps {
            Keeps::Sessions => in_time(connection.begin()).await?,
            Keeps::Transactions => in_time(connection.begin_with(begin)).await?,
        };
        let shards = shards_of(&in_time(self.query(&queries.lock).bind(&work).fetch_all(&mut *tx)).await?)?;
        // A statement of its own: its snapshot is younger than the lock, so what the last one deleted is gone.
        let (topics, keys) = self.waiting.now();
        let read = self.query(&queries.read).bind(&shards).bind(i64::from(self.batch)).bind(BYTES);
        let rows = in_time(read.bind(topics).bind(keys).fetch_all(&mut *tx)).await?;
        let read_at = Instant::now();
        if rows.is_empty() {
            in_time(tx.rollback()).await?;
            return Ok(Round::Idle { others: keeps == Keeps::Sessions && shards.len() < work.len() });
        }
        let full = rows.len() >= usize::try_from(self.batch).unwrap_or(usize::MAX);
        let rows = rows.iter().map(Row::read).collect::<Result<_, _>>()?;
        let Batch { sending, messages, mut aside } = Batch::of(rows);
        let answers = self.send(&mut tx, &messages).await;
        let took = read_at.elapsed();
        let plan = Plan::of(sending, answers);
        plan.sent.iter().for_each(|(_, age)| self.counters.published(*age + took));
        if let Some(((topic, key), reason)) = plan.waiting.iter().next() {
            let keys = plan.waiting.len();
            tracing::warn!(%topic, %key, %reason, keys, "events wait for the broker");
            self.counters.unavailable();
        }
        self.waiting.add(plan.waiting.into_keys());
        aside.extend(plan.aside);
        let sent: Vec<Place> = plan.sent.into_iter().map(|(place, _)| place).collect();
        if sent.is_empty() && aside.is_empty() {
            in_time(tx.rollback()).await?;
            return Ok(Round::Stuck);
        }
        self.settle(&mut tx, &sent, &aside, plan.freed).await?;
        in_time(tx.commit()).await?;
        for ((_, seq), reason) in aside.iter().filter_map(|(place, reason)| Some((place, reason.as_ref()?))) {
            tracing::error!(seq, %reason, "an event is parked, and its key with it");
            self.counters.refused();
        }
        Ok(Round::Moved { full })
    }

    /// Publishes, and keeps the transaction alive meanwhile: that of a frozen process ends.
    async fn send(&self, tx: &mut Transaction<'_, Postgres>, messages: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        if messages.is_empty() {
            return vec![];
        }
        let tracing = self.outbox.inner.tracing.clone().over(self.transport.system());
        let sendings: Vec<UnderWay> =
            messages.iter().map(|Outgoing { topic, message }| tracing.forward(topic, message)).collect();
        let mut publishing = pin!(AssertUnwindSafe(self.transport.publish(messages)).catch_unwind());
        let mut connected = true;
        let answers = loop {
            tokio::select! {
                answers = &mut publishing => break answers,
                () = sleep(self.lease / 3), if connected => {
                    connected = matches!(timeout(self.lease, tx.ping()).await, Ok(Ok(())));
                }
            }
        };
        let answers = answers.unwrap_or_else(|_| {
            tracing::error!("the transport panicked: what it was to publish is tried again");
            vec![]
        });
        for (answer, sending) in answers.iter().zip(sendings) {
            let _ = answer.as_ref().inspect_err(|error| sending.failed(*error));
        }
        answers
    }

    async fn settle(
        &self,
        tx: &mut Transaction<'_, Postgres>,
        sent: &[Place],
        aside: &[(Place, Option<String>)],
        freed: Vec<Key>,
    ) -> Result<(), sqlx::Error> {
        let queries = &self.outbox.inner.queries;
        if !sent.is_empty() {
            let (shards, seqs): (Vec<i16>, Vec<i64>) = sent.iter().copied().unzip();
            in_time(self.query(&queries.sent).bind(shards).bind(seqs).execute(&mut **tx)).await?;
        }
        if !aside.is_empty() {
            let (shards, seqs): (Vec<i16>, Vec<i64>) = aside.iter().map(|(place, _)| *place).unzip();
            let reasons: Vec<Option<&str>> = aside.iter().map(|(_, reason)| reason.as_deref()).collect();
            let park = self.query(&queries.park).bind(shards).bind(seqs).bind(reasons);
            in_time(park.execute(&mut **tx)).await?;
        }
        if !freed.is_empty() {
            let (topics, keys): (Vec<String>, Vec<String>) = freed.into_iter().unzip();
            in_time(self.query(&queries.free).bind(topics).bind(keys).execute(&mut **tx)).await?;
        }
        Ok(())
    }
}

fn shards_of(rows: &[PgRow]) -> Result<Vec<i16>, sqlx::Error> {
    rows.iter().map(|row| row.try_get("shard")).collect()
}

/// The pause after so many failures in a row.
fn doubled(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE)
}
