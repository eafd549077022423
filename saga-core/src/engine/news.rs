//! What the log says of a saga once it is durable: that it turned back, that it is parked, that it has ended.

use super::outcome::Why;
use crate::{
    SagaId,
    definition::Graph,
    machine::{Course, State, Status},
};
use std::fmt::Display;

pub(super) enum News {
    TurnedBack(Why),
    Parked(Why),
    Ended(Status),
}

/// Whether a saga is on its way back.
pub(super) const fn is_backward(state: &State) -> bool {
    matches!(state.course(), Course::Backward(_))
}

impl News {
    /// What is new in a state, after what was told last: the status, and whether the saga was on its way back.
    pub(super) fn of(state: &State, graph: &Graph, status: Status, was_backward: bool) -> Vec<Self> {
        let mut news = vec![];
        if let (Course::Backward(cause), false) = (state.course(), was_backward) {
            news.push(Self::TurnedBack(Why::of(graph, cause)));
        }
        match state.status() {
            now if now == status => {}
            Status::Parked => news.extend(Why::parked(graph, state).map(Self::Parked)),
            now if now.is_final() => news.push(Self::Ended(now)),
            _ => {}
        }
        news
    }

    pub(super) fn tell(self, saga: SagaId, name: &impl Display) {
        match self {
            Self::TurnedBack(Why { step, reason }) => {
                tracing::info!(%saga, %name, step = step.as_deref(), reason, "the saga turns back");
            }
            Self::Parked(Why { step, reason }) => {
                tracing::warn!(%saga, %name, step = step.as_deref(), reason, "the saga is parked: a person has to look");
            }
            Self::Ended(status) => tracing::debug!(%saga, %name, %status, "the saga has ended"),
        }
    }
}
