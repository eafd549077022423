use super::{Event, InBatch, Inbox, Job, Participating};
use crate::{
    Encoded, SagaId, StepError,
    message::{Answer, CommandId, Message, Op},
    trace::Tracing,
    transport::{Receiver, Subscription, Transport, TransportError, Unavailable, Verdict},
};
use async_trait::async_trait;
use futures::future::BoxFuture;
use opentelemetry::Context;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    ops::Deref,
    sync::Arc,
    time::Duration,
};
use tokio::time::sleep;
use uuid::Uuid;

/// How often an event is tried that a handler cannot handle.
const ATTEMPTS: u32 = 5;
/// The pause after the first attempt; it doubles each time.
const PAUSE: Duration = Duration::from_millis(200);

/// What a handler of events is given besides the event: where it comes from, and (by `Deref`) the listener's dependencies.
pub struct EventCx<D> {
    deps: Arc<D>,
    message: Arc<Message>,
    context: Context,
}

impl<D> EventCx<D> {
    /// A context to call one handler alone, in a test.
    pub fn test(message: Message, deps: impl Into<Arc<D>>) -> Self {
        Self { deps: deps.into(), message: Arc::new(message), context: Context::current() }
    }

    /// The event's id.
    pub fn id(&self) -> &str {
        &self.message.id
    }

    /// What it is about: events of one key come in order.
    pub fn key(&self) -> &str {
        &self.message.key
    }

    /// The headers that came with it, such as `traceparent`.
    pub fn headers(&self) -> &BTreeMap<String, String> {
        &self.message.headers
    }

    /// The span of its handling. A handler of one event runs in it; in a [handler of many](Listener::on_batch), attach it for what is done for this one of them, such as an event that is
    /// published because of it.
    pub const fn context(&self) -> &Context {
        &self.context
    }
}

impl<D> Deref for EventCx<D> {
    type Target = D;
    fn deref(&self) -> &D {
        &self.deps
    }
}

/// What a handler of many events is given besides them: where each comes from, and (by `Deref`) the listener's dependencies.
pub struct BatchCx<D> {
    deps: Arc<D>,
    events: Vec<EventCx<D>>,
}

impl<D> BatchCx<D> {
    /// A context to call one handler alone, in a test.
    pub fn test(messages: impl IntoIterator<Item = Message>, deps: impl Into<Arc<D>>) -> Self {
        let deps = deps.into();
        let event = |message| EventCx::test(message, deps.clone());
        Self { events: messages.into_iter().map(event).collect(), deps }
    }

    /// Where the events come from, in their order.
    pub fn events(&self) -> &[EventCx<D>] {
        &self.events
    }
}

impl<D> Deref for BatchCx<D> {
    type Target = D;
    fn deref(&self) -> &D {
        &self.deps
    }
}

impl<D> fmt::Debug for BatchCx<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchCx").field("events", &self.events).finish_non_exhaustive()
    }
}

impl<D> fmt::Debug for EventCx<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventCx").field("id", &self.message.id).field("key", &self.message.key).finish_non_exhaustive()
    }
}

/// A function that handles an event: `async fn(EventCx<D>, &mut Tx, E) -> Result<(), StepError>`.
///
/// Implemented for every such function; nothing else is meant to implement it.
#[diagnostic::on_unimplemented(
    message = "this function cannot handle an event",
    note = "a handler is an `async fn(EventCx<D>, &mut Tx, E) -> Result<(), StepError>`, where `Tx` is the transaction of the listener's inbox"
)]
pub trait HandleEvent<'t, D, Tx, E: Event>: Send + Sync + 'static {
    /// What it returns.
    type Future: Future<Output = Result<(), StepError>> + Send + 't;
    /// Calls it.
    fn call(&self, cx: EventCx<D>, tx: &'t mut Tx, event: E) -> Self::Future;
}

impl<'t, D, Tx: 't, E, F, Fut> HandleEvent<'t, D, Tx, E> for F
where
    E: Event,
    F: Fn(EventCx<D>, &'t mut Tx, E) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), StepError>> + Send + 't,
{
    type Future = Fut;
    fn call(&self, cx: EventCx<D>, tx: &'t mut Tx, event: E) -> Fut {
        self(cx, tx, event)
    }
}

/// A function that handles many events at once: `async fn(BatchCx<D>, &mut Tx, Vec<E>) -> Result<(), StepError>`.
///
/// Implemented for every such function; nothing else is meant to implement it.
#[diagnostic::on_unimplemented(
    message = "this function cannot handle many events",
    note = "such a handler is an `async fn(BatchCx<D>, &mut Tx, Vec<E>) -> Result<(), StepError>`, where `Tx` is the transaction of the listener's inbox"
)]
pub trait HandleBatch<'t, D, Tx, E: Event>: Send + Sync + 'static {
    /// What it returns.
    type Future: Future<Output = Result<(), StepError>> + Send + 't;
    /// Calls it.
    fn call(&self, cx: BatchCx<D>, tx: &'t mut Tx, events: Vec<E>) -> Self::Future;
}

impl<'t, D, Tx: 't, E, F, Fut> HandleBatch<'t, D, Tx, E> for F
where
    E: Event,
    F: Fn(BatchCx<D>, &'t mut Tx, Vec<E>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), StepError>> + Send + 't,
{
    type Future = Fut;
    fn call(&self, cx: BatchCx<D>, tx: &'t mut Tx, events: Vec<E>) -> Fut {
        self(cx, tx, events)
    }
}

enum Handler<Tx> {
    OfOne(OfOne<Tx>),
    OfMany(InBatch<Tx>),
}

type OfOne<Tx> =
    Arc<dyn for<'t> Fn(&'t mut Tx, Arc<Message>) -> BoxFuture<'t, Result<Encoded, StepError>> + Send + Sync>;

fn read<E: Event>(message: &Message) -> Result<E, StepError> {
    serde_json::from_slice(&message.data)
        .map_err(|error| StepError::fail(format!("the payload is no {}: {error}", E::TYPE)))
}

/// Handles events behind the barrier: each at most once, in the transaction that its handler writes in, and in the order of its key.
///
/// Events of a type that nobody handles are passed over. One whose handler returns [`StepError::fail`], or that cannot be read, is a dead letter, and stays
/// unhandled if it comes again. After any other error, a panic, or too long a time it is tried again, five times within some seconds; then it is a dead letter too,
/// and may be written to its topic again by hand.
pub struct Listener<I: Inbox, D> {
    name: String,
    inbox: I,
    deps: Arc<D>,
    /// With their topics.
    handlers: HashMap<&'static str, (&'static str, Handler<I::Tx>)>,
    topics: BTreeSet<&'static str>,
    allowed: Duration,
}

impl<I: Inbox, D: Send + Sync + 'static> Listener<I, D> {
    /// `name` is the group that the service's nodes consume as, and part of what the barrier is kept by: another listener on the same inbox has another name.
    pub fn new(name: impl Into<String>, inbox: I, deps: impl Into<Arc<D>>) -> Self {
        Self {
            name: name.into(),
            inbox,
            deps: deps.into(),
            handlers: HashMap::new(),
            topics: BTreeSet::new(),
            allowed: Duration::from_secs(30),
        }
    }

    /// The function that handles events of a type. A second one for the same type takes the first one's place.
    pub fn on<E: Event>(self, handler: impl for<'t> HandleEvent<'t, D, I::Tx, E>) -> Self {
        let (handler, deps) = (Arc::new(handler), self.deps.clone());
        self.insert::<E>(Handler::OfOne(Arc::new(move |tx, message| {
            let (handler, deps) = (handler.clone(), deps.clone());
            Box::pin(async move {
                let event = read(&message)?;
                handler.call(EventCx { deps, message, context: Context::current() }, tx, event).await?;
                Ok(Encoded::null())
            })
        })))
    }

    /// The function that handles all events of a type that have come by now, 50 at most, in one call: for what a database does with many rows as easily as with one. A second one for the
    /// same type takes the first one's place.
    ///
    /// Each event is handled at most once, like all: those that were handled before are not among them. If the call fails, what it wrote is rolled back and the function is called with each event
    /// alone, so that one that cannot be handled is in nobody's way. Events of one key are never in one call; those of several may concern one row all the same, which no `ON CONFLICT DO UPDATE`
    /// takes twice, and two nodes that write the same rows should do it in one order. The [time](Self::timeout) is for the whole call. An inbox may have no use for this, and always hand over one.
    ///
    /// ```
    /// # use saga_core::{StepError, participant::*};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize)] struct Shipped { order: u64 }
    /// # impl Event for Shipped { const TYPE: &'static str = "shipped.v1"; const TOPIC: &'static str = "delivery.events"; }
    /// # type Tx = ();
    /// async fn shipped(_: BatchCx<()>, _db: &mut Tx, events: Vec<Shipped>) -> Result<(), StepError> {
    ///     let _orders: Vec<u64> = events.iter().map(|event| event.order).collect();
    ///     Ok(()) // INSERT INTO notification (order_id) SELECT unnest($1)
    /// }
    /// let listener = Listener::new("notification", MemoryInbox::default(), ()).on_batch(shipped);
    /// # let _ = listener;
    /// ```
    pub fn on_batch<E: Event>(self, handler: impl for<'t> HandleBatch<'t, D, I::Tx, E>) -> Self {
        let (handler, deps) = (Arc::new(handler), self.deps.clone());
        self.insert::<E>(Handler::OfMany(Arc::new(move |tx, came| {
            let (handler, deps) = (handler.clone(), deps.clone());
            Box::pin(async move {
                let events = came.iter().map(|(message, _)| read(message)).collect::<Result<_, _>>()?;
                let cx = |(message, context)| EventCx { deps: deps.clone(), message, context };
                let cx = BatchCx { events: came.into_iter().map(cx).collect(), deps: deps.clone() };
                handler.call(cx, tx, events).await
            })
        })))
    }

    fn insert<E: Event>(mut self, handler: Handler<I::Tx>) -> Self {
        self.handlers.insert(E::TYPE, (E::TOPIC, handler));
        self.topics.insert(E::TOPIC);
        self
    }

    /// How long one call of a handler may take. Defaults to 30 seconds.
    pub fn timeout(mut self, allowed: Duration) -> Self {
        self.allowed = allowed;
        self
    }

    /// Begins to listen.
    ///
    /// # Errors
    /// When the inbox is [not ready](Inbox::ready), or the transport cannot consume the events' topics.
    pub async fn start(self, transport: Arc<dyn Transport>) -> Result<Participating, TransportError> {
        self.inbox.ready().await?;
        let topics = self.topics.iter().map(ToString::to_string).collect();
        let subscription = Subscription { group: self.name.clone(), topics, batch: 50 };
        let listening = Listening { listener: self, tracing: Tracing::default().over(transport.system()) };
        Ok(Participating { consumer: transport.subscribe(subscription, Arc::new(listening)).await? })
    }
}

struct Listening<I: Inbox, D> {
    listener: Listener<I, D>,
    tracing: Tracing,
}

impl<I: Inbox, D: Send + Sync + 'static> Listening<I, D> {
    /// An event is a command without an answer: what the barrier is kept by is made of its source and id.
    fn job(&self, message: &Message) -> Option<Job<I::Tx>> {
        let (topic, handler) = self.listener.handlers.get(message.kind.as_str())?;
        let id = CommandId { saga: identity(message), step: format!("event {}", self.listener.name), generation: 0 };
        let (allowed, event) = (self.listener.allowed, Arc::new(message.clone()));
        let origin = event.clone();
        let job = match handler {
            Handler::OfOne(handler) => {
                let handler = handler.clone();
                Job::new(id, Op::Do, allowed, move |tx, _| handler(tx, event.clone()))
            }
            Handler::OfMany(handler) => Job::in_batch(id, allowed, handler.clone(), event),
        };
        Some(job.of(&self.tracing, topic, origin))
    }

    /// Handles events that are all of different keys, so that none of them has to wait for another: those of one type after each other, for a function may take them all.
    async fn handle(&self, mut run: Vec<(usize, &Message)>, verdicts: &mut [Verdict]) -> Result<(), Unavailable> {
        run.sort_by_key(|(_, message)| &message.kind);
        let job = |&(place, message): &(usize, &Message)| Some((place, self.job(message)?));
        let (mut places, mut jobs): (Vec<usize>, Vec<Job<I::Tx>>) = run.iter().filter_map(job).unzip();
        for attempt in 1.. {
            let answers = self.listener.inbox.handle(&jobs).await?;
            let mut again = vec![];
            for ((answer, job), &place) in answers.into_iter().zip(jobs).zip(&places) {
                match answer {
                    Answer::Success(_) => {}
                    Answer::Retry(_) | Answer::Unknown(_) if attempt < ATTEMPTS => again.push((place, job)),
                    Answer::Fail(error) | Answer::Retry(error) | Answer::Unknown(error) => {
                        if let Some(verdict) = verdicts.get_mut(place) {
                            *verdict = Verdict::DeadLetter(error);
                        }
                    }
                }
            }
            if again.is_empty() {
                return Ok(());
            }
            (places, jobs) = again.into_iter().unzip();
            sleep(PAUSE * 2u32.pow(attempt - 1)).await;
        }
        Ok(())
    }
}

#[async_trait]
impl<I: Inbox, D: Send + Sync + 'static> Receiver for Listening<I, D> {
    async fn receive(&self, batch: &[Message]) -> Result<Vec<Verdict>, Unavailable> {
        let mut verdicts = vec![Verdict::Done; batch.len()];
        let mut left: Vec<(usize, &Message)> = batch.iter().enumerate().collect();
        while !left.is_empty() {
            let mut keys = HashSet::new();
            let different = left.iter().take_while(|(_, message)| keys.insert(&message.key)).count();
            let run = left.drain(..different).collect();
            self.handle(run, &mut verdicts).await?;
        }
        Ok(verdicts)
    }
}

/// What source and id say together, as a UUID (version 5).
fn identity(message: &Message) -> SagaId {
    let name = format!("{} {}", message.source, message.id);
    Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()).into()
}
