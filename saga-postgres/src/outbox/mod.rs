//! Events that leave if and only if the transaction that wrote them committed: the *transactional outbox*.
//!
//! ```no_run
//! use saga_core::{participant::Event, transport::Transport};
//! use saga_postgres::PgOutbox;
//! use serde::{Deserialize, Serialize};
//! # use std::sync::Arc;
//!
//! #[derive(Serialize, Deserialize)]
//! struct OrderConfirmed { order: u64 }
//! impl Event for OrderConfirmed {
//!     const TYPE: &'static str = "order.confirmed.v1";
//!     const TOPIC: &'static str = "order.events";
//! }
//!
//! # async fn run(pool: sqlx::PgPool, transport: Arc<dyn Transport>) -> Result<(), Box<dyn std::error::Error>> {
//! let outbox = PgOutbox::new(pool.clone(), "orders");
//! outbox.migrate().await?;
//! let relay = outbox.relay(transport).start().await?; // here, or in another process
//!
//! let mut tx = pool.begin().await?;
//! sqlx::query("UPDATE orders SET confirmed = true WHERE id = 4711").execute(&mut *tx).await?;
//! outbox.publish(&mut tx, "order-4711", &OrderConfirmed { order: 4711 }).await?;
//! outbox.commit(tx).await?; // the relay of this process publishes it at once
//!
//! relay.stop().await;
//! # Ok(()) }
//! ```
//!
//! # What is promised
//!
//! 1. *If and only if.* An event of a transaction that rolled back, or to a savepoint before it, never leaves. One of a transaction that committed leaves,
//!    whatever dies, as soon as a relay, the database and the broker live. (Commit with `synchronous_commit` on, as is the default: a transaction that does not wait for the
//!    disk can be lost in a crash after its events were seen and have left.)
//! 2. *At least once.* A relay that dies between the broker's answer and the deletion of the row leaves a repeat behind, under the same message id. Receivers drop it by
//!    that, as an [`Inbox`](saga_core::participant::Inbox) does.
//! 3. *In order per key*: the first occurrences of events of one key and topic leave in the order in which they were written, between transactions of which one wrote after the
//!    other had committed. That is the case when a transaction locks what the key stands for before it publishes: the order's row is updated, then
//!    the event is published. It is also the case within one transaction. Repeats may come later.
//! 4. *Topics do not wait for each other*: one that is away, slow or silent holds up the others for half a second when
//!    that is found out. *Keys do not wait for each other* either, save that a broker that does not answer for some
//!    keys of a topic holds up those of that topic that travel with them.
//! 5. *Nothing is in the way for ever.* What the broker refuses for good is [parked](PgOutbox::parked), with what comes behind it under the same key, until a
//!    person decides. What is too large is an error at [`publish`](PgOutbox::publish).
//!
//! There is deliberately no lock by key in `publish`. Two transactions that publish to two keys in different orders would deadlock, and nobody looks for that behind
//! an insert. Transactions that change the same thing at the same time lock its row anyway; where nothing is locked, the two events
//! have no order to keep.
//!
//! # How it keeps them
//!
//! Keys are spread over 64 *shards*. A relay, in a *round*: locks the shards that have events and are free; reads the
//! oldest events of each; hands them to the transport in one call for each topic; deletes what was acknowledged;
//! commits, which frees the shards. Whoever is free takes what is free, so any number of nodes can run relays, and
//! there is nothing to configure, no leader and no hand-over.
//!
//! **The lock is there to save work; the order does not hang on it.** Every relay begins with the oldest event of a key that is left, and all
//! before that one were acknowledged. It sends without a gap, and after an event that was not accepted no later one of the key. So whatever several relays send at once, and however
//! late one of them does it, what has been published of a key is at every moment an unbroken beginning of it: what comes late is a repeat.
//!
//! **The lock is an advisory one of the transaction**, taken without waiting. It ends with its session: a relay that is
//! killed frees its shards as soon as the server sees the socket close; one that is frozen, or cut off, or whose
//! machine lost its power, because the server ends a transaction that says nothing for [a lease](RelayOptions::lease)
//! (a healthy one that waits for its broker speaks up three times in that time). An advisory lock writes nothing and
//! takes no transaction id, so an open round does not keep vacuum from its work. Nobody waits for it but the verbs of
//! operators, one shard at a time, and a relay that gives back what waited behind an event whose answer came late, in
//! the shards' order: it has no part in any deadlock.
//!
//! **There is no cursor.** An event with a lower number may commit after one with a higher number, so a relay begins at
//! the first one that there may be. It passes over the numbers of which it knows that nobody can still commit one, and
//! there it knows of each topic where it begins. So what was sent costs nothing, also when a transaction that stays
//! open for long keeps vacuum from it; nor do the events of a topic that is left alone. Both are looked up anew, with a
//! whole look, once a second at most and for a twentieth of the time at most. Only a transaction that has itself
//! *published* and stays open makes a relay pass what was written since, as long as it lasts.
//!
//! Rows are never updated, only inserted and deleted; the relay vacuums behind itself if its user owns the table, and
//! autovacuum is set to follow closely.
//!
//! **Each topic answers for itself.** A round waits half a second for a topic. If other topics have events then, it
//! goes on without that one: the call stays under way, nothing else of the topic is sent, and what the broker took is
//! deleted when it says so. Meanwhile the shard is free: another relay may send the same events, which makes repeats. A
//! topic that took nothing of eight keys or more is left alone for a second at first, for five in the end, and is then
//! asked with an event a shard; it is back with the first that it takes. What may be under way in this way is bounded
//! (4,000 events or 32 MiB a lane): beyond that, the oldest call is given up, and its topic asked again later.
//!
//! **A relay deletes without waiting for the disk** (`synchronous_commit = off`): what a crash of the server brings back is a repeat.
//!
//! **Its connections are its own**, one a lane, made as those of the pool are: a broker that is slow takes no
//! connection from the service. Through a pooler in transaction mode it sets its parameters in each transaction.
//! `publish` works through any pooler: its statement has no name, since a name could be another client's there. That is
//! one round trip more, which [`publish_all`](PgOutbox::publish_all) takes once for all.
//!
//! # Parked events
//!
//! A broker refuses what is too large for a topic, or what goes to a topic that may not be written. The first refused event of a key goes to `saga_outbox_parked`
//! with the reason; later ones of the key follow without one. Only those that travelled in the very call in which it was refused may have left before it.
//! [`PgOutbox::unpark`] has the refused one tried again, and the others follow when the broker has it; [`PgOutbox::discard`] gives it up and lets
//! the others go. [`PgOutbox::unpark_topic`] is for a topic that was put right.
//!
//! # What to watch
//!
//! [`PgOutbox::lag`] says how many events wait and since when, and [`Relay::numbers`] how long they took from the insert to the broker's answer. A parked event
//! deserves an alarm.
//!
//! # Debezium instead of the relay
//!
//! The columns are those of Debezium's outbox event router: it publishes the same bytes to the same topics under the
//! same keys. `specversion`, which nobody here reads or writes, is for the header `ce_specversion`. The guide has the
//! whole connector, and what differs. Rows are then yours to delete.

mod calls;
mod error;
mod heads;
mod lane;
mod numbers;
mod operator;
mod plan;
mod queries;
mod relay;
mod row;
mod settle;
mod topics;
mod vacuum;

pub use error::OutboxError;
pub use numbers::{Latency, Numbers};
pub use operator::{Lag, Parked};
pub use relay::{Relay, RelayOptions};

use crate::{SetupError, migrations};
use numbers::Counters;
use queries::OutboxQueries;
use row::Columns;
use saga_core::{
    Encoded,
    message::Message,
    participant::Event,
    trace::Tracing,
    transport::{Outgoing, Transport},
};
use sqlx::{PgConnection, PgPool, Postgres, SqlStr, Transaction, postgres::PgArguments, query::Query};
use std::sync::Arc;
use tokio::sync::watch;

/// Keys are spread over so many shards. Fixed: it is written into every row.
const SHARDS: i16 = 64;

/// How many bytes a topic and a key may have together: no index of Postgres takes much more. The table checks it too.
const LONGEST_KEY: usize = 2_000;

/// How a [`PgOutbox`] is set up. From [`PgOutbox::options`].
#[derive(Clone, Debug)]
pub struct PgOutboxOptions {
    pool: PgPool,
    source: String,
    schema: String,
    max_message_bytes: usize,
    edit: fn(&str, String) -> String,
}

impl PgOutboxOptions {
    /// The schema that holds the tables: the one of the [`PgStore`](crate::PgStore) if there is one. Defaults to `saga`.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// How many bytes an event may have in all, with its key and attributes. No more than the transport takes: a relay checks that at
    /// its start. Defaults to 1,000,000.
    pub const fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// For this crate's own tests: changes statements, to show what breaks without a rule.
    #[doc(hidden)]
    pub const fn edit_sql(mut self, edit: fn(&str, String) -> String) -> Self {
        self.edit = edit;
        self
    }

    /// The outbox. Asks nothing of the database yet.
    ///
    /// # Errors
    /// [`SetupError::SchemaName`].
    pub fn build(self) -> Result<PgOutbox, SetupError> {
        migrations::check_name(&self.schema)?;
        Ok(PgOutbox::of(self))
    }
}

/// Where events are written in your own transaction, to leave when it commits. See [the module](self) for what is promised. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PgOutbox {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pool: PgPool,
    source: String,
    schema: String,
    max_message_bytes: usize,
    queries: OutboxQueries,
    tracing: Tracing,
    /// Marked when something was committed.
    committed: watch::Sender<()>,
}

impl PgOutbox {
    /// An outbox in the schema `saga`, for events of `source`: the service's name, or another URI reference.
    pub fn new(pool: PgPool, source: impl Into<String>) -> Self {
        Self::of(Self::options(pool, source))
    }

    /// More than the pool and the source.
    pub fn options(pool: PgPool, source: impl Into<String>) -> PgOutboxOptions {
        PgOutboxOptions {
            pool,
            source: source.into(),
            schema: "saga".into(),
            max_message_bytes: 1_000_000,
            edit: |_, sql| sql,
        }
    }

    fn of(options: PgOutboxOptions) -> Self {
        let queries = OutboxQueries::new(&options.schema, options.edit);
        let PgOutboxOptions { pool, source, schema, max_message_bytes, .. } = options;
        let (tracing, committed) = (Tracing::default(), watch::Sender::new(()));
        let inner = Inner { pool, source, schema, max_message_bytes, queries, tracing, committed };
        Self { inner: Arc::new(inner) }
    }

    /// Creates the schema and its tables, or brings them to this version of the library: all of this crate's, as
    /// [`PgStore::migrate`](crate::PgStore::migrate) does. Every process may call it at its start.
    ///
    /// # Errors
    /// [`SetupError::Migration`], [`SetupError::TooNew`], [`SetupError::Postgres`].
    pub async fn migrate(&self) -> Result<(), SetupError> {
        migrations::run_on(&self.inner.pool, &self.inner.schema).await.map(drop)
    }

    /// A statement for a user's connection. It has no name: where a pooler shares sessions between transactions, that
    /// could be another client's.
    fn query(&self, sql: &SqlStr) -> Query<'static, Postgres, PgArguments> {
        sqlx::query(sql.clone()).persistent(false)
    }

    /// Writes an event about `key` in a transaction. It leaves if and only if that commits.
    ///
    /// Lock what the key stands for first, by a write or `FOR UPDATE`, if other transactions may publish for the same key at the same time: that is
    /// what gives their events an order.
    ///
    /// # Errors
    /// [`OutboxError::TooLarge`], [`OutboxError::KeyTooLong`], [`OutboxError::Codec`]: the transaction is none the worse. [`OutboxError::Postgres`]: it is lost, as always in Postgres.
    pub async fn publish<E: Event>(
        &self,
        connection: &mut PgConnection,
        key: &str,
        event: &E,
    ) -> Result<(), OutboxError> {
        let Outgoing { topic, message } = self.event(key, event)?;
        self.publish_message(connection, &topic, &message).await
    }

    /// [`publish`](Self::publish) of a message that was made by hand: with headers such as `traceparent`, with attributes, or with other data than JSON.
    ///
    /// # Errors
    /// As [`publish`](Self::publish), and [`OutboxError::Id`].
    pub async fn publish_message(
        &self,
        connection: &mut PgConnection,
        topic: &str,
        message: &Message,
    ) -> Result<(), OutboxError> {
        let mut message = message.clone();
        self.inner.tracing.create(topic, &mut message);
        let Columns { id, traceparent, headers, extensions } = self.columns(topic, &message)?;
        self.query(&self.inner.queries.publish)
            .bind(shard_of(&message.key))
            .bind(id)
            .bind(topic)
            .bind(&message.key)
            .bind(&message.kind)
            .bind(&message.source)
            .bind(&message.subject)
            .bind(message.time)
            .bind(&message.content_type)
            .bind(traceparent)
            .bind(headers)
            .bind(extensions)
            .bind(&message.data)
            .execute(connection)
            .await?;
        Ok(())
    }

    /// An event for [`publish_all`](Self::publish_all), as part of what is done at present: each may belong to a trace of its own.
    ///
    /// # Errors
    /// [`OutboxError::Codec`].
    pub fn event<E: Event>(&self, key: &str, event: &E) -> Result<Outgoing, OutboxError> {
        let mut message = Message::event(&self.inner.source, E::TYPE, key, &Encoded::of(event)?);
        self.inner.tracing.create(E::TOPIC, &mut message);
        Ok(Outgoing { topic: E::TOPIC.into(), message })
    }

    /// [`publish_message`](Self::publish_message) of many, in their order and in one statement: a fraction of what it costs to write one after the other. If one cannot be written, none is.
    ///
    /// # Errors
    /// As [`publish_message`](Self::publish_message).
    pub async fn publish_all(
        &self,
        connection: &mut PgConnection,
        mut events: Vec<Outgoing>,
    ) -> Result<(), OutboxError> {
        if events.is_empty() {
            return Ok(());
        }
        for Outgoing { topic, message } in &mut events {
            self.inner.tracing.create(topic, message);
        }
        let columns = events.iter().map(|Outgoing { topic, message }| self.columns(topic, message));
        let columns: Vec<Columns> = columns.collect::<Result<_, _>>()?;
        let messages = || events.iter().map(|event| &event.message);
        self.query(&self.inner.queries.publish_all)
            .bind(messages().map(|message| shard_of(&message.key)).collect::<Vec<_>>())
            .bind(columns.iter().map(|columns| columns.id).collect::<Vec<_>>())
            .bind(events.iter().map(|event| event.topic.as_str()).collect::<Vec<_>>())
            .bind(messages().map(|message| message.key.as_str()).collect::<Vec<_>>())
            .bind(messages().map(|message| message.kind.as_str()).collect::<Vec<_>>())
            .bind(messages().map(|message| message.source.as_str()).collect::<Vec<_>>())
            .bind(messages().map(|message| message.subject.as_deref()).collect::<Vec<_>>())
            .bind(messages().map(|message| message.time).collect::<Vec<_>>())
            .bind(messages().map(|message| message.content_type.as_str()).collect::<Vec<_>>())
            .bind(columns.iter().map(|columns| columns.traceparent.as_deref()).collect::<Vec<_>>())
            .bind(columns.iter().map(|columns| columns.headers.as_deref()).collect::<Vec<_>>())
            .bind(columns.iter().map(|columns| columns.extensions.as_deref()).collect::<Vec<_>>())
            .bind(messages().map(|message| message.data.as_slice()).collect::<Vec<_>>())
            .execute(connection)
            .await?;
        Ok(())
    }

    /// What has to be made of a message, if it can be written.
    fn columns(&self, topic: &str, message: &Message) -> Result<Columns, OutboxError> {
        let limit = self.inner.max_message_bytes;
        let bytes = row::bytes(message);
        if bytes > limit {
            return Err(OutboxError::TooLarge { kind: message.kind.clone(), key: message.key.clone(), bytes, limit });
        }
        let (bytes, limit) = (topic.len() + message.key.len(), LONGEST_KEY);
        if bytes > limit {
            return Err(OutboxError::KeyTooLong { topic: topic.into(), key: message.key.clone(), bytes, limit });
        }
        let id = message.id.parse().map_err(|_| OutboxError::Id(message.id.clone()))?;
        Columns::of(id, message)
    }

    /// Commits, then [wakes](Self::wake) the relay.
    ///
    /// # Errors
    /// When the commit failed, or its answer was lost. In the second case the events leave if it did happen, a little later.
    pub async fn commit(&self, tx: Transaction<'_, Postgres>) -> Result<(), sqlx::Error> {
        let committed = tx.commit().await;
        self.wake();
        committed
    }

    /// Tells the relays of this process that a transaction with events in it has committed. They find out by themselves too, a little later. Costs
    /// next to nothing, however often it is called.
    pub fn wake(&self) {
        self.inner.committed.send_replace(());
    }

    /// A relay, which publishes what was written, by this process and by others.
    pub fn relay(&self, transport: Arc<dyn Transport>) -> RelayOptions {
        RelayOptions::new(self.clone(), transport)
    }

    /// Every statement of the outbox, with its name.
    #[doc(hidden)]
    pub fn statements(&self) -> Vec<(&'static str, String)> {
        self.inner.queries.all().into_iter().map(|(name, sql)| (name, sql.as_str().to_owned())).collect()
    }
}

/// FNV-1a, the same for ever and in any language: rows that wait were sharded by an earlier version, or by another writer.
fn shard_of(key: &str) -> i16 {
    let hash = key
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    i16::try_from(hash % SHARDS.unsigned_abs() as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shard_of_a_key_never_changes() {
        let known = ["", "a", "order-4711", "0190a5d2-7c1e-7000-8000-000000000000"].map(shard_of);
        assert_eq!(known, [37, 12, 61, 56]);
    }

    #[test]
    fn keys_are_spread_over_all_shards() {
        let mut counts = [0; SHARDS as usize];
        (0..6400).for_each(|n| counts[shard_of(&format!("order-{n}")) as usize] += 1);
        assert!(counts.iter().all(|count| (50..200).contains(count)), "{counts:?}");
    }
}
