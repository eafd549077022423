//! Sagas in Postgres: the durable [`Store`](saga_core::store::Store) of `saga-core`.
//!
//! ```no_run
//! use saga_core::Engine;
//! use saga_postgres::PgStore;
//! # async fn run<OrderSaga: saga_core::Saga<Deps = ()>>() -> Result<(), Box<dyn std::error::Error>> {
//! let store = PgStore::connect("postgres://app@db.internal/shop").await?;
//! store.migrate().await?; // or run `PgStore::migrations("saga")` yourself
//! let engine = Engine::builder(store).register::<OrderSaga>(())?.start().await?;
//! # Ok(()) }
//! ```
//!
//! Start sagas and cancel them inside your own transactions with [`InTransaction`]; publish events from them through the [`outbox`]. Tests get a throw-away Postgres from `testing`, behind the
//! feature of that name.
//!
//! # How it keeps its promises
//!
//! **The journal is appended, not updated.** `saga` holds one row per saga, written at its start, at a change of status, and at its end; `saga_journal` holds its
//! history, one row an append. A happy saga of four steps costs two writes to the one and four to the other, and a busy engine writes
//! hundreds of sagas in one statement and one commit.
//!
//! One writer, one fence, one mailbox. Each of these rules has a test that shows what breaks without it, in `tests/rules.rs`:
//!
//! 1. *Fence.* Every write of a worker first locks its `saga` rows, in the same statement and in the order of ids, and checks owner and epoch on the rows so
//!    locked. What is locked by somebody else is skipped, and tried again.
//! 2. *Mailbox.* What comes from outside (a cancel, an operator's verb) is inserted into `saga_mailbox` and touches neither row nor journal. The
//!    owner folds it, in the statement that appends. So your open transaction with a cancel in it holds up nobody.
//! 3. *Work is not a lease.* `due_at` says when unowned work is due. A worker has one heartbeat row; what it owned is
//!    due again when the worker was seen to be silent for as long as its lease. A worker that comes back says so, and
//!    its silence is not counted as a death. Claims look at due work and at unread mail, so that mail which commits just
//!    after a release is found. Looks read on where the ones before ended, no further than nothing older can still
//!    appear; now and then one reads everything.
//! 4. *Unknown commits are resolved*: the same append is sent again, and every journal row carries its writer.
//! 5. *Payloads are bytes*, and the view `saga_history` shows them as JSON.
//! 6. *A statement that is refused* for any reason but the connection or contention is halved until the culprit is alone. The culprit is parked.
//!
//! Due times and ages are the database's; that a worker is dead is also seen by the others' clocks. Hints (LISTEN and
//! NOTIFY) make things quick, a poll behind them makes them certain.
//!
//! # Running it
//!
//! Connect to the primary; a URL may name several servers, of which the primary is used. With replicas use synchronous
//! replication: what an asynchronous failover loses is lost. PostgreSQL 15 or newer. The store sets what it needs on
//! its own connections (`lock_timeout`, the isolation level, how statements are planned, ..) and makes sure that it
//! holds. Through a pooler in transaction mode it has to be told: [`PgStoreOptions::transaction_pooler`].
//!
//! # Where it is
//!
//! `connection`: the way to the primary, sessions, the pool. `store`: the store, who is alive, what is checked before
//! the start. `hints`: LISTEN and NOTIFY. `migrations`: the schema, beside other releases. `outbox`, `inbox`,
//! `barrier`: events and participants.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod barrier;
mod connection;
mod error;
mod hints;
mod inbox;
mod migrations;
pub mod outbox;
mod portion;
mod queries;
mod rehearsal;
mod settled;
mod store;
#[cfg(all(feature = "testing", unix))]
pub mod testing;
mod transaction;

pub use barrier::Barrier;
pub use error::SetupError;
pub use inbox::PgInbox;
pub use outbox::PgOutbox;
pub use store::{PgStore, PgStoreOptions};
pub use transaction::InTransaction;
