use super::{Event, Inbox, Job, Participating};
use crate::{
    Encoded, SagaId, StepError,
    message::{Answer, CommandId, Message, Op},
    trace::Tracing,
    transport::{Receiver, Subscription, Transport, TransportError, Unavailable, Verdict},
};
use async_trait::async_trait;
use futures::future::BoxFuture;
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
}

impl<D> EventCx<D> {
    /// A context to call one handler alone, in a test.
    pub fn test(message: Message, deps: impl Into<Arc<D>>) -> Self {
        Self { deps: deps.into(), message: Arc::new(message) }
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
}

impl<D> Deref for EventCx<D> {
    type Target = D;
    fn deref(&self) -> &D {
        &self.deps
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

type Handler<D, Tx> = Arc<
    dyn for<'t> Fn(EventCx<D>, &'t mut Tx, Arc<Message>) -> BoxFuture<'t, Result<Encoded, StepError>> + Send + Sync,
>;

/// Handles events behind the barrier: each at most once, in the transaction that its handler writes in, and in the order of its key.
///
/// Events of a type that nobody handles are passed over. One whose handler returns [`StepError::fail`], or that cannot be read, is a dead letter, and stays
/// unhandled if it comes again. After any other error, a panic, or too long a time it is tried again, five times within some seconds; then it is a dead letter too,
/// and may be written to its topic again by hand.
pub struct Listener<I: Inbox, D> {
    name: String,
    inbox: I,
    deps: Arc<D>,
    handlers: HashMap<&'static str, (&'static str, Handler<D, I::Tx>)>,
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
    pub fn on<E: Event>(mut self, handler: impl for<'t> HandleEvent<'t, D, I::Tx, E>) -> Self {
        let handler = Arc::new(handler);
        let erased: Handler<D, I::Tx> = Arc::new(move |cx, tx, message| {
            let handler = handler.clone();
            Box::pin(async move {
                let event = serde_json::from_slice::<E>(&message.data)
                    .map_err(|error| StepError::fail(format!("the payload is no {}: {error}", E::TYPE)))?;
                handler.call(cx, tx, event).await?;
                Ok(Encoded::null())
            })
        });
        self.handlers.insert(E::TYPE, (E::TOPIC, erased));
        self.topics.insert(E::TOPIC);
        self
    }

    /// How long a handler may take. Defaults to 30 seconds.
    pub fn timeout(mut self, allowed: Duration) -> Self {
        self.allowed = allowed;
        self
    }

    /// Begins to listen.
    ///
    /// # Errors
    /// When the transport cannot consume the events' topics.
    pub async fn start(self, transport: Arc<dyn Transport>) -> Result<Participating, TransportError> {
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
        let (topic, handler) = self.listener.handlers.get(message.kind.as_str())?.clone();
        let (deps, event) = (self.listener.deps.clone(), Arc::new(message.clone()));
        let id = CommandId { saga: identity(message), step: format!("event {}", self.listener.name), generation: 0 };
        let origin = event.clone();
        let job = Job::new(id, Op::Do, self.listener.allowed, move |tx, _| {
            handler(EventCx { deps: deps.clone(), message: event.clone() }, tx, event.clone())
        });
        Some(job.of(&self.tracing, topic, origin))
    }

    /// Handles events that are all of different keys, so that none of them has to wait for another.
    async fn handle(&self, run: &[(usize, &Message)], verdicts: &mut [Verdict]) -> Result<(), Unavailable> {
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
            let run: Vec<_> = left.drain(..different).collect();
            self.handle(&run, &mut verdicts).await?;
        }
        Ok(verdicts)
    }
}

/// What source and id say together, as a UUID (version 5).
fn identity(message: &Message) -> SagaId {
    let name = format!("{} {}", message.source, message.id);
    Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()).into()
}
