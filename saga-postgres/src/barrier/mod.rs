//! Commands that come by another way than a transport: in this process, or over HTTP.

#[cfg(feature = "axum")]
mod http;
mod key;

use crate::PgInbox;
use key::command_id;
use saga_core::{
    Encoded, StepError,
    message::{Answer, CommandId, Op},
    participant::{Command, CommandCx, Handle, Inbox, Job},
    transport::Unavailable,
};
use sqlx::PgConnection;
use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

/// The functions of a [`Participant`](saga_core::participant::Participant), called directly: by a saga in the same process, or over HTTP (with the feature `axum`).
///
/// They are the same `async fn(CommandCx<D>, &mut PgConnection, C) -> Result<C::Reply, StepError>`, behind the same [`PgInbox`]: what came over one way and comes again over
/// another is recognised.
///
/// # In the same process
///
/// ```no_run
/// use saga_core::{CompensationCx, Cx, StepError, participant::{Command, CommandCx}};
/// use saga_postgres::{Barrier, PgInbox};
/// use sqlx::PgConnection;
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Reserve { sku: String, quantity: i32 }
/// # impl Command for Reserve { const TYPE: &'static str = "inventory.reserve.v1"; const TOPIC: &'static str = "inventory.commands"; type Reply = (); }
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Release;
/// # impl Command for Release { const TYPE: &'static str = "inventory.release.v1"; const TOPIC: &'static str = "inventory.commands"; type Reply = (); }
/// # async fn reserve(_: CommandCx<()>, _: &mut PgConnection, _: Reserve) -> Result<(), StepError> { Ok(()) }
/// # async fn release(_: CommandCx<()>, _: &mut PgConnection, _: Release) -> Result<(), StepError> { Ok(()) }
/// struct Shop { stock: Barrier<()> } // Barrier::new(PgInbox::new(pool), ())
///
/// async fn reserve_stock(shop: Cx<Shop>, sku: String) -> Result<(), StepError> {
///     shop.stock.run(shop.idempotency_key(), reserve, &Reserve { sku, quantity: 1 }).await
/// }
/// async fn release_stock(shop: CompensationCx<Shop>, _: String, _: Option<()>) -> Result<(), StepError> {
///     shop.stock.undo(shop.forward_key(), release, &Release).await
/// }
/// ```
///
/// # Over HTTP
///
/// ```no_run
/// # use saga_core::{StepError, participant::{Command, CommandCx}};
/// # use saga_postgres::{Barrier, PgInbox};
/// # use sqlx::PgConnection;
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Reserve { sku: String, quantity: i32 }
/// # impl Command for Reserve { const TYPE: &'static str = "inventory.reserve.v1"; const TOPIC: &'static str = "inventory.commands"; type Reply = (); }
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Release;
/// # impl Command for Release { const TYPE: &'static str = "inventory.release.v1"; const TOPIC: &'static str = "inventory.commands"; type Reply = (); }
/// # async fn reserve(_: CommandCx<()>, _: &mut PgConnection, _: Reserve) -> Result<(), StepError> { Ok(()) }
/// # async fn release(_: CommandCx<()>, _: &mut PgConnection, _: Release) -> Result<(), StepError> { Ok(()) }
/// # #[cfg(feature = "axum")]
/// # fn router(pool: sqlx::PgPool) -> axum::Router {
/// let barrier = Barrier::new(PgInbox::new(pool), ());
/// axum::Router::new()
///     .route("/reservations", barrier.on(reserve))
///     .route("/reservations/release", barrier.on_undo(release))
/// # }
/// ```
///
/// A command is a POST with its payload as JSON, and with the header `Idempotency-Key: <saga>/<step>`, `/<generation>` behind if that is not 0: what a step's
/// `idempotency_key()` gives. Its undo is a POST to a path of its own with *the same* key (`forward_key()` in a compensation); the compensation's own key, with
/// `/undo` behind, is understood there as well. One key is for one command: two different commands of a step would be taken for repeats of each other.
///
/// | the answer | status | body | what the caller may conclude |
/// |---|---|---|---|
/// | `success` | 200 | the reply | it happened; the same to every repeat |
/// | `fail` | 409 | a problem | a business no, the same to every repeat; also for a payload that cannot be read, and for a command after its undo |
/// | `retry` | 503, with `Retry-After` | a problem | nothing happened: send it again |
/// | `unknown` | 500 | a problem | it may have happened: send it again under the same key |
/// | none, because the database is down | 500 | a problem | the same |
/// | none, because the key is missing or is no key | 400 | a problem | the caller has a bug; nothing was remembered |
///
/// A problem is `application/problem+json` (RFC 9457); its `detail` is the reason, and so is its member `error`, as in a reply over Kafka.
///
/// A caller that hangs up changes nothing: the work goes on to its end, and whoever asks again gets its answer. Only the end of the process ends it, and rolls it back.
pub struct Barrier<D> {
    inbox: PgInbox,
    deps: Arc<D>,
    allowed: Duration,
}

/// What a command comes with, besides its payload.
struct Call {
    id: CommandId,
    op: Op,
    headers: BTreeMap<String, String>,
}

impl<D: Send + Sync + 'static> Barrier<D> {
    /// In front of functions that are given `deps`.
    pub fn new(inbox: PgInbox, deps: impl Into<Arc<D>>) -> Self {
        Self { inbox, deps: deps.into(), allowed: Duration::from_secs(30) }
    }

    /// How long a handler may take; then what it wrote is rolled back and the answer is `unknown`. Defaults to 30 seconds.
    pub fn timeout(mut self, allowed: Duration) -> Self {
        self.allowed = allowed;
        self
    }

    /// Does a command once, however often it comes under this key: `idempotency_key()` of a saga's step.
    ///
    /// # Errors
    /// The handler's own, the same to every repeat if it is a [`fail`](StepError::fail); [`unknown`](StepError::unknown) if the database is down; `fail` if the key
    /// is no step's.
    pub async fn run<C: Command>(
        &self,
        key: &str,
        handler: impl for<'t> Handle<'t, D, PgConnection, C>,
        command: &C,
    ) -> Result<C::Reply, StepError> {
        let id = command_id(key, Op::Do).map_err(StepError::fail)?;
        let reply = reply(self.once(id, Op::Do, handler, command).await)?;
        // It was done, and an undo is told this reply as it is.
        reply.decode().map_err(StepError::unknown)
    }

    /// Undoes a command if it was done, once, and sees to it that it is refused if it comes later. The key is the command's: `forward_key()` of a compensation.
    ///
    /// # Errors
    /// The handler's own; [`unknown`](StepError::unknown) if the database is down; [`fail`](StepError::fail) if the key is no step's.
    pub async fn undo<C: Command<Reply = ()>>(
        &self,
        key: &str,
        handler: impl for<'t> Handle<'t, D, PgConnection, C>,
        command: &C,
    ) -> Result<(), StepError> {
        let id = command_id(key, Op::Undo).map_err(StepError::fail)?;
        reply(self.once(id, Op::Undo, handler, command).await).map(|_| ())
    }

    /// Runs one command or one undo behind the barrier, and says what a [`Participant`](saga_core::participant::Participant) would reply.
    ///
    /// # Errors
    /// When the database is down or does not answer: nothing is known. Run it again.
    pub async fn once<C: Command>(
        &self,
        id: CommandId,
        op: Op,
        handler: impl for<'t> Handle<'t, D, PgConnection, C>,
        command: &C,
    ) -> Result<Answer, Unavailable> {
        let payload = match Encoded::of(command) {
            Ok(payload) => payload.as_str().as_bytes().to_vec(),
            // It has not been tried, and the same value can be written no better the next time.
            Err(error) => return Ok(Answer::Fail(format!("the command cannot be written: {error}"))),
        };
        let call = Call { id, op, headers: BTreeMap::new() };
        self.answer(self.job(call, &Arc::new(handler), payload.into())).await
    }

    async fn answer(&self, job: Job<PgConnection>) -> Result<Answer, Unavailable> {
        let answers = self.inbox.handle(&[job]).await?;
        answers.into_iter().next().ok_or_else(|| Unavailable("the inbox gave no answer".into()))
    }

    fn job<C, H>(&self, call: Call, handler: &Arc<H>, payload: Arc<[u8]>) -> Job<PgConnection>
    where
        C: Command,
        H: for<'t> Handle<'t, D, PgConnection, C>,
    {
        let (handler, deps) = (handler.clone(), self.deps.clone());
        let Call { id, op, headers } = call;
        let headers = Arc::new(headers);
        Job::new(id.clone(), op, self.allowed, move |db, kept| {
            let (handler, payload) = (handler.clone(), payload.clone());
            let cx = CommandCx::<D>::new(id.clone(), deps.clone(), kept).with_headers(headers.clone());
            Box::pin(async move {
                let command = serde_json::from_slice::<C>(&payload)
                    .map_err(|error| StepError::fail(format!("the payload is no {}: {error}", C::TYPE)))?;
                let reply = handler.call(cx, db, command).await?;
                Encoded::of(&reply).map_err(StepError::fail)
            })
        })
    }
}

fn reply(answered: Result<Answer, Unavailable>) -> Result<Encoded, StepError> {
    match answered {
        Ok(Answer::Success(reply)) => Ok(reply),
        Ok(Answer::Fail(reason)) => Err(StepError::fail(reason)),
        Ok(Answer::Retry(reason)) => Err(StepError::retry(reason)),
        Ok(Answer::Unknown(reason)) | Err(Unavailable(reason)) => Err(StepError::unknown(reason)),
    }
}

impl<D> Clone for Barrier<D> {
    fn clone(&self) -> Self {
        Self { inbox: self.inbox.clone(), deps: self.deps.clone(), allowed: self.allowed }
    }
}

impl<D> fmt::Debug for Barrier<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Barrier").field("inbox", &self.inbox).field("allowed", &self.allowed).finish_non_exhaustive()
    }
}
