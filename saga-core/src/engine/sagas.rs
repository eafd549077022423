use super::{Shared, drive::Letter, journal};
use crate::{
    BuildError, CodecError, Definition, Encoded, Saga, SagaId,
    definition::{Graph, StepIndex},
    machine::{Cause, Course, Event, State, Status, Step},
    store::{Hint, Mail, Posted, Start, Started as Answer, StoreError},
    trace::TraceContext,
    transport::TransportError,
};
use opentelemetry::{Context, KeyValue, trace::SpanKind};
use std::{fmt, sync::Arc};
use tokio::{sync::watch, time::timeout};
use uuid::Uuid;

/// How a saga ended, or that it waits for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// Every step succeeded.
    Completed(T),
    /// It turned back, and whatever had happened was undone.
    RolledBack(Why),
    /// It is stopped for a person: see [`Sagas::resume`] and [`Sagas::skip`].
    Parked(Why),
}

/// Why a saga turned back or was parked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// The step at which it happened; `None` when it was the saga as a whole (it was cancelled, say).
    pub step: Option<String>,
    /// What the step's last attempt said, or whoever stopped the saga.
    pub reason: String,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.step {
            Some(step) => write!(f, "{step}: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

/// Why a call to the engine did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The definition breaks a rule.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The key belongs to a saga with another input.
    #[error(
        "saga `{name}` was already started with key `{key}`, but with another input (as {saga}): use a key of its own for each business action"
    )]
    KeyTaken {
        /// The saga's name.
        name: &'static str,
        /// The key.
        key: String,
        /// The saga that has it.
        saga: SagaId,
    },
    /// What was given is larger than the engine was configured for.
    #[error(
        "this has {bytes} bytes, more than the {allowed} allowed: pass a reference instead, or raise `Config::payload`"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        allowed: usize,
    },
    /// An input cannot be written, or an output cannot be read.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A journal cannot be read by this version of the library.
    #[error("the journal of saga {saga} cannot be read: {source}")]
    Journal {
        /// Whose.
        saga: SagaId,
        /// Why.
        source: serde_json::Error,
    },
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A saga sends commands, and the engine has no transport.
    #[error(
        "step `{step}` of saga `{saga}` sends a command: give the engine a transport with `EngineBuilder::transport`"
    )]
    NoTransport {
        /// The saga's name.
        saga: String,
        /// The step's name.
        step: String,
    },
    /// Replies cannot be received.
    #[error("replies cannot be received: {0}")]
    Transport(#[from] TransportError),
    /// There is no such saga in this store.
    #[error("there is no saga {0} in this store")]
    NoSuchSaga(SagaId),
    /// The saga has ended, nothing can be said to it any more.
    #[error("saga {0} has ended")]
    Ended(SagaId),
    /// A saga belongs to another definition than the one that was asked about it.
    #[error("saga {saga} is a `{found}`, not a `{expected}`")]
    WrongDefinition {
        /// Which saga.
        saga: SagaId,
        /// Name and version in the store.
        found: String,
        /// Name and version of the type.
        expected: String,
    },
    /// The stored graph of a version is another one.
    #[error(
        "saga `{name}` version {version} was registered before with another graph: change the version together with the graph\nregistered:\n{stored}\nnow:\n{now}"
    )]
    ChangedGraph {
        /// The saga's name.
        name: &'static str,
        /// Its version.
        version: u32,
        /// The fingerprint in the store.
        stored: String,
        /// The fingerprint of the definition.
        now: String,
    },
}

/// How a saga ended, with its types forgotten.
#[derive(Clone, Debug)]
pub(crate) enum Ended {
    Completed(Encoded),
    RolledBack(Why),
    Parked(Why),
}

impl Ended {
    pub(crate) fn of(graph: &Graph, output: StepIndex, state: &State) -> Option<Self> {
        let name = |step: StepIndex| graph.node(step).name.to_string();
        match (state.status(), state.course()) {
            (Status::Completed, _) => match &state.steps()[output] {
                Step::Succeeded(output) => Some(Self::Completed(output.clone())),
                // The output of a completed saga's own step cannot be skipped: its skip is refused.
                _ => None,
            },
            (Status::RolledBack, Course::Backward(Cause::Failed { step, error })) => {
                Some(Self::RolledBack(Why { step: Some(name(*step)), reason: error.clone() }))
            }
            (Status::RolledBack, Course::Backward(Cause::Cancelled { reason })) => {
                Some(Self::RolledBack(Why { step: None, reason: reason.clone() }))
            }
            (Status::Parked, _) => state
                .parked_at()
                .map(|(step, reason)| Self::Parked(Why { step: step.map(name), reason: reason.to_owned() })),
            _ => None,
        }
    }

    fn typed<S: Saga>(self) -> Result<Outcome<S::Output>, Error> {
        Ok(match self {
            Self::Completed(output) => Outcome::Completed(output.decode()?),
            Self::RolledBack(why) => Outcome::RolledBack(why),
            Self::Parked(why) => Outcome::Parked(why),
        })
    }
}

/// The sagas of one type in one store: to start them, to ask about them, to speak to them.
///
/// Cheap to clone; lives well in a web framework's state. It works in every process on the store, whether that process
/// runs the sagas or not.
pub struct Sagas<S: Saga> {
    shared: Arc<Shared>,
    /// A definition that breaks a rule is reported by each call that needs it.
    definition: Result<Arc<Definition<S>>, BuildError>,
}

impl<S: Saga> Clone for Sagas<S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), definition: self.definition.clone() }
    }
}

impl<S: Saga> Sagas<S> {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, definition: Definition::build().map(Arc::new) }
    }

    /// Starts a saga, durably, and at most once for each key: with a key that was used before, and the same
    /// input, the answer is the saga that was started then.
    ///
    /// When this process has room it runs the saga at once; else the saga waits in the store for a process that has.
    ///
    /// # Errors
    /// [`Error::KeyTaken`] when the key was used with another input; [`Error::TooLarge`] and [`Error::Codec`] for an input that cannot
    /// be kept; [`Error::Store`] when the store did not answer within [`Config::patience`](super::Config::patience): whether the saga was started is then not known, and
    /// calling again with the same key resolves it.
    pub async fn submit(&self, key: impl Into<String>, input: S::Input) -> Result<Started<S>, Error> {
        let (start, key, _anchor) = self.start(key.into(), &input)?;
        let saga = start.saga;
        let input = start.input.clone();
        let patience = self.shared.config.patience;
        let lost = |_| StoreError::Unavailable(format!("no answer within {patience:?}"));
        let (answer, ended) = timeout(patience, self.shared.clone().submit(start)).await.map_err(lost)??;
        self.started(saga, key, &input, answer, ended).await
    }

    /// What [`submit`](Self::submit) would write, for stores that can write it in the user's own transaction. Nobody owns it: it
    /// is due as soon as that transaction commits.
    ///
    /// # Errors
    /// As [`submit`](Self::submit), for the input.
    pub fn to_start(&self, key: impl Into<String>, input: &S::Input) -> Result<Start, Error> {
        self.start(key.into(), input).map(|(start, ..)| start)
    }

    /// What a store's answer to [`to_start`](Self::to_start) means.
    ///
    /// # Errors
    /// [`Error::KeyTaken`].
    pub async fn has_started(&self, start: &Start, answer: Answer) -> Result<Started<S>, Error> {
        self.started(start.saga, start.key.clone(), &start.input, answer, None).await
    }

    /// The last part is a span, and lasts until it is dropped.
    fn start(&self, key: String, input: &S::Input) -> Result<(Start, String, Context), Error> {
        self.definition.as_ref().map_err(Clone::clone)?;
        let input = Encoded::of(input)?;
        self.fits(input.as_str())?;
        // Some types write what they cannot read (a deep tree, say): no step could ever read it.
        input.decode::<S::Input>()?;
        let saga = SagaId::generate();
        let name = format!("saga start {}", S::NAME);
        let anchor = self.shared.tracing.begin(name, SpanKind::Internal, &Context::current(), || {
            vec![
                KeyValue::new("saga.id", saga.to_string()),
                KeyValue::new("saga.name", S::NAME),
                KeyValue::new("saga.version", i64::from(S::VERSION)),
            ]
        });
        let start = Start {
            saga,
            trace: TraceContext::of(&anchor),
            name: S::NAME.into(),
            version: S::VERSION,
            key: key.clone(),
            input,
            owner: None,
        };
        Ok((start, key, anchor))
    }

    fn fits(&self, text: &str) -> Result<(), Error> {
        let (bytes, allowed) = (text.len(), self.shared.config.payload);
        if bytes > allowed { Err(Error::TooLarge { bytes, allowed }) } else { Ok(()) }
    }

    async fn started(
        &self,
        saga: SagaId,
        key: String,
        input: &Encoded,
        answer: Answer,
        ended: Option<watch::Receiver<Option<Ended>>>,
    ) -> Result<Started<S>, Error> {
        match answer {
            Answer::New => {
                self.shared.metrics.started(S::NAME);
                Ok(Started { sagas: self.clone(), saga, ended, new: true })
            }
            Answer::Existing { saga, same_input } if same_input || self.means_the_same(saga, input).await? => {
                Ok(Started { sagas: self.clone(), saga, ended: None, new: false })
            }
            Answer::Existing { saga, .. } => Err(Error::KeyTaken { name: S::NAME, key, saga }),
        }
    }

    /// A map is written in any order: where the bytes differ, what they say decides.
    async fn means_the_same(&self, saga: SagaId, input: &Encoded) -> Result<bool, Error> {
        let before = self.shared.patiently(|| self.shared.store.read(saga)).await?;
        Ok(before.is_some_and(|before| before.input.means_the_same(input)))
    }

    /// A handle to a saga that was started before, here or elsewhere.
    pub fn get(&self, saga: SagaId) -> Started<S> {
        Started { sagas: self.clone(), saga, ended: None, new: false }
    }

    /// The saga that was started with this key.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn find(&self, key: &str) -> Result<Option<Started<S>>, Error> {
        let found = self.shared.patiently(|| self.shared.store.find(S::NAME, key)).await?;
        Ok(found.map(|saga| self.get(saga)))
    }

    /// Asks to cancel: the saga turns back, unless it is too late because its pivot succeeded, or has no outcome yet and
    /// then succeeds. Answers when the request is durable; [`Started::outcome`] says what came of it.
    ///
    /// # Errors
    /// [`Error::NoSuchSaga`], [`Error::Ended`], [`Error::Store`].
    pub async fn cancel(&self, saga: SagaId, reason: impl Into<String>) -> Result<(), Error> {
        self.post(saga, &Letter::Cancel { reason: reason.into() }).await
    }

    /// What [`cancel`](Self::cancel) would post, for stores that can write it in the user's own transaction.
    ///
    /// # Errors
    /// [`Error::TooLarge`].
    pub fn to_cancel(&self, saga: SagaId, reason: impl Into<String>) -> Result<Mail, Error> {
        self.mail(saga, &Letter::Cancel { reason: reason.into() })
    }

    /// An operator's verb: lifts the parking. Whatever is stuck is tried again, with as many attempts as at first; a step that had
    /// failed for certain is tried under a new idempotency key, one in doubt under the old one.
    ///
    /// # Errors
    /// [`Error::NoSuchSaga`], [`Error::Ended`], [`Error::Store`]. A saga that is not parked notes the request and goes on.
    pub async fn resume(&self, saga: SagaId, by: impl Into<String>) -> Result<(), Error> {
        self.post(saga, &Letter::Resume { by: by.into() }).await
    }

    /// An operator's verb: goes on without a stuck step (whose output nothing reads) or without a stuck compensation. What the step did,
    /// or what its compensation did not undo, is left to the person who says so.
    ///
    /// # Errors
    /// [`Error::NoSuchSaga`], [`Error::Ended`], [`Error::Store`]. When the step is not stuck, or its output is read, the journal says that the skip was refused.
    pub async fn skip(&self, saga: SagaId, step: impl Into<String>, reason: impl Into<String>) -> Result<(), Error> {
        self.post(saga, &Letter::Skip { step: step.into(), reason: reason.into() }).await
    }

    fn mail(&self, saga: SagaId, letter: &Letter) -> Result<Mail, Error> {
        let letter = Encoded::of(letter)?;
        self.fits(letter.as_str())?;
        Ok(Mail { saga, message: Uuid::now_v7().to_string(), body: letter.as_str().into() })
    }

    async fn post(&self, saga: SagaId, letter: &Letter) -> Result<(), Error> {
        let mail = [self.mail(saga, letter)?];
        let posted = self.shared.patiently(|| self.shared.store.post(&mail)).await?;
        self.shared.store.hint(Hint::Mail);
        match posted.first() {
            Some(Posted::Accepted) => Ok(()),
            Some(Posted::Ended) => Err(Error::Ended(saga)),
            _ => Err(Error::NoSuchSaga(saga)),
        }
    }
}

/// A saga that was started.
pub struct Started<S: Saga> {
    sagas: Sagas<S>,
    saga: SagaId,
    ended: Option<watch::Receiver<Option<Ended>>>,
    new: bool,
}

impl<S: Saga> fmt::Debug for Started<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", S::NAME, self.saga)
    }
}

impl<S: Saga> Started<S> {
    /// Its identity.
    pub const fn id(&self) -> SagaId {
        self.saga
    }

    /// Whether this very call started it; `false` when the key had been used before.
    pub const fn is_new(&self) -> bool {
        self.new
    }

    /// Waits until the saga has ended or is parked, wherever it runs. Dropped meanwhile, it changes nothing.
    ///
    /// # Errors
    /// [`Error::NoSuchSaga`]; [`Error::WrongDefinition`] when the saga is of another type; [`Error::Codec`] when its output is not an `S::Output`;
    /// [`Error::Store`].
    pub async fn outcome(&self) -> Result<Outcome<S::Output>, Error> {
        if let Some(ended) = &self.ended
            && let Ok(ended) = ended.clone().wait_for(Option::is_some).await
            && let Some(ended @ (Ended::Completed(_) | Ended::RolledBack(_))) = ended.clone()
        {
            return ended.typed::<S>();
        }
        // It runs elsewhere, was put back into the store, or is parked and may have been resumed since.
        loop {
            let ended = self.sagas.shared.outcomes.ended(&self.sagas.shared, self.saga).await?;
            if !ended {
                return Err(Error::NoSuchSaga(self.saga));
            }
            if let Some(ended) = self.history().await?.ended() {
                return ended.typed::<S>();
            }
        }
    }

    /// Where the saga stands.
    ///
    /// # Errors
    /// [`Error::NoSuchSaga`], [`Error::Store`].
    pub async fn status(&self) -> Result<Status, Error> {
        let (shared, sagas) = (&self.sagas.shared, &[self.saga]);
        let statuses = shared.patiently(|| shared.store.statuses(sagas)).await?;
        statuses.first().copied().flatten().ok_or(Error::NoSuchSaga(self.saga))
    }

    /// What has happened to the saga so far, as its journal tells it.
    ///
    /// # Errors
    /// [`Error::NoSuchSaga`], [`Error::WrongDefinition`], [`Error::Journal`], [`Error::Store`].
    pub async fn history(&self) -> Result<History<S>, Error> {
        let shared = &self.sagas.shared;
        let record = shared.patiently(|| shared.store.read(self.saga)).await?.ok_or(Error::NoSuchSaga(self.saga))?;
        if (record.name.as_str(), record.version) != (S::NAME, S::VERSION) {
            return Err(Error::WrongDefinition {
                saga: self.saga,
                found: format!("{} v{}", record.name, record.version),
                expected: format!("{} v{}", S::NAME, S::VERSION),
            });
        }
        let events = journal::decode(&record.journal).map_err(|source| Error::Journal { saga: self.saga, source })?;
        Ok(History { definition: self.sagas.definition.clone()?, events, status: record.status })
    }
}

/// The journal of one saga. Displays as one line an event.
pub struct History<S: Saga> {
    definition: Arc<Definition<S>>,
    events: Vec<Event>,
    /// As the row says.
    status: Status,
}

impl<S: Saga> History<S> {
    /// The events, oldest first.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The state that the events add up to.
    pub fn state(&self) -> State {
        State::replay(self.definition.graph(), &self.events)
    }

    fn ended(&self) -> Option<Ended> {
        let ended = Ended::of(self.definition.graph(), self.definition.output, &self.state());
        let unsaid = || Why { step: None, reason: "the store took no journal entry that says why: see the log".into() };
        ended.or_else(|| (self.status == Status::Parked).then(|| Ended::Parked(unsaid())))
    }
}

impl<S: Saga> fmt::Display for History<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let graph = self.definition.graph();
        let mut state = State::new(graph);
        for event in &self.events {
            write!(f, "{}", event.told(graph))?;
            if matches!(event, Event::Lapsed { .. }) {
                let agenda = state.agenda(graph);
                let names = |steps: &[StepIndex]| {
                    steps.iter().map(|step| graph.node(*step).name.to_string()).collect::<Vec<_>>().join(", ")
                };
                if !agenda.run.is_empty() {
                    write!(f, " while {} may have been under way", names(&agenda.run))?;
                }
                if !agenda.compensate.is_empty() {
                    write!(f, " while undoing {} may have been under way", names(&agenda.compensate))?;
                }
            }
            writeln!(f)?;
            state.apply(graph, event);
        }
        Ok(())
    }
}
