//! How a saga ended: read from its journal, by the shape of its definition.

use super::{Shared, here, journal, sagas::Error};
use crate::{
    Encoded, SagaId,
    definition::{Graph, StepIndex},
    machine::{Cause, Course, Event, State, Status, Step},
    store::{DefinitionId, Record},
};
use serde::de::DeserializeOwned;
use std::{fmt, sync::Arc};

/// How a saga ended, or that it waits for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// Every step succeeded.
    Completed(T),
    /// It turned back, and whatever had happened was undone.
    RolledBack(Why),
    /// It is stopped for a person: see [`Sagas::resume`](crate::Sagas::resume) and [`Sagas::skip`](crate::Sagas::skip).
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

impl Why {
    /// Why a saga turned back.
    pub(crate) fn of(graph: &Graph, cause: &Cause) -> Self {
        match cause {
            Cause::Failed { step, error } => {
                Self { step: Some(graph.node(*step).name.to_string()), reason: error.clone() }
            }
            Cause::Cancelled { reason } => Self { step: None, reason: reason.clone() },
        }
    }

    /// Why a saga is parked, if it is.
    pub(crate) fn parked(graph: &Graph, state: &State) -> Option<Self> {
        let (step, reason) = state.parked_at()?;
        Some(Self { step: step.map(|step| graph.node(step).name.to_string()), reason: reason.to_owned() })
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.step {
            Some(step) => write!(f, "{step}: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
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
        match (state.status(), state.course()) {
            (Status::Completed, _) => match &state.steps()[output] {
                Step::Succeeded(output) => Some(Self::Completed(output.clone())),
                // The output of a completed saga's own step cannot be skipped: its skip is refused.
                _ => None,
            },
            (Status::RolledBack, Course::Backward(cause)) => Some(Self::RolledBack(Why::of(graph, cause))),
            (Status::Parked, _) => Why::parked(graph, state).map(Self::Parked),
            _ => None,
        }
    }

    pub(crate) fn untyped(self) -> Outcome<Encoded> {
        match self {
            Self::Completed(output) => Outcome::Completed(output),
            Self::RolledBack(why) => Outcome::RolledBack(why),
            Self::Parked(why) => Outcome::Parked(why),
        }
    }

    pub(crate) fn typed<T: DeserializeOwned>(self) -> Result<Outcome<T>, Error> {
        Ok(match self {
            Self::Completed(output) => Outcome::Completed(output.decode()?),
            Self::RolledBack(why) => Outcome::RolledBack(why),
            Self::Parked(why) => Outcome::Parked(why),
        })
    }
}

/// What it takes of a definition to read the journals of its sagas.
#[derive(Clone)]
pub(crate) struct Shape {
    pub(crate) graph: Arc<Graph>,
    pub(crate) output: StepIndex,
}

/// What the store says about one saga.
pub(crate) struct Told {
    pub(crate) shape: Shape,
    pub(crate) events: Vec<Event>,
    /// As the row says.
    status: Status,
}

impl Told {
    pub(crate) fn state(&self) -> State {
        State::replay(&self.shape.graph, &self.events)
    }

    pub(crate) fn ended(&self) -> Option<Ended> {
        let ended = Ended::of(&self.shape.graph, self.shape.output, &self.state());
        let unsaid = || Why { step: None, reason: "the store took no journal entry that says why: see the log".into() };
        ended.or_else(|| (self.status == Status::Parked).then(|| Ended::Parked(unsaid())))
    }
}

impl Shared {
    /// The shape of a saga's definition, if it is registered here.
    pub(crate) fn shape_of(&self, record: &Record) -> Option<Shape> {
        let id = DefinitionId { name: record.name.clone(), version: record.version };
        let process = self.processes.get(&id)?;
        Some(Shape { graph: process.graph().clone(), output: process.output() })
    }

    /// What has happened to a saga so far.
    pub(crate) async fn told(
        &self,
        saga: SagaId,
        shape: impl Fn(&Record) -> Result<Shape, Error>,
    ) -> Result<Told, Error> {
        let record = self.patiently(|| self.store.read(saga)).await?.ok_or(Error::NoSuchSaga(saga))?;
        let shape = shape(&record)?;
        let events = journal::decode(&record.journal).map_err(|source| Error::Journal { saga, source })?;
        Ok(Told { shape, events, status: record.status })
    }

    /// Waits until a saga has ended or is parked, wherever it runs.
    pub(crate) async fn end_of(
        &self,
        saga: SagaId,
        shape: impl Fn(&Record) -> Result<Shape, Error>,
    ) -> Result<Ended, Error> {
        loop {
            if !self.outcomes.ended(self, saga).await? {
                return Err(Error::NoSuchSaga(saga));
            }
            if let Some(ended) = self.told(saga, &shape).await?.ended() {
                return Ok(ended);
            }
        }
    }

    /// Refuses to let a step wait for another saga of its own engine: while it waits it holds a place that the other
    /// one may need.
    pub(crate) fn may_wait(self: &Arc<Self>, saga: SagaId) -> Result<(), Error> {
        match here::step_of(self) {
            Some(step) => {
                tracing::warn!(%saga, step, "the step waits for the outcome of another saga of its own engine: it is refused");
                Err(Error::WaitsInStep { step, saga })
            }
            None => Ok(()),
        }
    }
}
