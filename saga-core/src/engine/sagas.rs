use super::{
    Shared,
    drive::Letter,
    outcome::{Ended, Outcome, Shape, Told},
};
use crate::{
    BuildError, CodecError, Definition, Encoded, Saga, SagaId,
    definition::StepIndex,
    machine::{Event, State, Status},
    store::{Hint, Mail, Posted, Record, Start, Started as Answer, StoreError},
    trace::TraceContext,
    transport::TransportError,
};
use opentelemetry::{Context, KeyValue, trace::SpanKind};
use std::{fmt, marker::PhantomData, sync::Arc};
use tokio::{sync::watch, time::timeout};
use uuid::Uuid;

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
    /// A saga belongs to another definition than the one that was asked about it: to another name, or to a version that
    /// this engine has not registered.
    #[error(
        "saga {saga} is a `{found}`, not a `{expected}`: only versions that this engine has registered can be read, and `status` of any"
    )]
    WrongDefinition {
        /// Which saga.
        saga: SagaId,
        /// Name and version in the store.
        found: String,
        /// Name and version of the type.
        expected: String,
    },
    /// A saga is of a definition that this engine has not registered, so that its journal cannot be read.
    #[error("saga {saga} is a `{found}`, which is not registered here: register it, or ask for the saga's `status`")]
    NotRegistered {
        /// Which saga.
        saga: SagaId,
        /// Name and version in the store.
        found: String,
    },
    /// A step waits for the outcome of another saga of its own engine. While it waits it holds a place in memory and
    /// one of the attempts, which the other saga may need: when enough steps do that, nothing moves any more.
    #[error(
        "step `{step}` waits for the outcome of saga {saga}, and holds a place meanwhile which that saga may need: start it, look with `history` whether it has ended, and return `StepError::retry` until it has"
    )]
    WaitsInStep {
        /// The step that called.
        step: String,
        /// The saga that it wanted to wait for.
        saga: SagaId,
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

    /// What it takes to read a saga's journal: of this type's own version, or of another one that is registered here.
    fn shape_of(&self, record: &Record) -> Result<Shape, Error> {
        if (record.name.as_str(), record.version) == (S::NAME, S::VERSION) {
            let definition = self.definition.as_ref().map_err(Clone::clone)?;
            return Ok(Shape { graph: definition.graph.clone(), output: definition.output });
        }
        let of_another_version = self.shared.shape_of(record).filter(|_| record.name == S::NAME);
        of_another_version.ok_or_else(|| Error::WrongDefinition {
            saga: record.saga,
            found: format!("{} v{}", record.name, record.version),
            expected: format!("{} v{}", S::NAME, S::VERSION),
        })
    }

    /// A handle to a saga that was started before, here or elsewhere.
    pub fn get(&self, saga: SagaId) -> Started<S> {
        Started { sagas: self.clone(), saga, ended: None, new: false }
    }

    /// The saga that was started with this key, whatever its version: the handle reads those that are registered here.
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
    /// Not in a step: while that waits it holds a place which the other saga may need, so it is refused, and parks the
    /// saga whose step it is. There, start the saga, look whether it [has ended](History::outcome), and return
    /// [`StepError::retry`](crate::StepError::retry) until it has, under a policy that is patient enough. A saga of
    /// another engine may be waited for.
    ///
    /// A saga of another version of this type is waited for and read as well, if that version is registered here.
    ///
    /// # Errors
    /// [`Error::NoSuchSaga`]; [`Error::WaitsInStep`] in a step of the same engine; [`Error::WrongDefinition`] when the
    /// saga is of another type, or of a version that is not registered here; [`Error::Codec`] when its output is not an
    /// `S::Output`; [`Error::Store`].
    pub async fn outcome(&self) -> Result<Outcome<S::Output>, Error> {
        self.sagas.shared.may_wait(self.saga)?;
        if let Some(ended) = &self.ended
            && let Ok(ended) = ended.clone().wait_for(Option::is_some).await
            && let Some(ended @ (Ended::Completed(_) | Ended::RolledBack(_))) = ended.clone()
        {
            return ended.typed();
        }
        // It runs elsewhere, was put back into the store, or is parked and may have been resumed since.
        self.sagas.shared.end_of(self.saga, |record| self.sagas.shape_of(record)).await?.typed()
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

    /// What has happened to the saga so far, as its journal tells it. It may be of another version of this type, if
    /// that is registered here.
    ///
    /// # Errors
    /// [`Error::NoSuchSaga`], [`Error::WrongDefinition`], [`Error::Journal`], [`Error::Store`].
    pub async fn history(&self) -> Result<History<S>, Error> {
        let told = self.sagas.shared.told(self.saga, |record| self.sagas.shape_of(record)).await?;
        Ok(History { told, of: PhantomData })
    }
}

/// The journal of one saga. Displays as one line an event.
pub struct History<S: Saga> {
    told: Told,
    of: PhantomData<fn() -> S>,
}

impl<S: Saga> History<S> {
    /// The events, oldest first.
    pub fn events(&self) -> &[Event] {
        &self.told.events
    }

    /// The state that the events add up to.
    pub fn state(&self) -> State {
        self.told.state()
    }

    /// How the saga ended, if it has, or that it is parked. Unlike [`Started::outcome`] it waits for nothing.
    ///
    /// # Errors
    /// [`Error::Codec`] when the output is not an `S::Output`.
    pub fn outcome(&self) -> Result<Option<Outcome<S::Output>>, Error> {
        self.told.ended().map(Ended::typed).transpose()
    }
}

impl<S: Saga> fmt::Display for History<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let graph = &*self.told.shape.graph;
        let mut state = State::new(graph);
        for event in &self.told.events {
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
