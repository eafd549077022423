use super::{Event, Millis, snapshot::maybe};
use crate::{
    Encoded,
    definition::{Graph, Kind, StepIndex},
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a saga stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Going forward.
    Running,
    /// Going backward.
    Compensating,
    /// Stopped for a person.
    Parked,
    /// Ended: every step succeeded.
    Completed,
    /// Ended: whatever had happened was undone.
    RolledBack,
}

impl Status {
    /// Whether nothing will ever happen to the saga again.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::RolledBack)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Compensating => "compensating",
            Self::Parked => "parked",
            Self::Completed => "completed",
            Self::RolledBack => "rolled back",
        })
    }
}

/// Why a saga turned back, or is about to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A step ended without success.
    Failed {
        /// Which one.
        step: StepIndex,
        /// What its last attempt said.
        error: String,
    },
    /// Somebody asked for it.
    Cancelled {
        /// Why.
        reason: String,
    },
}

/// The direction of a saga.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Course {
    /// Towards its end.
    Forward,
    /// There is a reason to turn back, but the pivot may have happened: its outcome decides.
    Halting(Cause),
    /// Undoing.
    Backward(Cause),
}

/// How an enabled step, or an enabled compensation, has fared so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tries {
    /// Attempts that ended without success since the last operator's retry.
    pub made: u32,
    /// When the first of them ended.
    pub since: Option<Millis>,
    /// When the next one may start.
    pub not_before: Millis,
    /// One of them may have happened.
    pub in_doubt: bool,
    /// It gave up; what its last attempt said.
    pub stuck: Option<String>,
    /// Part of the idempotency key: grows when an operator retries what had failed for certain.
    pub generation: u32,
    /// What its command says, if it is one: the same for as long as the generation is.
    #[serde(with = "maybe")]
    pub command: Option<Encoded>,
    /// The command was published by a worker that let go of the saga since: until when its reply is awaited.
    pub awaiting: Option<Millis>,
}

/// One step of a running saga.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Something that it depends on has not succeeded: it has certainly not started.
    Waiting,
    /// Possibly started, and without an outcome.
    Enabled(Tries),
    /// It happened, and this is what it returned.
    Succeeded(Encoded),
    /// It did not happen, or what it did needs no undoing.
    Void,
    /// It is to be undone, once nothing that depends on it is left.
    Undoing {
        /// What it returned; `None` when that is not known because the step is in doubt.
        #[serde(with = "maybe")]
        output: Option<Encoded>,
        /// Of the compensation.
        tries: Tries,
    },
    /// It was undone.
    Undone,
    /// An operator said to go on without it, or to leave it as it is.
    Skipped,
}

/// A saga: the fold of its journal.
///
/// Its serialized form is for snapshots and may change with each release.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct State {
    pub(super) steps: Vec<Step>,
    pub(super) course: Course,
    pub(super) parked: Option<String>,
    pub(super) lapses: u32,
    /// Those that count since the last progress, by their numbers: each run begins after the first and ends with the
    /// second.
    pub(super) counted: Vec<(u32, u32)>,
}

/// What a driver may do now, each thing at most once at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agenda {
    /// Steps to attempt, each when its time has come.
    pub run: Vec<StepIndex>,
    /// Steps that will not be attempted again but may have an attempt under way: let it end, or report
    /// [`Input::NotRunning`](super::Input::NotRunning).
    pub settle: Vec<StepIndex>,
    /// Steps to compensate, each when its time has come.
    pub compensate: Vec<StepIndex>,
}

impl State {
    /// A saga that was just started: what depends on nothing is enabled.
    pub fn new(graph: &Graph) -> Self {
        let mut state = Self {
            steps: vec![Step::Waiting; graph.nodes().len()],
            course: Course::Forward,
            parked: None,
            lapses: 0,
            counted: vec![],
        };
        state.enable(graph);
        state
    }

    /// Folds a journal.
    pub fn replay<'e>(graph: &Graph, journal: impl IntoIterator<Item = &'e Event>) -> Self {
        let mut state = Self::new(graph);
        for event in journal {
            state.apply(graph, event);
        }
        state
    }

    /// The steps, in the graph's order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The direction, and why.
    pub const fn course(&self) -> &Course {
        &self.course
    }

    /// How many lost workers the journal knows of.
    pub const fn lapses(&self) -> u32 {
        self.lapses
    }

    /// How many workers were lost with the saga since it last made progress, while code of the user's may have run
    /// there.
    pub fn lapses_without_progress(&self) -> u32 {
        self.counted.iter().map(|(after, last)| last - after).sum()
    }

    /// How many workers died with the saga since it last made progress: those that were lost, but not those that came
    /// back since. `survived` are the numbers of the latter; the first worker that was ever lost is number 1.
    pub fn deaths_without_progress(&self, survived: &[u32]) -> u32 {
        let counts = |number: &&u32| self.counted.iter().any(|(after, last)| after < *number && *number <= last);
        let alive = u32::try_from(survived.iter().filter(counts).count()).unwrap_or(u32::MAX);
        self.lapses_without_progress().saturating_sub(alive)
    }

    /// Where the saga stands.
    pub fn status(&self) -> Status {
        if self.parked.is_some() || self.stuck().is_some() {
            return Status::Parked;
        }
        let over = |step: &Step| !matches!(step, Step::Enabled(_) | Step::Undoing { .. });
        match self.course {
            Course::Backward(_) if self.steps.iter().all(over) => Status::RolledBack,
            Course::Backward(_) => Status::Compensating,
            Course::Forward if self.steps.iter().all(|step| matches!(step, Step::Succeeded(_) | Step::Skipped)) => {
                Status::Completed
            }
            Course::Forward | Course::Halting(_) => Status::Running,
        }
    }

    /// Where a parked saga is stuck, and why; `None` for the step when the saga as a whole was parked.
    pub fn parked_at(&self) -> Option<(Option<StepIndex>, &str)> {
        match &self.parked {
            Some(reason) => Some((None, reason)),
            None => self.stuck().map(|(step, error)| (Some(step), error)),
        }
    }

    fn stuck(&self) -> Option<(StepIndex, &str)> {
        self.steps.iter().enumerate().find_map(|(i, step)| match step {
            Step::Enabled(tries) | Step::Undoing { tries, .. } => tries.stuck.as_deref().map(|error| (i, error)),
            _ => None,
        })
    }

    /// How the step, or its compensation, has fared; `None` when neither is enabled.
    pub fn tries(&self, step: StepIndex) -> Option<&Tries> {
        match &self.steps[step] {
            Step::Enabled(tries) | Step::Undoing { tries, .. } => Some(tries),
            _ => None,
        }
    }

    /// What may be done now. Empty once the saga ended, and while it is parked.
    pub fn agenda(&self, graph: &Graph) -> Agenda {
        let mut agenda = Agenda::default();
        if self.status() == Status::Parked {
            return agenda;
        }
        for (i, step) in self.steps.iter().enumerate() {
            match (step, &self.course) {
                (Step::Enabled(_), Course::Forward) => agenda.run.push(i),
                (Step::Enabled(_), Course::Halting(_)) if graph.pivot() == Some(i) => agenda.run.push(i),
                (Step::Enabled(_), Course::Backward(_)) => agenda.settle.push(i),
                (Step::Undoing { .. }, Course::Backward(_)) if self.nothing_left_after(graph, i) => {
                    agenda.compensate.push(i);
                }
                _ => {}
            }
        }
        agenda
    }

    /// Whether all that depends on a step, directly or through others, is undone or never was.
    pub(super) fn nothing_left_after(&self, graph: &Graph, step: StepIndex) -> bool {
        let mut later = vec![false; self.steps.len()];
        later[step] = true;
        for i in step + 1..self.steps.len() {
            later[i] = graph.node(i).after.iter().any(|&on| later[on]);
            if later[i] && matches!(self.steps[i], Step::Enabled(_) | Step::Undoing { .. }) {
                return false;
            }
        }
        true
    }

    /// Folds one event. Total: an event that does not fit the state changes nothing.
    pub fn apply(&mut self, graph: &Graph, event: &Event) {
        if self.status().is_final() {
            return;
        }
        match event {
            Event::Succeeded { step, output } => self.succeed(graph, *step, output),
            Event::Commanded { step, body } => {
                if let Step::Enabled(tries) | Step::Undoing { tries, .. } = &mut self.steps[*step] {
                    tries.command = Some(body.clone());
                }
            }
            Event::Awaiting { step, until } => {
                if let Step::Enabled(tries) | Step::Undoing { tries, .. } = &mut self.steps[*step] {
                    tries.awaiting = Some(*until);
                }
            }
            Event::Retrying { step, in_doubt, since, at, .. } => {
                if let Step::Enabled(tries) = &mut self.steps[*step] {
                    tries.again(*since, *at);
                    tries.in_doubt |= in_doubt;
                }
            }
            Event::Failed { step, in_doubt, error } => {
                if self.fail(graph, *step, *in_doubt) {
                    self.turn_back(graph, Cause::Failed { step: *step, error: error.clone() });
                }
            }
            Event::Stuck { step, in_doubt, error } => {
                if let Step::Enabled(tries) = &mut self.steps[*step] {
                    // Not `|=`: a participant's no can end the doubt about a step that has no undo.
                    tries.in_doubt = *in_doubt;
                    tries.awaiting = None;
                    tries.stuck = Some(error.clone());
                }
            }
            Event::Compensated { step } => {
                if matches!(self.steps[*step], Step::Undoing { .. }) {
                    self.steps[*step] = Step::Undone;
                }
            }
            Event::CompensationRetrying { step, since, at, .. } => {
                if let Step::Undoing { tries, .. } = &mut self.steps[*step] {
                    tries.again(*since, *at);
                    tries.in_doubt = true;
                }
            }
            Event::CompensationStuck { step, error } => {
                if let Step::Undoing { tries, .. } = &mut self.steps[*step] {
                    tries.in_doubt = true;
                    tries.awaiting = None;
                    tries.stuck = Some(error.clone());
                }
            }
            Event::Lapsed { total, at } => {
                if *total > self.lapses {
                    self.lapse(graph, *total, *at);
                }
                return;
            }
            Event::Parked { reason } => {
                self.parked = Some(reason.clone());
                self.doubt_what_is_enabled();
                return;
            }
            Event::CancelRequested { reason } => {
                self.turn_back(graph, Cause::Cancelled { reason: reason.clone() });
            }
            Event::Resumed { .. } => self.resume(),
            Event::Skipped { step, .. } => self.leave_out(graph, *step),
            Event::Refused { .. } => return,
        }
        self.counted.clear();
    }

    /// An attempt may have been under way, or have ended without a trace in the journal. Not of what is stuck: that waits for a person.
    fn doubt_what_is_enabled(&mut self) {
        for step in &mut self.steps {
            if let Step::Enabled(tries) = step
                && tries.stuck.is_none()
            {
                tries.in_doubt = true;
            }
        }
    }

    /// Whatever was enabled may have started, and may have happened.
    fn lapse(&mut self, graph: &Graph, total: u32, at: Millis) {
        // What kills workers is what runs in them. Where every step that is open is a command, and known, nothing does.
        let runs_here = |i: usize| match &self.steps[i] {
            Step::Enabled(tries) => tries.runs_here(),
            Step::Undoing { tries, .. } => tries.runs_here() && self.nothing_left_after(graph, i),
            _ => false,
        };
        if (0..self.steps.len()).any(runs_here) {
            match self.counted.last_mut() {
                Some((_, last)) if *last == self.lapses => *last = total,
                _ => self.counted.push((self.lapses, total)),
            }
        }
        self.lapses = total;
        for i in 0..self.steps.len() {
            let enabled = !matches!(self.steps[i], Step::Undoing { .. }) || self.nothing_left_after(graph, i);
            if let Step::Enabled(tries) | Step::Undoing { tries, .. } = &mut self.steps[i]
                && enabled
                && tries.stuck.is_none()
            {
                tries.again(tries.since.unwrap_or(at), at);
                tries.in_doubt = true;
            }
        }
    }

    fn succeed(&mut self, graph: &Graph, step: StepIndex, output: &Encoded) {
        let Step::Enabled(_) = &self.steps[step] else { return };
        self.steps[step] = match (&self.course, graph.node(step).kind) {
            (Course::Backward(_), Kind::Compensatable) => {
                Step::Undoing { output: Some(output.clone()), tries: Tries::default() }
            }
            (Course::Backward(_), _) => Step::Void,
            _ => Step::Succeeded(output.clone()),
        };
        self.pass(graph, step);
    }

    fn leave_out(&mut self, graph: &Graph, step: StepIndex) {
        if self.tries(step).is_some_and(|tries| tries.stuck.is_some()) {
            self.steps[step] = Step::Skipped;
            self.pass(graph, step);
        }
    }

    /// What depends on the step may go on. With the pivot, whatever the saga halted for comes too late.
    fn pass(&mut self, graph: &Graph, step: StepIndex) {
        if graph.pivot() == Some(step)
            && let Course::Halting(cause) = std::mem::replace(&mut self.course, Course::Forward)
        {
            self.too_late(&cause);
        }
        self.enable(graph);
    }

    /// The pivot was passed although there was a reason to turn back. All that failed beside it can now only go forward.
    fn too_late(&mut self, cause: &Cause) {
        for (i, step) in self.steps.iter_mut().enumerate().filter(|(_, step)| **step == Step::Void) {
            let error = match cause {
                Cause::Failed { step, error } if *step == i => error.clone(),
                _ => "it failed beside the pivot, which was passed since".into(),
            };
            *step = Step::Enabled(Tries { stuck: Some(error), ..Tries::default() });
        }
    }

    /// Whether there was anything to fail.
    fn fail(&mut self, graph: &Graph, step: StepIndex, in_doubt: bool) -> bool {
        let Step::Enabled(tries) = &self.steps[step] else { return false };
        self.steps[step] = match graph.node(step).kind {
            Kind::Compensatable if in_doubt || tries.in_doubt => {
                Step::Undoing { output: None, tries: Tries::default() }
            }
            _ => Step::Void,
        };
        true
    }

    /// Turns back now, or as soon as the pivot has an outcome, or not at all.
    fn turn_back(&mut self, graph: &Graph, cause: Cause) {
        let pivot = graph.pivot().map(|pivot| &self.steps[pivot]);
        let cause = match std::mem::replace(&mut self.course, Course::Forward) {
            Course::Forward => cause,
            Course::Halting(earlier) => earlier,
            Course::Backward(earlier) => {
                self.course = Course::Backward(earlier);
                return;
            }
        };
        match pivot {
            Some(Step::Succeeded(_) | Step::Skipped) => {}
            Some(Step::Enabled(_)) => self.course = Course::Halting(cause),
            _ => self.go_backward(graph, cause),
        }
    }

    fn go_backward(&mut self, graph: &Graph, cause: Cause) {
        self.course = Course::Backward(cause);
        for (i, step) in self.steps.iter_mut().enumerate() {
            match (&*step, graph.node(i).kind) {
                (Step::Succeeded(output), Kind::Compensatable) => {
                    *step = Step::Undoing { output: Some(output.clone()), tries: Tries::default() };
                }
                (Step::Enabled(_), Kind::EffectFree) => *step = Step::Void,
                _ => {}
            }
        }
    }

    fn enable(&mut self, graph: &Graph) {
        if matches!(self.course, Course::Backward(_)) {
            return;
        }
        for i in 0..self.steps.len() {
            let done = |&on: &StepIndex| matches!(self.steps[on], Step::Succeeded(_) | Step::Skipped);
            if self.steps[i] == Step::Waiting && graph.node(i).after.iter().all(done) {
                self.steps[i] = Step::Enabled(Tries::default());
            }
        }
    }

    fn resume(&mut self) {
        self.parked = None;
        for step in &mut self.steps {
            if let Step::Enabled(tries) | Step::Undoing { tries, .. } = step
                && tries.stuck.is_some()
            {
                let generation = tries.generation + u32::from(!tries.in_doubt);
                let command = tries.command.take().filter(|_| tries.in_doubt);
                *tries = Tries { in_doubt: tries.in_doubt, generation, command, ..Tries::default() };
            }
        }
    }
}

impl Tries {
    fn again(&mut self, since: Millis, at: Millis) {
        self.made += 1;
        self.since = Some(since);
        self.not_before = at;
        self.awaiting = None;
    }

    /// Whether code of the user's may run in the worker: not if it is a command that only has to be sent.
    const fn runs_here(&self) -> bool {
        self.stuck.is_none() && self.command.is_none()
    }
}
