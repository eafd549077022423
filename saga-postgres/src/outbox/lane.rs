//! One of a relay's lanes: a connection, a share of the shards, one round after the other.

use super::{
    Counters, PgOutbox,
    calls::{Answer, Calls, PATIENCE},
    heads::Heads,
    plan::{Batch, Place, Plan},
    row::Row,
    settle::{Sent, Settling},
    topics::{Limits, Topics},
};
use crate::{
    SetupError,
    connection::{Keeps, Opened, Route, in_time},
    portion::Portion,
};
use sqlx::{
    Connection, PgConnection, Postgres, Row as _, SqlStr, Transaction,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{sleep_until, timeout},
};

/// How many bytes of one shard a round takes at most; a single event may be larger.
const BYTES: i64 = 512 * 1024;
/// How many bytes of all of its shards a round takes at most. Where a network does not bring so much in time, it takes
/// less of each shard, and of fewer shards rather than less than this of one.
pub(super) const ALL_BYTES: i64 = 16 << 20;
const LEAST_BYTES: i64 = 16 << 10;
/// After a round with less than a batch, what commits within this time goes together in the next.
const GATHERING: Duration = Duration::from_millis(10);
/// The pause after the first round that failed; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A round that waits for its broker looks no more often than this whether others wait for it.
const LOOK: Duration = Duration::from_millis(50);

pub(super) struct Lane {
    pub(super) outbox: PgOutbox,
    pub(super) route: Arc<Route>,
    pub(super) shards: Vec<i16>,
    pub(super) batch: u32,
    pub(super) poll: Duration,
    pub(super) lease: Duration,
    pub(super) counters: Arc<Counters>,
    pub(super) committed: watch::Receiver<()>,
    pub(super) stopping: watch::Receiver<bool>,
    pub(super) heads: Heads,
    pub(super) topics: Topics,
    pub(super) portion: Portion,
    pub(super) calls: Calls,
    /// What the broker has, and the table has still.
    pub(super) sent: Sent,
    /// What topics refused too late for their rounds.
    pub(super) refused: HashMap<String, HashMap<Place, String>>,
}

/// How a round ended.
enum Round {
    /// Events were read, and are sent or left alone.
    Moved {
        /// It was a batch or more.
        full: bool,
    },
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
                    let due = self.topics.next();
                    self.pause(due.unwrap_or(now() + poll).min(now() + poll), true).await;
                }
                Err(error) => {
                    self.failed(&error);
                    connection = None;
                    failures += 1;
                    self.pause(now() + doubled(failures), false).await;
                }
            }
        }
        while let Some(answer) = self.calls.next().await {
            let (topic, plan) = self.answered(answer);
            self.keep(&topic, plan);
        }
        if let Err(error) = self.settle_late(&mut connection).await {
            self.failed(&error);
        }
    }

    fn failed(&self, error: &SetupError) {
        let schema = &self.outbox.inner.schema;
        tracing::warn!(%error, %schema, "the relay of the outbox cannot use the database: it tries again");
    }

    /// What comes back from the broker ends it too.
    async fn pause(&mut self, until: tokio::time::Instant, unless_woken: bool) {
        tokio::select! {
            Some(answer) = self.calls.next() => {
                let (topic, plan) = self.answered(answer);
                self.keep(&topic, plan);
            }
            () = sleep_until(until) => {}
            _ = self.committed.changed(), if unless_woken => {}
            _ = self.stopping.changed() => {}
        }
    }

    /// A statement of a lane. Where sessions do not last it has no name.
    fn query(&self, sql: &SqlStr) -> Query<'static, Postgres, PgArguments> {
        sqlx::query(sql.clone()).persistent(self.named())
    }

    fn named(&self) -> bool {
        self.route.keeps() == Keeps::Sessions
    }

    fn settling(&self) -> Settling<'_> {
        Settling { queries: &self.outbox.inner.queries, named: self.named() }
    }

    /// The connection, looked at. "There is nothing to do" is believed from the primary alone.
    async fn connected<'c>(&mut self, held: &'c mut Option<Opened>) -> Result<&'c mut Opened, SetupError> {
        if let Some(opened) = held
            && !opened.still_holds().await?
        {
            *held = None;
        }
        match held {
            Some(opened) => Ok(opened),
            None => {
                // It may lead to another server.
                self.heads = Heads::default();
                Ok(held.insert(self.route.open().await?))
            }
        }
    }

    async fn begin<'c>(&self, opened: &'c mut Opened) -> Result<Transaction<'c, Postgres>, sqlx::Error> {
        let begin = opened.begin(self.route.settings());
        match self.route.keeps() {
            Keeps::Sessions => in_time(opened.connection().begin()).await,
            Keeps::Transactions => in_time(opened.connection().begin_with(begin)).await,
        }
    }

    async fn look_at_heads(&mut self, connection: &mut PgConnection, limits: &Limits) -> Result<(), sqlx::Error> {
        let named = self.named();
        self.heads.look(connection, &self.outbox.inner.queries, named, &self.shards, limits).await
    }

    /// Those of its shards that have something to be read.
    async fn work(&mut self, connection: &mut PgConnection, limits: &Limits) -> Result<Vec<i16>, sqlx::Error> {
        let began = tokio::time::Instant::now();
        let Heads { settled, shards, topics, .. } = &self.heads;
        let work = self.query(&self.outbox.inner.queries.work).bind(&self.shards).bind(settled);
        let work = work.bind(shards).bind(topics).bind(self.heads.from(limits)).bind(&limits.away).bind(&limits.keys.0);
        let rows = in_time(work.bind(&limits.keys.1).fetch_all(connection)).await?;
        self.heads.spent += began.elapsed();
        shards_of(&rows)
    }

    async fn read(
        &mut self,
        connection: &mut PgConnection,
        locked: &[i16],
        limits: &Limits,
    ) -> Result<Vec<Row>, sqlx::Error> {
        let began = tokio::time::Instant::now();
        let Heads { settled, shards, topics, .. } = &self.heads;
        let read = self.query(&self.outbox.inner.queries.read).bind(locked).bind(settled);
        let read = read.bind(shards).bind(topics).bind(self.heads.from(limits)).bind(&limits.away).bind(&limits.keys.0);
        let read = read.bind(&limits.keys.1).bind(&limits.own.0).bind(&limits.own.1);
        let shards = i64::try_from(locked.len()).unwrap_or(i64::MAX).max(1);
        let bytes = (self.portion.bytes() / shards).clamp(1, BYTES);
        let read = read.bind(i64::from(self.batch)).bind(bytes).bind(limits.usual);
        let rows = self.portion.tried(in_time(read.fetch_all(connection)).await)?;
        self.heads.spent += began.elapsed();
        rows.iter().map(Row::read).collect()
    }

    /// Leaves out some shards if there are too many to take of each: others each time. Whether it did.
    fn no_more_than_a_portion(&self, shards: &mut Vec<i16>) -> bool {
        let most = usize::try_from(self.portion.bytes() / LEAST_BYTES).unwrap_or(usize::MAX).max(1);
        let too_many = shards.len() > most;
        if too_many {
            fastrand::shuffle(shards);
            shards.truncate(most);
            shards.sort_unstable();
        }
        too_many
    }

    /// What happens if it ends anywhere: before the commit nothing is deleted, so what was sent is sent again, unless
    /// this lane lives to delete it; there is nothing to do after it.
    async fn round(&mut self, held: &mut Option<Opened>) -> Result<Round, SetupError> {
        self.settle_late(held).await?;
        let opened = self.connected(held).await?;
        let keeps = self.route.keeps();
        let limits = self.topics.now();
        // Most looks are this one statement. It needs settings, so where sessions do not last it is left out.
        let mut work = match keeps {
            Keeps::Sessions => {
                self.look_at_heads(opened.connection(), &limits).await?;
                self.work(opened.connection(), &limits).await?
            }
            Keeps::Transactions => self.shards.clone(),
        };
        let some = self.no_more_than_a_portion(&mut work);
        if work.is_empty() {
            return Ok(Round::Idle { others: false });
        }
        let mut tx = self.begin(opened).await?;
        if keeps == Keeps::Transactions {
            self.look_at_heads(&mut tx, &limits).await?;
        }
        let locked =
            shards_of(&in_time(self.query(&self.outbox.inner.queries.lock).bind(&work).fetch_all(&mut *tx)).await?)?;
        // A statement of its own: its snapshot is younger than the lock, so what the last one deleted is gone.
        let rows = self.read(&mut tx, &locked, &limits).await?;
        if rows.is_empty() {
            in_time(tx.rollback()).await?;
            return Ok(Round::Idle { others: some || (keeps == Keeps::Sessions && locked.len() < work.len()) });
        }
        let full = rows.len() >= usize::try_from(self.batch).unwrap_or(usize::MAX);
        let read: HashSet<String> = rows.iter().map(|row| row.topic.clone()).collect();
        let (mut aside, calls) = self.send(rows);
        let mut sent = Sent::default();
        let answered = self.answers(&mut tx, calls, &mut sent, &mut aside).await;
        let settled = match answered {
            Ok(()) => self.settle(tx, &sent, &aside).await,
            Err(error) => Err(error),
        };
        match settled {
            Ok(true) => {}
            Ok(false) => read.iter().for_each(|topic| self.topics.put_off(topic)),
            Err(error) => {
                self.sent.append(sent);
                return Err(error.into());
            }
        }
        Ok(Round::Moved { full })
    }

    /// Begins a call for each topic. Answers with what is to be put aside without one, and the topics.
    fn send(&mut self, rows: Vec<Row>) -> (Vec<(Place, Option<String>)>, HashSet<String>) {
        let mut topics: BTreeMap<String, Vec<Row>> = BTreeMap::new();
        rows.into_iter().for_each(|row| topics.entry(row.topic.clone()).or_default().push(row));
        let (mut aside, mut calls) = (vec![], HashSet::new());
        for (topic, mut rows) in topics {
            let mut refused = self.refused.remove(&topic).unwrap_or_default();
            for row in &mut rows {
                if let Some(reason) = refused.remove(&(row.shard, row.seq)) {
                    row.outgoing = Err(reason);
                }
            }
            let batch = Batch::of(rows);
            aside.extend(batch.aside);
            if !batch.sending.is_empty() {
                calls.insert(topic.clone());
                self.calls.begin(&mut self.topics, topic, batch.sending, batch.messages);
            }
        }
        (aside, calls)
    }

    /// Waits for the answers to a round's calls, and keeps its transaction alive meanwhile: that of a frozen process
    /// ends. When one takes its time and other topics have events in these shards, the round goes on without it.
    async fn answers(
        &mut self,
        tx: &mut Transaction<'_, Postgres>,
        mut calls: HashSet<String>,
        sent: &mut Sent,
        aside: &mut Vec<(Place, Option<String>)>,
    ) -> Result<(), sqlx::Error> {
        let began = tokio::time::Instant::now();
        let (mut look, mut spoken) = (began, began);
        while !calls.is_empty() {
            let is_waited_for = calls.iter().any(|topic| self.topics.is_waited_for(topic));
            let next_look = if is_waited_for { look.max(began + PATIENCE) } else { look };
            tokio::select! {
                biased;
                Some(answer) = self.calls.next() => {
                    let is_of_this_round = calls.remove(&answer.topic);
                    let (answered, mut plan) = self.answered(answer);
                    if is_of_this_round {
                        sent.take_from(&mut plan);
                        aside.append(&mut plan.aside);
                    } else {
                        self.keep(&answered, plan);
                    }
                }
                () = sleep_until(next_look) => {
                    look = tokio::time::Instant::now() + self.poll.max(LOOK);
                    let limits = self.topics.now();
                    if !self.work(&mut *tx, &limits).await?.is_empty() {
                        self.calls.make_room(&mut self.topics, &calls);
                        break;
                    }
                }
                _ = self.committed.changed() => look = look.min(tokio::time::Instant::now() + LOOK),
                () = sleep_until(spoken + self.lease / 3) => {
                    spoken = tokio::time::Instant::now();
                    if !matches!(timeout(self.lease, tx.ping()).await, Ok(Ok(()))) {
                        break;
                    }
                }
            }
        }
        calls.iter().for_each(|topic| self.topics.left_behind(topic));
        Ok(())
    }

    /// What follows from an answer.
    fn answered(&mut self, answer: Answer) -> (String, Plan) {
        let (took, is_in_time) = (answer.took, answer.is_in_time());
        let Answer { topic, sending, answers, .. } = answer;
        let plan = Plan::of(sending, answers);
        plan.sent.iter().for_each(|(_, age)| self.counters.published(*age + took));
        if let Some(((_, key), reason)) = plan.waiting.iter().next() {
            let keys = plan.waiting.len();
            tracing::warn!(%topic, %key, %reason, keys, "events wait for the broker");
            self.counters.unavailable();
        }
        self.topics.answered(&topic, is_in_time, plan.took, plan.waiting.keys());
        (topic, plan)
    }

    /// What came too late for its round. What was refused is put aside in the next round, which holds the shard and
    /// sees what else there is of its key.
    fn keep(&mut self, topic: &str, mut plan: Plan) {
        self.sent.take_from(&mut plan);
        let refused = plan.aside.into_iter().filter_map(|(place, reason)| Some((place, reason?)));
        let refused: HashMap<Place, String> = refused.collect();
        if !refused.is_empty() {
            self.refused.insert(topic.to_owned(), refused);
        }
    }

    async fn settle_late(&mut self, held: &mut Option<Opened>) -> Result<(), SetupError> {
        if self.sent.is_empty() {
            return Ok(());
        }
        let opened = self.connected(held).await?;
        let (settling, mut tx) = (self.settling(), self.begin(opened).await?);
        settling.lock(&mut tx, &self.sent).await?;
        settling.sent(&mut tx, &self.sent).await?;
        settling.free(&mut tx, &self.sent).await?;
        in_time(tx.commit()).await?;
        self.sent = Sent::default();
        Ok(())
    }

    /// Answers whether all was put aside that was to be.
    async fn settle(
        &mut self,
        mut tx: Transaction<'_, Postgres>,
        sent: &Sent,
        aside: &[(Place, Option<String>)],
    ) -> Result<bool, sqlx::Error> {
        if sent.is_empty() && aside.is_empty() {
            return in_time(tx.rollback()).await.map(|()| true);
        }
        let settling = self.settling();
        settling.sent(&mut tx, sent).await?;
        let parked = settling.park(&mut tx, aside).await?;
        settling.free(&mut tx, sent).await?;
        in_time(tx.commit()).await?;
        let refused = aside.iter().filter_map(|((_, seq), reason)| Some((seq, reason.as_ref()?)));
        for (seq, reason) in refused.filter(|_| parked) {
            tracing::error!(seq, %reason, "an event is parked, and its key with it");
            self.counters.refused();
        }
        Ok(parked)
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
