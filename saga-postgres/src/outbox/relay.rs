use super::{Counters, Numbers, OutboxError, PgOutbox, SHARDS, lane::Lane, vacuum};
use saga_core::transport::Transport;
use sqlx::{Connection, Executor, PgConnection, postgres::PgConnectOptions};
use std::{fmt, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinSet};

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

    /// How many events of one shard a round takes at most. Defaults to 200.
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
    /// [`OutboxError::Limits`], [`OutboxError::NotMigrated`], [`OutboxError::Postgres`].
    pub async fn start(self) -> Result<Relay, OutboxError> {
        let Self { outbox, transport, lanes, batch, poll, lease } = self;
        let inner = &outbox.inner;
        let limits = (inner.max_message_bytes, transport.max_message_bytes());
        if limits.0 > limits.1 {
            return Err(OutboxError::Limits { outbox: limits.0, transport: limits.1 });
        }
        let mut connection = connect(&outbox, lease).await?;
        let prepared = connection.prepare(inner.queries.read.clone()).await;
        prepared.map_err(|source| match source.as_database_error().and_then(|error| error.code()).as_deref() {
            Some("42P01" | "3F000") => OutboxError::NotMigrated { schema: inner.schema.clone(), source },
            _ => source.into(),
        })?;
        connection.close().await?;

        let counters = Arc::new(Counters::default());
        let stopping = watch::Sender::new(false);
        let mut running = JoinSet::new();
        for lane in 0..lanes {
            let shards = (0..SHARDS).filter(|shard| shard.unsigned_abs() % lanes == lane).collect();
            let lane = Lane {
                outbox: outbox.clone(),
                transport: transport.clone(),
                shards,
                batch,
                poll,
                lease,
                counters: counters.clone(),
                committed: inner.committed.subscribe(),
                stopping: stopping.subscribe(),
                waiting: Default::default(),
            };
            running.spawn(lane.run());
        }
        let mut vacuum = JoinSet::new();
        vacuum.spawn(vacuum::behind(counters.clone(), outbox.clone(), lease));
        Ok(Relay { running, stopping, counters, _vacuum: vacuum })
    }
}

/// A connection of a relay's own, made as the pool's are made now. It speaks for itself when it is looked at, ends what nobody waits for, and does not wait for
/// the disk. Statements are planned once for a connection, by indexes: a plan made while the table was empty has to be right when it is large.
pub(super) async fn connect(outbox: &PgOutbox, lease: Duration) -> Result<PgConnection, sqlx::Error> {
    let PgOutbox { inner } = outbox;
    let user = PgConnectOptions::clone(&inner.pool.connect_options());
    let lease = lease.as_millis().max(1).to_string();
    let session = user.application_name(&format!("{} outbox relay", inner.schema)).options([
        ("default_transaction_isolation", "read committed"),
        ("synchronous_commit", "off"),
        ("idle_in_transaction_session_timeout", lease.as_str()),
        ("lock_timeout", "5000"),
        ("statement_timeout", "30000"),
        ("plan_cache_mode", "force_generic_plan"),
        ("enable_seqscan", "off"),
        ("jit", "off"),
    ]);
    PgConnection::connect_with(&session).await
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
