use super::{
    Counters, Numbers, OutboxError, PgOutbox, SHARDS,
    calls::Calls,
    lane::{ALL_BYTES, Lane},
    topics::Topics,
    vacuum,
};
use crate::{
    SetupError,
    connection::{Route, Settings},
    portion::Portion,
    rehearsal,
};
use saga_core::transport::Transport;
use sqlx::postgres::PgConnectOptions;
use std::{fmt, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinSet, time::timeout};

/// How a [`Relay`] works. From [`PgOutbox::relay`].
pub struct RelayOptions {
    outbox: PgOutbox,
    transport: Arc<dyn Transport>,
    lanes: u16,
    batch: u32,
    poll: Duration,
    lease: Duration,
}

impl RelayOptions {
    pub(super) fn new(outbox: PgOutbox, transport: Arc<dyn Transport>) -> Self {
        let (poll, lease) = (Duration::from_secs(1), Duration::from_secs(5));
        Self { outbox, transport, lanes: 2, batch: 200, poll, lease }
    }

    /// How many rounds go on at once, up to 64. Each has a database connection of its own and its share of the shards. Defaults to 2.
    pub fn lanes(mut self, lanes: u16) -> Self {
        self.lanes = lanes.clamp(1, SHARDS.unsigned_abs());
        self
    }

    /// How many events of one shard a round takes at most. Of a topic it takes fewer at first, and fewer of one that is
    /// slow. Defaults to 200.
    pub fn batch(mut self, events: u32) -> Self {
        self.batch = events.max(1);
        self
    }

    /// How often it looks for what nobody woke it for: events of other processes, and of those that died between the commit and the wake. A look costs a
    /// lane one short statement, so a relay for other processes may look every 20 milliseconds. Defaults to one second.
    pub const fn poll(mut self, poll: Duration) -> Self {
        self.poll = poll;
        self
    }

    /// How soon others take over what a relay was at when it froze or was cut off. One that was killed is followed at once. Defaults to 5 seconds.
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Starts it. It goes on until it is [stopped](Relay::stop), also while the database or the broker is away.
    ///
    /// # Errors
    /// [`OutboxError::Limits`]; [`OutboxError::Setup`] when the tables, the rights or the primary are not there.
    pub async fn start(self) -> Result<Relay, OutboxError> {
        let Self { outbox, transport, lanes, batch, poll, lease } = self;
        let inner = &outbox.inner;
        let limits = (inner.max_message_bytes, transport.max_message_bytes());
        if limits.0 > limits.1 {
            return Err(OutboxError::Limits { outbox: limits.0, transport: limits.1 });
        }
        let route = Arc::new(way(&outbox, lease).await?);
        let own = inner.queries.all().into_iter().filter(|(name, _)| !NOT_PLANNED.contains(name));
        let patience = route.patience();
        let late = || SetupError::Unreachable {
            address: "the outbox's database".into(),
            reason: format!("no answer within {patience:?}"),
        };
        let rehearsed = timeout(patience, rehearsal::of(&route, &inner.schema, own)).await;
        rehearsed.unwrap_or_else(|_| Err(late()))?;

        let counters = Arc::new(Counters::default());
        let stopping = watch::Sender::new(false);
        let mut running = JoinSet::new();
        for lane in 0..lanes {
            let shards = (0..SHARDS).filter(|shard| shard.unsigned_abs() % lanes == lane).collect();
            let lane = Lane {
                outbox: outbox.clone(),
                route: route.clone(),
                shards,
                batch,
                poll,
                lease,
                counters: counters.clone(),
                committed: inner.committed.subscribe(),
                stopping: stopping.subscribe(),
                heads: Default::default(),
                topics: Topics::new(batch),
                portion: Portion::of(ALL_BYTES),
                calls: Calls::new(transport.clone(), &inner.tracing),
                sent: Default::default(),
                refused: Default::default(),
            };
            running.spawn(lane.run());
        }
        let mut vacuum = JoinSet::new();
        vacuum.spawn(vacuum::behind(counters.clone(), outbox.clone(), route));
        Ok(Relay { running, stopping, counters, _vacuum: vacuum })
    }
}

/// A verb of Postgres that has no plan.
const NOT_PLANNED: [&str; 1] = ["vacuum"];

/// The way to connections of a relay's own, made as the pool's are made now. They speak for themselves when they are
/// looked at, end what nobody waits for, and do not wait for the disk.
async fn way(outbox: &PgOutbox, lease: Duration) -> Result<Route, SetupError> {
    let PgOutbox { inner } = outbox;
    let user = PgConnectOptions::clone(&inner.pool.connect_options());
    let named = user.application_name(&format!("{} outbox relay", inner.schema));
    Route::of_a_user(named, Settings::of_a_relay(lease)).await
}

impl fmt::Debug for RelayOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { outbox, lanes, batch, poll, lease, .. } = self;
        f.debug_struct("RelayOptions")
            .field("schema", &outbox.inner.schema)
            .field("lanes", lanes)
            .field("batch", batch)
            .field("poll", poll)
            .field("lease", lease)
            .finish_non_exhaustive()
    }
}

/// A running relay. Dropped without [`stop`](Self::stop) it ends as if its process had died: at once, and what it was sending is sent again.
#[derive(Debug)]
pub struct Relay {
    running: JoinSet<()>,
    stopping: watch::Sender<bool>,
    counters: Arc<Counters>,
    _vacuum: JoinSet<()>,
}

impl Relay {
    /// Lets what is under way end, which takes as long as the transport takes to answer, and begins nothing new.
    pub async fn stop(mut self) {
        self.stopping.send_replace(true);
        while self.running.join_next().await.is_some() {}
    }

    /// What it has done so far.
    pub fn numbers(&self) -> Numbers {
        self.counters.read()
    }
}
