use super::{Course, Event, Millis, State, Step, Tries};
use crate::{
    Encoded,
    definition::{Graph, Kind, Policy, StepIndex},
};
use std::time::Duration;

/// A saga that this many workers in a row died with, without any progress between, is parked: it may be what kills
/// them.
const LAPSES_BEFORE_PARKED: u32 = 3;

/// How one attempt of a step ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It happened.
    Success(Encoded),
    /// Transient, and nothing happened.
    Retry(String),
    /// A business no, and nothing happened.
    Fail(String),
    /// It may have happened.
    Unknown(String),
    /// What the step needs cannot be read, or what it returned cannot be kept: no retry will change that, and a
    /// person has to look. It may have happened.
    Broken(String),
}

impl Outcome {
    /// What it is called.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Success(_) => "success",
            Self::Retry(_) => "retry",
            Self::Fail(_) => "fail",
            Self::Unknown(_) => "unknown",
            Self::Broken(_) => "broken",
        }
    }

    /// What it says if it is no success.
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Success(_) => None,
            Self::Retry(error) | Self::Fail(error) | Self::Unknown(error) | Self::Broken(error) => Some(error),
        }
    }
}

/// What happened outside.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// An attempt of a step ended.
    Attempt {
        /// Which step.
        step: StepIndex,
        /// How.
        outcome: Outcome,
    },
    /// A step that is to be settled has no attempt under way.
    NotRunning {
        /// Which step.
        step: StepIndex,
    },
    /// An attempt of a compensation ended; with what it said, if it did not succeed.
    Compensation {
        /// Of which step.
        step: StepIndex,
        /// How.
        outcome: Result<(), String>,
    },
    /// What the command of an enabled step, or of its undo, is to say.
    Command {
        /// Of which step.
        step: StepIndex,
        /// The payload.
        body: Encoded,
    },
    /// A command was published, and the saga is about to leave memory before there is a reply.
    Await {
        /// Of which step.
        step: StepIndex,
        /// When the time for the reply is over.
        until: Millis,
    },
    /// Workers were lost while they ran the saga.
    Lapsed {
        /// How many in all, as the store counts them.
        total: u32,
        /// Which of them (the first is 1) were silent and not dead: they came back.
        survived: Vec<u32>,
    },
    /// What the saga wanted to write was refused by the store for good.
    Unwritable {
        /// What the store said.
        reason: String,
    },
    /// Somebody asks to cancel.
    Cancel {
        /// Why.
        reason: String,
    },
    /// An operator lifts the parking.
    Resume {
        /// Who, or why.
        by: String,
    },
    /// An operator wants to go on without a stuck step, or without its stuck compensation.
    Skip {
        /// The step's name.
        step: String,
        /// Why.
        reason: String,
    },
}

/// The time and the chance that a decision may use.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Clock {
    /// On the saga's own clock.
    pub now: Millis,
    /// In 0..=1.
    pub jitter: f64,
}

impl State {
    /// What an input means, as the events to write. Empty when it means nothing any more: late and repeated inputs are no errors.
    pub fn decide(&self, graph: &Graph, input: Input, clock: Clock) -> Vec<Event> {
        match input {
            Input::Attempt { step, outcome } => match &self.steps[step] {
                Step::Enabled(tries) => vec![self.attempt_ended(graph, step, tries, outcome, clock)],
                _ => vec![],
            },
            Input::NotRunning { step } => match (&self.steps[step], &self.course) {
                (Step::Enabled(tries), Course::Backward(_)) => {
                    let in_doubt = tries.in_doubt || tries.awaiting.is_some();
                    vec![Event::Failed { step, in_doubt, error: "the saga turned back".into() }]
                }
                _ => vec![],
            },
            Input::Compensation { step, outcome } => match &self.steps[step] {
                Step::Undoing { tries, .. } => vec![compensation_ended(graph, step, tries, outcome, clock)],
                _ => vec![],
            },
            Input::Command { step, body } => match self.tries(step) {
                Some(tries) if tries.command.is_none() => vec![Event::Commanded { step, body }],
                _ => vec![],
            },
            Input::Await { step, until } => match self.tries(step) {
                Some(tries) if tries.command.is_some() => vec![Event::Awaiting { step, until }],
                _ => vec![],
            },
            Input::Lapsed { .. } | Input::Unwritable { .. } if self.status().is_final() => vec![],
            Input::Lapsed { total, survived } if total > self.lapses => {
                self.workers_lost(graph, total, &survived, clock)
            }
            Input::Lapsed { .. } => vec![],
            Input::Unwritable { reason } => vec![Event::Parked { reason }],
            Input::Cancel { reason } if !self.status().is_final() => vec![Event::CancelRequested { reason }],
            Input::Resume { by } if self.parked_at().is_some() => vec![Event::Resumed { by }],
            Input::Skip { step, reason } => vec![self.skip(graph, &step, reason)],
            Input::Cancel { .. } => refused("cancel: the saga has ended"),
            Input::Resume { .. } => refused("resume: the saga is not parked"),
        }
    }

    fn attempt_ended(&self, graph: &Graph, step: StepIndex, tries: &Tries, outcome: Outcome, clock: Clock) -> Event {
        let (error, unknown) = match outcome {
            Outcome::Success(output) => return Event::Succeeded { step, output },
            Outcome::Broken(error) if matches!(self.course, Course::Backward(_)) => (error, true),
            Outcome::Broken(error) => return Event::Stuck { step, in_doubt: true, error },
            Outcome::Fail(error) => return self.give_up(graph, step, tries, Ended::Refused, error),
            // In process it is over. Of a command a copy may still be on its way, and a participant that said this keeps nothing that would refuse it.
            Outcome::Retry(error) => (error, tries.command.is_some()),
            Outcome::Unknown(error) => (error, true),
        };
        let in_doubt = unknown || tries.in_doubt;
        if matches!(self.course, Course::Backward(_)) {
            return Event::Failed { step, in_doubt, error };
        }
        match next_attempt(&graph.node(step).forward, tries, 1, clock) {
            Some((since, at)) => Event::Retrying { step, in_doubt: unknown, since, at, error },
            None => self.give_up(graph, step, tries, Ended::Exhausted { in_doubt }, error),
        }
    }

    /// No attempt follows. Where the saga can still turn back it does, else it is parked.
    fn give_up(&self, graph: &Graph, step: StepIndex, tries: &Tries, ended: Ended, error: String) -> Event {
        let past_the_pivot =
            graph.pivot().is_some_and(|pivot| matches!(self.steps[pivot], Step::Succeeded(_) | Step::Skipped));
        let in_doubt = match (graph.node(step).kind, ended) {
            (Kind::Compensatable, Ended::Refused) => tries.in_doubt,
            // Where there is no undo to be on the safe side with, the participant's no under the same key is the last word. It will
            // not change under that key: only as a failure for certain can an operator's retry have a new one.
            (_, Ended::Refused) => false,
            (_, Ended::Exhausted { in_doubt }) => in_doubt,
        };
        match graph.node(step).kind {
            Kind::Pivot if in_doubt => Event::Stuck { step, in_doubt, error },
            Kind::Retriable => Event::Stuck { step, in_doubt, error },
            Kind::EffectFree if past_the_pivot => Event::Stuck { step, in_doubt, error },
            _ => Event::Failed { step, in_doubt, error },
        }
    }

    fn workers_lost(&self, graph: &Graph, total: u32, survived: &[u32], clock: Clock) -> Vec<Event> {
        let mut after = self.clone();
        let mut events = vec![];
        let mut push = |after: &mut Self, event: Event| {
            after.apply(graph, &event);
            events.push(event);
        };
        push(&mut after, Event::Lapsed { total, at: clock.now });
        let poisonous = after.deaths_without_progress(survived) >= LAPSES_BEFORE_PARKED;
        for step in 0..after.steps.len() {
            let error = "the worker that ran it was lost, too often".to_owned();
            let node = graph.node(step);
            match &after.steps[step] {
                Step::Enabled(tries)
                    if tries.stuck.is_none()
                        && !matches!(after.course, Course::Backward(_))
                        && next_attempt(&node.forward, tries, 0, clock).is_none() =>
                {
                    let event = after.give_up(graph, step, tries, Ended::Exhausted { in_doubt: true }, error);
                    push(&mut after, event);
                }
                Step::Undoing { tries, .. }
                    if tries.stuck.is_none() && next_attempt(&node.compensation, tries, 0, clock).is_none() =>
                {
                    push(&mut after, Event::CompensationStuck { step, error });
                }
                _ => {}
            }
        }
        if poisonous && after.parked.is_none() && !after.status().is_final() {
            let reason = format!(
                "{total} workers were lost while they ran this saga, and {} of the last ones died without any progress",
                after.deaths_without_progress(survived)
            );
            push(&mut after, Event::Parked { reason });
        }
        events
    }

    fn skip(&self, graph: &Graph, name: &str, reason: String) -> Event {
        let refusal = |why: &str| Event::Refused { reason: format!("skip {name}: {why}") };
        let Some(step) = graph.find(name) else { return refusal("there is no such step") };
        match &self.steps[step] {
            Step::Undoing { tries, .. } if tries.stuck.is_some() => Event::Skipped { step, reason },
            Step::Enabled(tries) if tries.stuck.is_some() => {
                if graph.node(step).output_is_read {
                    return refusal("its output is read by another step, or is the saga's own");
                }
                Event::Skipped { step, reason }
            }
            _ => refusal("it is not stuck"),
        }
    }
}

enum Ended {
    Refused,
    Exhausted { in_doubt: bool },
}

fn refused(reason: &str) -> Vec<Event> {
    vec![Event::Refused { reason: reason.into() }]
}

fn compensation_ended(
    graph: &Graph,
    step: StepIndex,
    tries: &Tries,
    outcome: Result<(), String>,
    clock: Clock,
) -> Event {
    match (outcome, next_attempt(&graph.node(step).compensation, tries, 1, clock)) {
        (Ok(()), _) => Event::Compensated { step },
        (Err(error), Some((since, at))) => Event::CompensationRetrying { step, since, at, error },
        (Err(error), None) => Event::CompensationStuck { step, error },
    }
}

/// When the attempts of this episode began to fail, and when the next one may start; `None` to give up.
/// `ended` attempts have just ended that `tries` does not count yet.
fn next_attempt(policy: &Policy, tries: &Tries, ended: u32, clock: Clock) -> Option<(Millis, Millis)> {
    let since = tries.since.unwrap_or(clock.now);
    let elapsed = Duration::from_millis(clock.now.saturating_sub(since));
    let delay = policy.retry.delay(tries.made + ended, elapsed, clock.jitter)?;
    Some((since, clock.now + Millis::try_from(delay.as_millis()).unwrap_or(Millis::MAX / 2)))
}
