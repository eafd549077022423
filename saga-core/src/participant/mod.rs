//! The other side of a command step: a service that takes part in the sagas of others.
//!
//! A participant says which function does a command and which undoes it; everything else is its host's affair: the [barrier](Inbox) that makes
//! repeats, late commands and undos without their command harmless, the reply, and the dead letters.
//!
//! ```
//! # use saga_core::{StepError, participant::*, transport::Transport};
//! # use serde::{Deserialize, Serialize};
//! # use std::sync::Arc;
//! #[derive(Serialize, Deserialize)]
//! struct ReserveStock { sku: String, quantity: u32 }
//! #[derive(Serialize, Deserialize)]
//! struct ReleaseStock;
//!
//! impl Command for ReserveStock {
//!     const TYPE: &'static str = "inventory.reserve.v1";
//!     const TOPIC: &'static str = "inventory.commands";
//!     type Reply = u64;
//! }
//! impl Command for ReleaseStock {
//!     const TYPE: &'static str = "inventory.release.v1";
//!     const TOPIC: &'static str = "inventory.commands";
//!     type Reply = ();
//! }
//!
//! # struct Settings;
//! # type Tx = ();
//! async fn reserve(_: CommandCx<Settings>, _db: &mut Tx, command: ReserveStock) -> Result<u64, StepError> {
//!     match command.quantity {
//!         0 => Err(StepError::fail("a reservation needs a quantity")), // a business no, and it stays one
//!         quantity => Ok(quantity.into()),
//!     }
//! }
//! async fn release(_: CommandCx<Settings>, _db: &mut Tx, _: ReleaseStock) -> Result<(), StepError> {
//!     Ok(()) // only called if `reserve` has happened, and only once
//! }
//!
//! # async fn run(transport: Arc<dyn Transport>) -> Result<(), Box<dyn std::error::Error>> {
//! let inventory = Participant::new("inventory", MemoryInbox::default(), Settings)
//!     .on(reserve)
//!     .on_undo(release)
//!     .start(transport)
//!     .await?;
//! inventory.stop().await;
//! # Ok(()) }
//! ```
//!
//! # Events
//!
//! A [`Listener`] handles the events of others behind the same barrier: each at most once, in the transaction that the handler writes in.
//!
//! # What the orchestrator hears
//!
//! | the handler | what is kept | the reply |
//! |---|---|---|
//! | returns `Ok` | its writes, and the reply for repeats | `success` |
//! | returns [`StepError::fail`] | nothing of it but the reply for repeats | `fail` |
//! | returns [`StepError::retry`] | nothing | `retry` |
//! | returns another error, panics, or is not done in time | nothing in the database; elsewhere nobody knows | `unknown` |
//! | is not there (unknown type), or its command cannot be read | the refusal, so that the command never takes effect later | `fail`, and the message is a dead letter |
//!
//! A reply may have half of what the transport takes; with a larger one the command has failed. The text of an error is cut to some kilobytes. If a reply is refused all the
//! same, because the headers that came with the command leave no room for it, the command is a dead letter.
//!
//! # When a reply topic is away
//!
//! Each reply topic is published to by itself: one that is away, because its partitions have no leader, delays nobody
//! else's replies. The partition that the commands come from waits for it all the same, for a minute. Then the commands
//! whose replies go there are dead letters, and the partition goes on. After that such commands hold it up for about a
//! second, until replies to that topic are published again. Nothing is lost: the answers stand in the inbox, and the
//! orchestrator, which gets no reply in time, sends a command again and is answered then.
//!
//! While nothing can be published at all, it is the broker that is away: everything waits until it is back, and nothing is
//! a dead letter because of that. With a transport that cannot say whether it
//! [takes dead letters](crate::transport::Transport::takes_dead_letters), the broker counts as away when nothing was
//! published for some seconds.

mod host;
mod listener;
mod memory;
mod replies;

pub use host::{CommandCx, Handle, Participant, Participating};
pub use listener::{BatchCx, EventCx, HandleBatch, HandleEvent, Listener};
pub use memory::MemoryInbox;

use crate::{
    Encoded, Payload, StepError,
    error::{panic_message, shortened},
    message::{Answer, CommandId, Message, Op},
    trace::{self, Tracing},
    transport::{TransportError, Unavailable},
};
use async_trait::async_trait;
use futures::{FutureExt, future::BoxFuture};
use opentelemetry::{Context, context::FutureExt as _, trace::TraceContextExt};
use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::timeout;

/// A message that asks a participant to do something, and what it answers.
pub trait Command: Payload {
    /// The contract's own name for it, with a version: `inventory.reserve.v1`. Never a Rust path, and never changed.
    const TYPE: &'static str;
    /// The topic that it is sent to.
    const TOPIC: &'static str;
    /// What a participant returns for it; `()` for an undo.
    type Reply: Payload;
}

/// Something that has happened, told to whoever wants to know.
pub trait Event: Payload {
    /// The contract's own name for it, with a version: `order.confirmed.v1`. Never a Rust path, and never changed.
    const TYPE: &'static str;
    /// The topic that it is published to.
    const TOPIC: &'static str;
}

/// Where a participant remembers what it has done: the *barrier*.
///
/// # The contract
///
/// One row per [`CommandId`], shared by a command and its undo, in the same transaction as what the command writes. For each job, in the batch's order:
///
/// | job | the row says | what happens | the answer |
/// |---|---|---|---|
/// | do | nothing | the work; `Ok` and `fail` are kept, anything else leaves no row and none of its writes | the work's |
/// | do | done, or failed | nothing | the one that was kept |
/// | do | undone before it came | nothing | [`fail`](Answer::Fail) |
/// | undo | done | the work, told the kept reply; kept if it is `Ok`, else nothing is | the work's |
/// | undo | failed, or nothing | nothing; kept, so that a late command is refused | `success` |
/// | undo | undone | nothing | `success` |
///
/// Two jobs of one id never run at once, on however many nodes. Kept is what is durable when `handle` returns. A job that fails, panics or takes too
/// long changes nothing for the others of its batch.
///
/// Jobs of different ids that [go together](Job::goes_with) may be done in [one call](Job::work_together). If that fails, what it wrote is rolled back, and each is done by itself.
#[async_trait]
pub trait Inbox: Send + Sync + 'static {
    /// The transaction that a handler writes in.
    type Tx: Send + 'static;

    /// Whether all is there that it needs: tables, rights, settings. Asked once, before anything is consumed. The
    /// default finds everything in order.
    ///
    /// # Errors
    /// What does not heal by itself, and what to do about it. A database that is away is no error here.
    async fn ready(&self) -> Result<(), TransportError> {
        Ok(())
    }

    /// Runs jobs behind the barrier. Answers one by one, in the batch's order, when everything is durable.
    ///
    /// # Errors
    /// When the database is down or does not answer: nothing is known, and the same batch comes again.
    async fn handle(&self, batch: &[Job<Self::Tx>]) -> Result<Vec<Answer>, Unavailable>;
}

/// One command, or one undo, to be run behind the barrier.
pub struct Job<Tx> {
    /// What the barrier is kept by.
    pub id: CommandId,
    /// Do or undo.
    pub op: Op,
    work: Work<Tx>,
    allowed: Duration,
    origin: Option<Origin>,
}

/// The message that a job came with.
struct Origin {
    tracing: Tracing,
    topic: &'static str,
    message: Arc<Message>,
    /// The span of the work, once it was done.
    done: Mutex<Option<Context>>,
}

/// What a job does. May be called again after what it wrote was rolled back.
enum Work<Tx> {
    Alone(Alone<Tx>),
    /// What this job adds to the call is its message.
    InBatch(InBatch<Tx>, Arc<Message>),
}

type Alone<Tx> =
    Box<dyn for<'t> Fn(&'t mut Tx, Option<Encoded>) -> BoxFuture<'t, Result<Encoded, StepError>> + Send + Sync>;
/// What many jobs do in one call. Each event comes with what handling it is a part of.
type InBatch<Tx> =
    Arc<dyn for<'t> Fn(&'t mut Tx, Vec<(Arc<Message>, Context)>) -> BoxFuture<'t, Result<(), StepError>> + Send + Sync>;

/// How the work of a [`Job`] ended.
#[derive(Debug)]
pub enum Worked {
    /// It returned.
    Returned(Result<Encoded, StepError>),
    /// It panicked or took too long: the transaction may be in the middle of something, and is not to be used any more.
    Broke(String),
}

impl<Tx: Send + 'static> Job<Tx> {
    /// A job with a work of its own, which may take as long as `allowed`.
    pub fn new<W>(id: CommandId, op: Op, allowed: Duration, work: W) -> Self
    where
        W: for<'t> Fn(&'t mut Tx, Option<Encoded>) -> BoxFuture<'t, Result<Encoded, StepError>> + Send + Sync + 'static,
    {
        Self { id, op, work: Work::Alone(Box::new(work)), allowed, origin: None }
    }

    /// A job that one call can do with others of the same work.
    pub(crate) const fn in_batch(id: CommandId, allowed: Duration, work: InBatch<Tx>, message: Arc<Message>) -> Self {
        Self { id, op: Op::Do, work: Work::InBatch(work, message), allowed, origin: None }
    }

    /// The same, as part of the trace of a message.
    pub(crate) fn of(mut self, tracing: &Tracing, topic: &'static str, message: Arc<Message>) -> Self {
        self.origin = Some(Origin { tracing: tracing.clone(), topic, message, done: Mutex::default() });
        self
    }

    /// The span of its work, if it was done.
    pub(crate) fn context(&self) -> Option<Context> {
        self.origin.as_ref().and_then(|origin| origin.done.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// How long the work may take.
    pub const fn allowed(&self) -> Duration {
        self.allowed
    }

    /// Whether one call can do this job and another: they are events for [the same function](Listener::on_batch).
    pub fn goes_with(&self, other: &Self) -> bool {
        matches!((&self.work, &other.work), (Work::InBatch(one, _), Work::InBatch(other, _)) if Arc::ptr_eq(one, other))
    }

    /// Does the work; `kept` is the reply that was kept when the command was done, for an undo.
    pub async fn work(&self, tx: &mut Tx, kept: Option<Encoded>) -> Worked {
        let context = self.begin();
        let current = context.clone().unwrap_or_else(Context::current);
        let work = async {
            match &self.work {
                Work::Alone(work) => work(tx, kept).await,
                Work::InBatch(work, message) => {
                    work(tx, vec![(message.clone(), Context::current())]).await.map(|()| Encoded::null())
                }
            }
        };
        let worked = self.attempt(work).with_context(current).await;
        if let (Some(context), Some(origin)) = (context, &self.origin) {
            end(&context, &worked);
            *origin.done.lock().unwrap_or_else(PoisonError::into_inner) = Some(context);
        }
        worked
    }

    /// Does the work of jobs that [go together](Self::goes_with) in one call. Each has a span for it, and the call itself is a part of no event's trace. If they do not go together, nothing is done
    /// and the work returns an error.
    pub async fn work_together(jobs: &[&Self], tx: &mut Tx) -> Worked {
        let first = jobs.first().filter(|first| jobs.iter().all(|job| job.goes_with(first)));
        let Some(Self { work: Work::InBatch(work, _), .. }) = first else {
            return Worked::Returned(Err(StepError::unknown("these jobs do not go together")));
        };
        let events: Vec<(Arc<Message>, Context)> = jobs.iter().filter_map(|job| job.event()).collect();
        let contexts: Vec<Context> = events.iter().map(|(_, context)| context.clone()).collect();
        let worked = jobs[0].attempt(async { work(tx, events).await.map(|()| Encoded::null()) }).await;
        contexts.iter().for_each(|context| end(context, &worked));
        worked
    }

    fn event(&self) -> Option<(Arc<Message>, Context)> {
        match &self.work {
            Work::InBatch(_, message) => Some((message.clone(), self.begin().unwrap_or_default())),
            Work::Alone(_) => None,
        }
    }

    /// The span of its work.
    fn begin(&self) -> Option<Context> {
        let Origin { tracing, topic, message, .. } = self.origin.as_ref()?;
        Some(tracing.process(topic, message))
    }

    async fn attempt(&self, work: impl Future<Output = Result<Encoded, StepError>>) -> Worked {
        match timeout(self.allowed, AssertUnwindSafe(work).catch_unwind()).await {
            Ok(Ok(returned)) => Worked::Returned(returned),
            Ok(Err(panic)) => Worked::Broke(shortened(format!("it panicked: {}", panic_message(&*panic)))),
            Err(_) => Worked::Broke(format!("it was not done within {:?}", self.allowed)),
        }
    }
}

fn end(context: &Context, worked: &Worked) {
    match worked {
        Worked::Returned(Ok(_)) => {}
        Worked::Returned(Err(error)) => trace::failed(context, &error.to_string()),
        Worked::Broke(error) => trace::failed(context, error),
    }
    context.span().end();
}
