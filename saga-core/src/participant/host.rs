use super::{
    Command, Inbox, Job,
    replies::{NotPublished, Replies},
};
use crate::{
    Encoded, SagaId, StepError,
    error::{panic_message, shortened},
    message::{Answer, CommandAttributes, CommandId, Message, Op},
    trace::{TraceContext, Tracing, UnderWay},
    transport::{Consumer, Outgoing, Receiver, Subscription, Transport, TransportError, Unavailable, Verdict},
};
use async_trait::async_trait;
use futures::future::BoxFuture;
use opentelemetry::Context;
use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    ops::Deref,
    panic::catch_unwind,
    sync::Arc,
    time::Duration,
};

/// What a handler is given besides its command: its identity, and (by `Deref`) the participant's dependencies.
pub struct CommandCx<D> {
    deps: Arc<D>,
    id: CommandId,
    attempt: u32,
    kept: Option<Encoded>,
    headers: Arc<std::collections::BTreeMap<String, String>>,
}

impl<D> CommandCx<D> {
    /// For a command that came by another way than a [`Participant`]'s transport, such as a request over HTTP, and counts as a first attempt. `kept` is what
    /// the [`Job`]'s work was given.
    pub fn new(id: CommandId, deps: impl Into<Arc<D>>, kept: Option<Encoded>) -> Self {
        Self { deps: deps.into(), id, attempt: 1, kept, headers: Arc::default() }
    }

    /// With the [headers](Self::headers) that came with the command.
    pub fn with_headers(mut self, headers: impl Into<Arc<std::collections::BTreeMap<String, String>>>) -> Self {
        self.headers = headers.into();
        self
    }

    /// A context to call one handler alone, in a test.
    pub fn test(id: CommandId, deps: impl Into<Arc<D>>) -> Self {
        Self::new(id, deps, None)
    }

    /// The step's idempotency key, for whoever else does a part of the work: the same for every repeat, and for a command and its undo.
    pub fn idempotency_key(&self) -> String {
        self.id.key()
    }

    /// Which step of which saga.
    pub const fn id(&self) -> &CommandId {
        &self.id
    }

    /// The saga.
    pub const fn saga_id(&self) -> SagaId {
        self.id.saga
    }

    /// Which attempt this is, as the orchestrator counts; the first is 1.
    pub const fn attempt(&self) -> u32 {
        self.attempt
    }

    /// In an undo: what the command itself had replied.
    ///
    /// # Errors
    /// When that is no `T`.
    pub fn kept<T: crate::Payload>(&self) -> Result<Option<T>, crate::CodecError> {
        self.kept.as_ref().map(Encoded::decode).transpose()
    }

    /// The headers that came with the command, such as `traceparent`.
    pub fn headers(&self) -> &std::collections::BTreeMap<String, String> {
        &self.headers
    }
}

impl<D> Deref for CommandCx<D> {
    type Target = D;
    fn deref(&self) -> &D {
        &self.deps
    }
}

impl<D> Clone for CommandCx<D> {
    fn clone(&self) -> Self {
        Self {
            deps: self.deps.clone(),
            id: self.id.clone(),
            attempt: self.attempt,
            kept: self.kept.clone(),
            headers: self.headers.clone(),
        }
    }
}

impl<D> fmt::Debug for CommandCx<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandCx").field("id", &self.id).field("attempt", &self.attempt).finish_non_exhaustive()
    }
}

/// A function that handles a command: `async fn(CommandCx<D>, &mut Tx, C) -> Result<C::Reply, StepError>`.
///
/// Implemented for every such function; nothing else is meant to implement it.
#[diagnostic::on_unimplemented(
    message = "this function cannot handle a command",
    note = "a handler is an `async fn(CommandCx<D>, &mut Tx, C) -> Result<C::Reply, StepError>`, where `Tx` is the transaction of the participant's inbox"
)]
pub trait Handle<'t, D, Tx, C: Command>: Send + Sync + 'static {
    /// What it returns.
    type Future: Future<Output = Result<C::Reply, StepError>> + Send + 't;
    /// Calls it.
    fn call(&self, cx: CommandCx<D>, tx: &'t mut Tx, command: C) -> Self::Future;
}

impl<'t, D, Tx: 't, C, F, Fut> Handle<'t, D, Tx, C> for F
where
    C: Command,
    F: Fn(CommandCx<D>, &'t mut Tx, C) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<C::Reply, StepError>> + Send + 't,
{
    type Future = Fut;
    fn call(&self, cx: CommandCx<D>, tx: &'t mut Tx, command: C) -> Fut {
        self(cx, tx, command)
    }
}

type Handler<D, Tx> = Arc<
    dyn for<'t> Fn(CommandCx<D>, &'t mut Tx, Arc<Message>) -> BoxFuture<'t, Result<Encoded, StepError>> + Send + Sync,
>;

/// A participant that is being put together, see [the module's docs](super); also for what happens when
/// [a reply topic is away](super#when-a-reply-topic-is-away).
pub struct Participant<I: Inbox, D> {
    name: String,
    inbox: I,
    deps: Arc<D>,
    handlers: HashMap<&'static str, Handling<D, I::Tx>>,
    topics: BTreeSet<&'static str>,
    allowed: Duration,
    batch: usize,
}

/// What is done about one type of command.
struct Handling<D, Tx> {
    op: Op,
    topic: &'static str,
    /// Whether a payload can be read.
    check: fn(&[u8]) -> Result<(), String>,
    handler: Handler<D, Tx>,
}

fn read<C: Command>(data: &[u8]) -> Result<C, String> {
    let error = match catch_unwind(|| serde_json::from_slice(data)) {
        Ok(Ok(command)) => return Ok(command),
        Ok(Err(error)) => error.to_string(),
        // Nothing of it was done yet: it cannot be read, like any other.
        Err(panic) => format!("its reader panicked: {}", panic_message(&*panic)),
    };
    Err(shortened(format!("the payload is no {}: {error}", C::TYPE)))
}

impl<I: Inbox, D: Send + Sync + 'static> Participant<I, D> {
    /// `name` is the service's: the source of its replies, and the group that its nodes consume as.
    pub fn new(name: impl Into<String>, inbox: I, deps: impl Into<Arc<D>>) -> Self {
        Self {
            name: name.into(),
            inbox,
            deps: deps.into(),
            handlers: HashMap::new(),
            topics: BTreeSet::new(),
            allowed: Duration::from_secs(30),
            batch: 50,
        }
    }

    /// The function that does a command. A second one for the same type takes the first one's place.
    pub fn on<C: Command>(self, handler: impl for<'t> Handle<'t, D, I::Tx, C>) -> Self {
        self.add::<C>(Op::Do, handler)
    }

    /// The function that undoes a command: called with the undo's own type, only if the command was done, and once.
    pub fn on_undo<C: Command<Reply = ()>>(self, handler: impl for<'t> Handle<'t, D, I::Tx, C>) -> Self {
        self.add::<C>(Op::Undo, handler)
    }

    /// How long a handler may take; then what it wrote is rolled back and the answer is `unknown`. Defaults to 30 seconds.
    pub fn timeout(mut self, allowed: Duration) -> Self {
        self.allowed = allowed;
        self
    }

    /// How many commands share a transaction at most. Defaults to 50, which is also the most.
    pub fn batch(mut self, batch: usize) -> Self {
        self.batch = batch.clamp(1, 50);
        self
    }

    fn add<C: Command>(mut self, op: Op, handler: impl for<'t> Handle<'t, D, I::Tx, C>) -> Self {
        let handler = Arc::new(handler);
        let erased: Handler<D, I::Tx> = Arc::new(move |cx, tx, message| {
            let handler = handler.clone();
            Box::pin(async move {
                let command = read::<C>(&message.data).map_err(StepError::fail)?;
                let reply = handler.call(cx, tx, command).await?;
                // What the orchestrator could not read has to show here, where it is rolled back.
                Encoded::of_readable(&reply).map_err(|error| StepError::fail(error.to_string()))
            })
        });
        let check = |data: &[u8]| read::<C>(data).map(drop);
        self.handlers.insert(C::TYPE, Handling { op, topic: C::TOPIC, check, handler: erased });
        self.topics.insert(C::TOPIC);
        self
    }

    /// Begins to take part.
    ///
    /// # Errors
    /// When the inbox is [not ready](Inbox::ready), or the transport cannot consume the commands' topics.
    pub async fn start(self, transport: Arc<dyn Transport>) -> Result<Participating, TransportError> {
        self.inbox.ready().await?;
        let subscription = Subscription {
            group: self.name.clone(),
            topics: self.topics.iter().map(ToString::to_string).collect(),
            batch: self.batch,
        };
        let tracing = Tracing::default().over(transport.system());
        let replies = Replies::new(transport.clone(), self.topics.iter().copied().collect());
        let receiver = Host { participant: self, transport: transport.clone(), replies, tracing };
        Ok(Participating { consumer: transport.subscribe(subscription, Arc::new(receiver)).await? })
    }
}

/// A participant at work. Dropped without [`stop`](Self::stop) it ends as if its process had died.
pub struct Participating {
    pub(super) consumer: Box<dyn Consumer>,
}

impl Participating {
    /// Lets what is under way end, and hands over to the other nodes.
    pub async fn stop(self) {
        self.consumer.stop().await;
    }
}

struct Host<I: Inbox, D> {
    participant: Participant<I, D>,
    transport: Arc<dyn Transport>,
    replies: Replies,
    tracing: Tracing,
}

/// A command on its way through the host.
struct Received<'m> {
    message: &'m Message,
    attributes: CommandAttributes,
    /// Why it is a dead letter.
    rejected: Option<String>,
}

#[async_trait]
impl<I: Inbox, D: Send + Sync + 'static> Receiver for Host<I, D> {
    async fn receive(&self, batch: &[Message]) -> Result<Vec<Verdict>, Unavailable> {
        let mut verdicts = vec![Verdict::Done; batch.len()];
        let (mut received, mut places, mut jobs) = (vec![], vec![], vec![]);
        for (place, message) in batch.iter().enumerate() {
            match CommandAttributes::of(message) {
                Ok(attributes) => {
                    let handler = self.handler(message, &attributes);
                    let rejected = handler.as_ref().err().cloned();
                    jobs.push(self.job(message, &attributes, handler));
                    received.push(Received { message, attributes, rejected });
                    places.push(place);
                }
                Err(malformed) => verdicts[place] = Verdict::DeadLetter(malformed.to_string()),
            }
        }
        let answers = self.participant.inbox.handle(&jobs).await?;
        let answered = received.iter().zip(&jobs).zip(&answers);
        let (replies, sendings): (Vec<Outgoing>, Vec<UnderWay>) =
            answered.map(|((received, job), answer)| self.reply(received, job.context(), answer)).unzip();
        // Not before they are out does a command count as dealt with: after a crash it comes again, and is answered from the inbox.
        let published = self.replies.publish(replies).await;
        for (published, sending) in published.iter().zip(sendings) {
            let _ = published.as_ref().inspect_err(|error| sending.failed(*error));
        }
        for ((received, place), published) in received.into_iter().zip(places).zip(published) {
            match (published, received.rejected) {
                (Err(NotPublished::Unavailable(error)), _) => return Err(Unavailable(error)),
                (Err(NotPublished::DeadLetter(reason)), _) | (Ok(()), Some(reason)) => {
                    verdicts[place] = Verdict::DeadLetter(reason);
                }
                (Ok(()), None) => {}
            }
        }
        Ok(verdicts)
    }
}

impl<I: Inbox, D: Send + Sync + 'static> Host<I, D> {
    fn handler(&self, message: &Message, attributes: &CommandAttributes) -> Result<Handler<D, I::Tx>, String> {
        let name = &self.participant.name;
        match self.participant.handlers.get(message.kind.as_str()) {
            None => Err(format!("`{name}` does not handle `{}`", message.kind)),
            Some(Handling { op, .. }) if *op != attributes.op => {
                Err(format!("`{name}` takes `{}` to {op}, not to {}", message.kind, attributes.op))
            }
            Some(Handling { check, handler, .. }) => check(&message.data).map(|()| handler.clone()),
        }
    }

    /// What cannot be handled goes through the barrier all the same, as a refusal: it was answered, so it must never take effect later.
    fn job(
        &self,
        message: &Message,
        attributes: &CommandAttributes,
        handler: Result<Handler<D, I::Tx>, String>,
    ) -> Job<I::Tx> {
        let (deps, id, attempt) = (self.participant.deps.clone(), attributes.id.clone(), attributes.attempt);
        let (headers, message) = (Arc::new(message.headers.clone()), Arc::new(message.clone()));
        let origin = message.clone();
        let longest = self.transport.max_message_bytes() / 2;
        let job = Job::new(attributes.id.clone(), attributes.op, self.participant.allowed, move |tx, kept| {
            let (id, deps, headers) = (id.clone(), deps.clone(), headers.clone());
            let (handler, message) = (handler.clone(), message.clone());
            Box::pin(async move {
                let handler = handler.map_err(StepError::fail)?;
                let reply = handler(CommandCx { deps, id, attempt, kept, headers }, tx, message).await?;
                match reply.as_str().len() {
                    bytes if bytes > longest => {
                        Err(StepError::fail(format!("its reply has {bytes} bytes, more than the {longest} allowed")))
                    }
                    _ => Ok(reply),
                }
            })
        });
        match self.participant.handlers.get(origin.kind.as_str()) {
            Some(Handling { topic, .. }) => job.of(&self.tracing, topic, origin),
            None => job,
        }
    }

    /// A part of the work, or, where nothing was done, of what the command itself is a part of.
    fn reply(&self, received: &Received<'_>, work: Option<Context>, answer: &Answer) -> (Outgoing, UnderWay) {
        let parent = work.unwrap_or_else(|| TraceContext::of_headers(&received.message.headers).context());
        let topic = received.attributes.reply_to.clone();
        let mut message = received.attributes.reply(&self.participant.name, received.message, answer);
        let sending = self.tracing.send(&topic, &mut message, &parent);
        (Outgoing { topic, message }, sending)
    }
}
