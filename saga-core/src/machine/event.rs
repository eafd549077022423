use crate::{
    Encoded,
    definition::{Graph, StepIndex},
};
use serde::{Deserialize, Serialize};

/// Time on a saga's own clock: milliseconds since it was started, as the store counts them.
///
/// The machine has no clock. It is told the time, and since that time is relative to the saga's start by *one* clock,
/// the store's, no two workers can disagree about it by more than the time a message takes.
pub type Millis = u64;

/// The newest format of journals that this version of the library can read. It grows with each kind of event, or of
/// field, that earlier versions cannot.
pub const FORMAT: u32 = 1;

/// One fact in a saga's journal.
///
/// Events say what was *decided*, never what has to be decided again: when a policy is tuned while
/// a saga runs, its past stays as it was.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A step succeeded, once and for all.
    Succeeded {
        /// Which one.
        step: StepIndex,
        /// What it returned.
        output: Encoded,
    },
    /// What the command of an enabled step, or of its undo, says: written before it is sent for the first time, and sent like this ever after.
    Commanded {
        /// Of which step.
        step: StepIndex,
        /// The payload.
        body: Encoded,
    },
    /// A command was published, and the saga leaves memory until there is a reply, or until the time for it is over.
    Awaiting {
        /// Of which step.
        step: StepIndex,
        /// When that is.
        until: Millis,
    },
    /// An attempt did not succeed; another one follows.
    Retrying {
        /// Of which step.
        step: StepIndex,
        /// It may have happened.
        in_doubt: bool,
        /// When the first attempt that did not succeed ended.
        since: Millis,
        /// When the next one may start.
        at: Millis,
        /// What the attempt said.
        error: String,
    },
    /// A step ended without success, and what is before it is undone.
    Failed {
        /// Which one.
        step: StepIndex,
        /// It may have happened: then it is compensated too.
        in_doubt: bool,
        /// What the last attempt said.
        error: String,
    },
    /// A step gave up where it can be neither undone nor passed: the saga is parked.
    Stuck {
        /// Which one.
        step: StepIndex,
        /// It may have happened.
        in_doubt: bool,
        /// What the last attempt said.
        error: String,
    },
    /// A step was undone, once and for all.
    Compensated {
        /// Which one.
        step: StepIndex,
    },
    /// An attempt to undo did not succeed; another one follows.
    CompensationRetrying {
        /// Of which step.
        step: StepIndex,
        /// When the first attempt that did not succeed ended.
        since: Millis,
        /// When the next one may start.
        at: Millis,
        /// What the attempt said.
        error: String,
    },
    /// A compensation gave up: the saga is parked.
    CompensationStuck {
        /// Of which step.
        step: StepIndex,
        /// What the last attempt said.
        error: String,
    },
    /// A worker that ran the saga was lost with it: an unknown attempt of everything that was enabled.
    Lapsed {
        /// How many workers were lost with this saga so far, as the store counts them.
        total: u32,
        /// When it was noticed.
        at: Millis,
    },
    /// The whole saga was stopped for a person.
    Parked {
        /// Why.
        reason: String,
    },
    /// Somebody asked to cancel. It may be too late.
    CancelRequested {
        /// Why.
        reason: String,
    },
    /// An operator lifted the parking: whatever is stuck is tried again.
    Resumed {
        /// Who, or why.
        by: String,
    },
    /// An operator said to go on without a step, or without its compensation.
    Skipped {
        /// Which one.
        step: StepIndex,
        /// Why.
        reason: String,
    },
    /// A message from outside did not apply and changed nothing.
    Refused {
        /// What it was, and why it did not apply.
        reason: String,
    },
}

impl Event {
    /// How many bytes of it stay in the state.
    pub(crate) fn payload(&self) -> usize {
        match self {
            Self::Succeeded { output: payload, .. } | Self::Commanded { body: payload, .. } => payload.as_str().len(),
            _ => 0,
        }
    }

    /// How many bytes it has in a journal, about.
    pub(crate) fn bytes(&self) -> usize {
        const AROUND_IT: usize = 64;
        AROUND_IT
            + match self {
                Self::Succeeded { .. } | Self::Commanded { .. } => self.payload(),
                Self::Retrying { error: text, .. }
                | Self::Failed { error: text, .. }
                | Self::Stuck { error: text, .. }
                | Self::CompensationRetrying { error: text, .. }
                | Self::CompensationStuck { error: text, .. }
                | Self::Parked { reason: text }
                | Self::CancelRequested { reason: text }
                | Self::Resumed { by: text }
                | Self::Skipped { reason: text, .. }
                | Self::Refused { reason: text } => text.len(),
                Self::Awaiting { .. } | Self::Compensated { .. } | Self::Lapsed { .. } => 0,
            }
    }

    /// The event as a sentence, with the step's name.
    pub fn told(&self, graph: &Graph) -> String {
        let name = |step: &StepIndex| &graph.node(*step).name;
        let doubt = |in_doubt: &bool| if *in_doubt { ", and it may have happened" } else { "" };
        match self {
            Self::Succeeded { step, output } if output.as_str() == "null" => format!("{} succeeded", name(step)),
            Self::Succeeded { step, output } => format!("{} succeeded: {output:?}", name(step)),
            Self::Commanded { step, body } => format!("{} is to be commanded: {body:?}", name(step)),
            Self::Awaiting { step, .. } => format!("{} was commanded, its reply is awaited", name(step)),
            Self::Retrying { step, in_doubt, error, .. } => {
                format!("{} will be tried again{}: {error}", name(step), doubt(in_doubt))
            }
            Self::Failed { step, in_doubt, error } => format!("{} failed{}: {error}", name(step), doubt(in_doubt)),
            Self::Stuck { step, in_doubt, error } => {
                format!("{} gave up{}, parked: {error}", name(step), doubt(in_doubt))
            }
            Self::Compensated { step } => format!("{} was undone", name(step)),
            Self::CompensationRetrying { step, error, .. } => {
                format!("undoing {} will be tried again: {error}", name(step))
            }
            Self::CompensationStuck { step, error } => format!("undoing {} gave up, parked: {error}", name(step)),
            Self::Lapsed { total, .. } => format!("its worker was lost (number {total})"),
            Self::Parked { reason } => format!("parked: {reason}"),
            Self::CancelRequested { reason } => format!("cancel requested: {reason}"),
            Self::Resumed { by } => format!("resumed: {by}"),
            Self::Skipped { step, reason } => format!("{} was skipped: {reason}", name(step)),
            Self::Refused { reason } => format!("refused: {reason}"),
        }
    }
}
