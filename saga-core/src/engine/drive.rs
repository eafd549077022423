//! One saga in memory: the loop around the state machine.
//!
//! It keeps the machine's law in the simplest way there is: as long as anything is decided that is not yet durable, nothing new is
//! started. One append is under way at a time, and what happens meanwhile goes into the next.

use super::{
    Delivered, Mailbox, Place, Shared,
    attempt::{Attempt, Limits},
    journal,
    lease::Lease,
    news::{News, is_backward},
    outcome::Ended,
    snapshot::SinceSnapshot,
};
use crate::{
    Encoded, SagaId,
    definition::{Arguments, Call, Process, Sending, StepIndex},
    machine::{Cause, Clock, Course, Event, Input, Millis, Outcome, State, Status, Step, Tries},
    message::{Answer, CommandAttributes, CommandId, Op, Reply},
    store::{Append, Appended, Hint, Mail, Record, SnapshotChange, StoreError, Then},
    transport::PublishError,
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use opentelemetry::{Context, StringValue, context::FutureExt as _};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot, watch},
    time::{Instant, sleep_until},
};

/// What a message from outside says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Letter {
    Cancel { reason: String },
    Resume { by: String },
    Skip { step: String, reason: String },
    Reply(Reply),
}

pub(crate) struct Drive {
    shared: Arc<Shared>,
    process: Arc<dyn Process>,
    lease: Lease,
    saga: SagaId,
    /// The definition's, as metrics have it.
    name: StringValue,
    input: Encoded,
    /// What everything that is done for the saga is a part of.
    trace: Context,
    epoch: i64,
    /// The saga's age when it came into memory, and when that was.
    age: (Millis, Instant),
    /// Everything that was decided, durable or not.
    state: State,
    /// Which of its lost workers were silent and not dead.
    survived: Vec<u32>,
    /// As the store has it.
    status: Status,
    /// The place of the last entry in the journal.
    seq: i32,
    since_snapshot: SinceSnapshot,
    /// Decided, and not yet handed to the committer.
    pending: Vec<Event>,
    /// The messages that `pending` folds.
    read: Vec<String>,
    /// The messages that were opened, so that the next poll brings them in vain.
    opened: HashSet<String>,
    /// Those of them that came past the mailbox, and may come to be there all the same.
    unposted: HashSet<String>,
    /// Who waits until what is pending is written, and who until the append under way is.
    heard: Vec<oneshot::Sender<()>>,
    heard_before: Vec<oneshot::Sender<()>>,
    mailbox: Mailbox,
    under_way: Vec<StepIndex>,
    attempts: FuturesUnordered<BoxFuture<'static, (StepIndex, Attempted)>>,
    /// Those that have ended while there was no room for what they say.
    over: VecDeque<(StepIndex, Attempted)>,
    /// Commands that were published and have no reply yet.
    awaited: Vec<Awaited>,
    ended: watch::Sender<Option<Ended>>,
    /// What the log says when the append under way is written, and whether it knows already that the saga turned back.
    news: Vec<News>,
    turned_back: bool,
    place: Place,
    /// How many workers in a row had died with it when it was claimed, whatever its mail says since.
    deaths: u32,
    quarantine: Option<Quarantine>,
}

/// Held by a saga that a worker died with, until it is seen to do no harm.
struct Quarantine {
    /// A share of it, or, by a suspect, all of it.
    _permit: OwnedSemaphorePermit,
    /// What may have been under way at that death, and has not ended here since. Progress of another branch says
    /// nothing about it.
    suspected: Vec<StepIndex>,
    /// Whatever takes longer does no harm at once.
    until: Instant,
}

/// How what was under way ended.
enum Attempted {
    NotBegun,
    Ended(Input),
    /// Its command is out, and the time for the reply is over then; or it may not be out.
    Publication(Sent, Result<Millis, Input>),
}

/// Which command was sent.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Sent {
    op: Op,
    generation: u32,
    attempt: u32,
}

/// A reply that is waited for.
struct Awaited {
    step: StepIndex,
    /// When the wait began here.
    since: Millis,
    until: Millis,
}

/// All shares of the quarantine.
pub(crate) const QUARANTINE: u32 = 1 << 20;
/// A saga that so many workers in a row died with may be what kills them.
pub(crate) const SUSPECT: u32 = 2;
/// A saga stays in quarantine for as long as a lease if nothing ends sooner, and for so long at least: on a busy
/// machine a short lease is over before anything could have happened.
pub(crate) const QUARANTINED: Duration = Duration::from_secs(10);
/// When a suspect that finds the quarantine taken is looked at again.
const NEXT_SUSPECT: Duration = Duration::from_secs(1);

/// About so many bytes are an entry of a journal at most: it is written in one go, however slow the network.
const ENTRY: usize = 4 << 20;

type Write = Result<Appended, StoreError>;

impl Drive {
    pub(crate) fn new(
        process: Arc<dyn Process>,
        lease: Lease,
        record: Record,
        state: State,
        mailbox: Mailbox,
        ended: watch::Sender<Option<Ended>>,
        mut place: Place,
    ) -> Self {
        place.weight.add(record.bytes());
        let mut drive = Self {
            seq: record.seq(),
            since_snapshot: SinceSnapshot::of(&record),
            saga: record.saga,
            name: record.name.into(),
            input: record.input,
            trace: record.trace.context_of(record.saga),
            epoch: record.epoch,
            age: (Millis::try_from(record.age.as_millis()).unwrap_or(Millis::MAX / 2), Instant::now()),
            survived: record.survived,
            status: record.status,
            state,
            pending: vec![],
            read: vec![],
            opened: HashSet::new(),
            unposted: HashSet::new(),
            heard: vec![],
            heard_before: vec![],
            under_way: vec![],
            attempts: FuturesUnordered::new(),
            over: VecDeque::new(),
            awaited: vec![],
            shared: place.shared.clone(),
            process,
            lease,
            mailbox,
            ended,
            news: vec![],
            turned_back: false,
            place,
            deaths: 0,
            quarantine: None,
        };
        drive.turned_back = is_backward(&drive.state);
        if record.lapses > drive.state.lapses() {
            drive.take(Input::Lapsed { total: record.lapses, survived: drive.survived.clone() });
        }
        drive.deaths = drive.state.deaths_without_progress(&drive.survived);
        // Not before that: an attempt that counts as lost is not waited for.
        drive.await_what_was_published();
        for mail in record.mail {
            drive.open(mail);
        }
        drive
    }

    /// Whether a worker died with it, it had made no progress before it was claimed here, and it is to go on.
    pub(crate) fn was_lost(&self) -> bool {
        self.deaths > 0 && self.state.status() != Status::Parked
    }

    /// Suspects run one at a time in a process, so that one which kills its worker takes no other with it into the count.
    pub(crate) fn is_suspect(&self) -> bool {
        self.was_lost() && self.deaths >= SUSPECT
    }

    pub(crate) fn quarantined(mut self, permit: OwnedSemaphorePermit) -> Self {
        let agenda = self.state.agenda(self.process.graph());
        let suspected = agenda.run.into_iter().chain(agenda.compensate).collect();
        let until = Instant::now() + self.shared.config.lease.max(QUARANTINED);
        self.quarantine = Some(Quarantine { _permit: permit, suspected, until });
        self
    }

    /// Puts the saga back as it was claimed: nothing of it has begun here.
    pub(crate) async fn put_back(self) {
        let then = Then::Release { due_in: Some(NEXT_SUSPECT.mul_f64(0.5 + fastrand::f64())) };
        let (saga, epoch, seq) = (self.saga, self.epoch, self.seq + 1);
        let (age, snapshot) = (Duration::from_millis(self.age.0), SnapshotChange::None);
        let append = Append { saga, epoch, seq, entry: None, read: vec![], status: None, then, age, snapshot };
        let _ = self.shared.committer.append(&self.lease, append, None).await;
    }

    /// Runs until the saga ended, was released, or was lost.
    ///
    /// In boxes: a future holds what is moved into it twice, and so does each one around it.
    pub(crate) fn run(self) -> BoxFuture<'static, ()> {
        let trace = self.trace.clone();
        Box::new(self).drive().with_context(trace).boxed()
    }

    async fn drive(mut self: Box<Self>) {
        let shared = self.shared.clone();
        let lease = self.lease.clone();
        let mut lost = pin!(lease.lost());
        let mut draining = pin!(shared.draining.cancelled().fuse());
        let mut grace_over = pin!(shared.grace_over.cancelled().fuse());
        let mut writing: Option<(Append, BoxFuture<'static, Option<Write>>)> = None;
        loop {
            while !is_full(&self.pending)
                && let Some((step, ended)) = self.over.pop_front()
            {
                self.attempt_ended(step, ended);
            }
            if writing.is_none() {
                self.make_commands();
                if self.pending.is_empty() {
                    self.act();
                }
                self.note_what_is_awaited();
            }
            if writing.is_none()
                && let Some((append, events)) = self.next_append()
            {
                self.heard_before = std::mem::take(&mut self.heard);
                let sketch = Append { snapshot: SnapshotChange::None, ..append.clone() };
                writing = Some((sketch, self.write(append, events)));
            }
            // While an append is under way nothing can start: its answer is what to wait for.
            let timer = if writing.is_none() { self.timer() } else { None };
            // What comes now is left for whoever claims the saga.
            let is_released = writing.as_ref().is_some_and(|(append, _)| append.then != Then::Keep);
            let has_room = !is_full(&self.pending);
            let harmless = self.quarantine.as_ref().map(|quarantine| quarantine.until);
            tokio::select! {
                biased;
                // First, since nobody looks behind a branch that is ready every time.
                () = &mut lost => return,
                answer = answer_of(&mut writing), if writing.is_some() => {
                    let Some((append, _)) = writing.take() else { continue };
                    match answer {
                        Some(Ok(Appended::Written)) if self.written(&append) => {}
                        Some(Err(error)) => {
                            if self.unwritable(&append, &error).await.is_none() {
                                return;
                            }
                        }
                        Some(Ok(_)) | None => return,
                    }
                }
                Some(ended) = self.attempts.next(), if !self.attempts.is_empty() => self.over.push_back(ended),
                Some(delivered) = self.mailbox.recv(), if has_room && !is_released => self.receive(delivered),
                () = wait_until(timer), if timer.is_some() => {}
                () = wait_until(harmless), if harmless.is_some() => self.quarantine = None,
                () = &mut draining => {}
                () = &mut grace_over => self.abandon_attempts(),
            }
        }
    }

    fn now(&self) -> Millis {
        let (age, since) = self.age;
        age + Millis::try_from(since.elapsed().as_millis()).unwrap_or(Millis::MAX / 2)
    }

    fn take(&mut self, input: Input) {
        let clock = Clock { now: self.now(), jitter: fastrand::f64() };
        let graph = self.process.graph();
        for event in self.state.decide(graph, input, clock) {
            tracing::debug!(saga = %self.saga, ?event);
            self.state.apply(graph, &event);
            self.pending.push(event);
        }
    }

    fn attempt_ended(&mut self, step: StepIndex, ended: Attempted) {
        self.under_way.retain(|under_way| *under_way != step);
        if let Some(quarantine) = &mut self.quarantine {
            quarantine.suspected.retain(|suspected| *suspected != step);
        }
        match ended {
            Attempted::NotBegun => {}
            Attempted::Ended(input) => self.take(input),
            // The reply may have been quicker than the broker's acknowledgement, and something else may be next by now.
            Attempted::Publication(sent, _) if self.next_sent(step) != Some(sent) => {}
            Attempted::Publication(_, Ok(until)) => self.awaited.push(Awaited { step, since: self.now(), until }),
            Attempted::Publication(_, Err(input)) => self.take(input),
        }
    }

    /// The command that is under way, or comes next.
    fn next_sent(&self, step: StepIndex) -> Option<Sent> {
        let (op, tries) = (self.op_of(step), self.state.tries(step)?);
        Some(Sent { op, generation: if op == Op::Do { tries.generation } else { 0 }, attempt: tries.made + 1 })
    }

    fn receive(&mut self, delivered: Delivered) {
        match delivered {
            Delivered::Letter(mail) => self.open(mail),
            Delivered::Reply { message, reply, heard } => {
                let before = self.pending.len();
                if !self.opened.contains(&message) {
                    self.hear(reply);
                }
                // What changes nothing here may be news to another owner, if this is none any more: it goes into the
                // mailbox. What is written shows who the owner is.
                if self.pending.len() > before {
                    self.opened.insert(message.clone());
                    self.unposted.insert(message);
                    self.heard.push(heard);
                }
            }
        }
    }

    fn open(&mut self, mail: Mail) {
        if !self.opened.insert(mail.message.clone()) {
            if self.unposted.remove(&mail.message) {
                self.read.push(mail.message);
            }
            return;
        }
        match serde_json::from_slice(&mail.body) {
            Ok(Letter::Cancel { reason }) => self.take(Input::Cancel { reason }),
            Ok(Letter::Resume { by }) => self.take(Input::Resume { by }),
            Ok(Letter::Skip { step, reason }) => self.take(Input::Skip { step, reason }),
            Ok(Letter::Reply(reply)) => self.hear(reply),
            // It stays unread, for whoever knows what it means.
            Err(error) if is_of_a_newer_kind(&mail.body) => {
                tracing::warn!(saga = %self.saga, message = mail.message, %error, "a message of a newer release is left unread");
                return;
            }
            Err(error) => self.pending.push(Event::Refused { reason: format!("unreadable message: {error}") }),
        }
        self.read.push(mail.message);
    }

    /// What does not apply any more changes nothing: a reply to what has its outcome, to another generation, and one that is not final of an attempt
    /// that was counted already.
    fn hear(&mut self, reply: Reply) {
        let Some(step) = self.process.graph().find(&reply.id.step) else {
            let reason = format!("a reply to `{}`: there is no such step", reply.id.step);
            return self.pending.push(Event::Refused { reason });
        };
        let op = self.op_of(step);
        let sending = self.process.sending(step, op).filter(|_| op == reply.op);
        let Some((sending, tries)) = sending.zip(self.state.tries(step)) else { return };
        let generation = if op == Op::Do { tries.generation } else { 0 };
        let current = reply.attempt == tries.made + 1 && tries.stuck.is_none();
        // An undo cannot be refused for good.
        let is_final = reply.answer.is_final() && (op == Op::Do || matches!(reply.answer, Answer::Success(_)));
        if tries.command.is_none() || reply.id.generation != generation || !(current || is_final) {
            return;
        }
        let longest = self.shared.config.payload;
        let outcome = match reply.answer {
            Answer::Success(output) if output.as_str().len() > longest => too_large(&output, longest),
            Answer::Success(output) => match sending.check(&output) {
                Ok(()) => Outcome::Success(output),
                Err(error) => Outcome::Broken(format!("its reply cannot be read: {error}")),
            },
            Answer::Fail(error) => Outcome::Fail(cut(error)),
            Answer::Retry(error) => Outcome::Retry(cut(error)),
            Answer::Unknown(error) => Outcome::Unknown(cut(error)),
        };
        self.awaited.retain(|awaited| awaited.step != step);
        self.take(ended(step, op, outcome));
    }

    /// Whether a step is to be done or undone.
    fn op_of(&self, step: StepIndex) -> Op {
        match self.state.steps()[step] {
            Step::Undoing { .. } => Op::Undo,
            _ => Op::Do,
        }
    }

    /// The grace period of a shutdown is over: what is still under way may have happened.
    fn abandon_attempts(&mut self) {
        self.attempts.clear();
        for (step, ended) in std::mem::take(&mut self.over) {
            self.attempt_ended(step, ended);
        }
        for step in std::mem::take(&mut self.under_way) {
            let error = "stopped in the middle, at a shutdown".to_owned();
            self.take(ended(step, self.op_of(step), Outcome::Unknown(error)));
        }
    }

    /// Makes the commands of what was just enabled, so that the append which enables them keeps them too; or the next one,
    /// if they are much. None of these steps begins before its command is kept.
    fn make_commands(&mut self) {
        if self.shared.draining.is_cancelled() {
            return;
        }
        let agenda = self.state.agenda(self.process.graph());
        for step in agenda.run.into_iter().chain(agenda.compensate) {
            if is_full(&self.pending) {
                return;
            }
            let op = self.op_of(step);
            let is_made = self.state.tries(step).is_some_and(|tries| tries.command.is_some());
            if is_made || self.under_way.contains(&step) {
                continue;
            }
            let Some(sending) = self.process.sending(step, op) else { continue };
            let output = match &self.state.steps()[step] {
                Step::Undoing { output, .. } => output.clone(),
                _ => None,
            };
            let made = self.arguments(step).ok_or_else(|| NO_OUTPUT.to_owned());
            match made.and_then(|arguments| sending.body(&arguments, output.as_ref())) {
                Ok(body) => self.take(Input::Command { step, body }),
                Err(error) => self.take(ended(step, op, Outcome::Broken(cut(error)))),
            }
        }
    }

    /// The commands that another worker has published for this saga, and that are waited for.
    fn await_what_was_published(&mut self) {
        let now = self.now();
        let until = |step| Some(Awaited { step, since: now, until: self.state.tries(step)?.awaiting? });
        self.awaited = (0..self.state.steps().len()).filter_map(until).collect();
    }

    /// Before the saga leaves memory: whoever has it next is to know what was published, and not to publish it again.
    fn note_what_is_awaited(&mut self) {
        if self.then() == Then::Keep || self.state.status().is_final() {
            return;
        }
        let awaited = std::mem::take(&mut self.awaited);
        for &Awaited { step, until, .. } in &awaited {
            if self.state.tries(step).is_some_and(|tries| tries.awaiting != Some(until)) {
                self.take(Input::Await { step, until });
            }
        }
        // As they were: it is not held for them once more.
        self.awaited = awaited;
        self.awaited.retain(|awaited| self.state.tries(awaited.step).is_some_and(|tries| tries.awaiting.is_some()));
    }

    /// The time for some replies is over.
    fn stop_awaiting(&mut self) {
        let now = self.now();
        let (over, awaited) = std::mem::take(&mut self.awaited).into_iter().partition(|awaited| awaited.until <= now);
        self.awaited = awaited;
        for Awaited { step, .. } in over {
            self.take(ended(step, self.op_of(step), Outcome::Unknown("no reply in time".into())));
        }
    }

    fn is_awaited(&self, step: StepIndex) -> bool {
        self.awaited.iter().any(|awaited| awaited.step == step)
    }

    /// Does what the agenda allows. Only called when all that was decided is durable.
    fn act(&mut self) {
        self.stop_awaiting();
        let agenda = self.state.agenda(self.process.graph());
        for step in agenda.settle {
            if self.is_awaited(step) {
                self.awaited.retain(|awaited| awaited.step != step);
                let error = "the saga turned back before there was a reply".into();
                self.take(Input::Attempt { step, outcome: Outcome::Unknown(error) });
            } else if !self.under_way.contains(&step) {
                self.take(Input::NotRunning { step });
            }
        }
        if !self.pending.is_empty() || self.shared.draining.is_cancelled() || !self.lease.holds() {
            return;
        }
        let now = self.now();
        for step in agenda.run.into_iter().chain(agenda.compensate) {
            let due = self.state.tries(step).is_some_and(|tries| tries.not_before <= now);
            if due && !self.under_way.contains(&step) && !self.is_awaited(step) {
                self.under_way.push(step);
                self.attempts.push(self.attempt(step));
            }
        }
    }

    /// What a step is called with; `None` when something that it reads was skipped.
    fn arguments(&self, step: StepIndex) -> Option<Arguments> {
        let output_of = |&read: &StepIndex| match &self.state.steps()[read] {
            Step::Succeeded(output) => Some(output.clone()),
            Step::Undoing { output, .. } => output.clone(),
            _ => None,
        };
        let reads: Option<Vec<Encoded>> = self.process.graph().node(step).reads.iter().map(output_of).collect();
        Some(Arguments { input: self.input.clone(), reads: reads? })
    }

    /// Publishes a step's command, or its undo's.
    fn publication(
        &self,
        step: StepIndex,
        op: Op,
        sending: &Sending,
        tries: &Tries,
    ) -> BoxFuture<'static, (StepIndex, Attempted)> {
        let node = self.process.graph().node(step);
        let generation = if op == Op::Do { tries.generation } else { 0 };
        let attempt = tries.made + 1;
        let (Some(messages), Some(body)) = (self.shared.messages.clone(), &tries.command) else {
            let outcome = Outcome::Broken("there is no transport to send its command with".into());
            return Box::pin(std::future::ready((step, Attempted::Ended(ended(step, op, outcome)))));
        };
        let id = CommandId { saga: self.saga, step: node.name.to_string(), generation };
        let attributes = CommandAttributes { id, op, attempt, reply_to: messages.reply_to() };
        let message = messages.message(&attributes, sending, body);
        let allowed = if op == Op::Do { node.forward.timeout } else { node.compensation.timeout };
        let until = self.now() + Millis::try_from(allowed.as_millis()).unwrap_or(Millis::MAX / 2);
        let limits = self.limits(step, op, attempt);
        let publish = messages.send(sending.topic, message);
        let sent = Sent { op, generation, attempt };
        // A broker's refusal says that this attempt did not happen, and nothing of earlier ones.
        let first = !tries.in_doubt && tries.awaiting.is_none();
        Box::pin(async move {
            let published = limits.attempt(allowed, publish, |published| match published {
                Ok(()) => ("sent", None),
                Err(error) => ("not sent", Some(error.to_string())),
            });
            let outcome = match published.await {
                Attempt::Ended(Ok(())) => return (step, Attempted::Publication(sent, Ok(until))),
                Attempt::Ended(Err(error @ PublishError::Refused(_))) if first => Outcome::Fail(cut(error.to_string())),
                Attempt::Ended(Err(error)) => Outcome::Unknown(cut(error.to_string())),
                Attempt::Unknown(error) => Outcome::Unknown(format!("publishing the command: {error}")),
                Attempt::NotBegun => return (step, Attempted::NotBegun),
            };
            (step, Attempted::Publication(sent, Err(ended(step, op, outcome))))
        })
    }

    fn limits(&self, step: StepIndex, op: Op, number: u32) -> Limits {
        Limits {
            shared: self.shared.clone(),
            lease: self.lease.clone(),
            trace: self.trace.clone(),
            saga: self.saga,
            of: self.name.clone(),
            name: self.process.graph().node(step).name.clone().into(),
            op,
            number,
        }
    }

    fn attempt(&self, step: StepIndex) -> BoxFuture<'static, (StepIndex, Attempted)> {
        let node = self.process.graph().node(step);
        let op = self.op_of(step);
        if let Some((sending, tries)) = self.process.sending(step, op).zip(self.state.tries(step)) {
            return self.publication(step, op, sending, tries);
        }
        let arguments = self.arguments(step);
        let (made, generation) = self.state.tries(step).map_or((0, 0), |tries| (tries.made, tries.generation));
        let limits = self.limits(step, op, made + 1);
        match (&self.state.steps()[step], arguments) {
            (Step::Undoing { output, .. }, Some(arguments)) => {
                let cause = match self.state.course() {
                    Course::Backward(Cause::Failed { error, .. }) => error.clone(),
                    Course::Backward(Cause::Cancelled { reason }) => reason.clone(),
                    Course::Forward | Course::Halting(_) => String::new(),
                };
                let call = Call { cause, ..Call::new(self.saga, &node.name, 0, made + 1) };
                let work = self.process.compensate(step, call, arguments, output.clone());
                let allowed = node.compensation.timeout;
                Box::pin(async move {
                    let outcome = limits.attempt(allowed, work, |outcome| match outcome {
                        Ok(()) => ("success", None),
                        Err(error) => ("failure", Some(error.clone())),
                    });
                    let outcome = match outcome.await {
                        Attempt::Ended(outcome) => outcome,
                        Attempt::Unknown(error) => Err(error),
                        Attempt::NotBegun => return (step, Attempted::NotBegun),
                    };
                    (step, Attempted::Ended(Input::Compensation { step, outcome: outcome.map_err(cut) }))
                })
            }
            (_, Some(arguments)) => {
                let call = Call::new(self.saga, &node.name, generation, made + 1);
                let work = self.process.run(step, call, arguments);
                let allowed = node.forward.timeout;
                let longest = self.shared.config.payload;
                Box::pin(async move {
                    let outcome =
                        limits.attempt(allowed, work, |outcome| (outcome.name(), outcome.error().map(Into::into)));
                    let outcome = match outcome.await {
                        Attempt::Ended(Outcome::Success(output)) if output.as_str().len() > longest => {
                            too_large(&output, longest)
                        }
                        Attempt::Ended(outcome) => outcome,
                        Attempt::Unknown(error) => Outcome::Unknown(error),
                        Attempt::NotBegun => return (step, Attempted::NotBegun),
                    };
                    let outcome = match outcome {
                        Outcome::Success(output) => Outcome::Success(output),
                        Outcome::Retry(error) => Outcome::Retry(cut(error)),
                        Outcome::Fail(error) => Outcome::Fail(cut(error)),
                        Outcome::Unknown(error) => Outcome::Unknown(cut(error)),
                        Outcome::Broken(error) => Outcome::Broken(cut(error)),
                    };
                    (step, Attempted::Ended(Input::Attempt { step, outcome }))
                })
            }
            (_, None) => {
                let outcome = Outcome::Broken(NO_OUTPUT.into());
                Box::pin(std::future::ready((step, Attempted::Ended(ended(step, op, outcome)))))
            }
        }
    }

    /// When something that is not under way may start, or can be settled, or was waited for long enough.
    fn due_at(&self) -> Option<Millis> {
        let agenda = self.state.agenda(self.process.graph());
        let idle = |step: &&StepIndex| !self.under_way.contains(step);
        let due = |&step: &StepIndex| match self.awaited.iter().find(|awaited| awaited.step == step) {
            Some(awaited) => Some(awaited.until),
            None => Some(self.state.tries(step)?.not_before),
        };
        let waiting = agenda.run.iter().chain(&agenda.compensate).filter(idle).filter_map(due);
        waiting.chain(agenda.settle.iter().filter(idle).map(|_| 0)).min()
    }

    /// When to look at the agenda again; nothing to wait for while something else will wake the loop.
    fn timer(&self) -> Option<Instant> {
        if !self.pending.is_empty() || self.shared.draining.is_cancelled() || !self.lease.holds() {
            return None;
        }
        let (age, since) = self.age;
        let due = self.due_at()?;
        let due = self.held_until().map_or(due, |held| due.min(held)).saturating_sub(age);
        Some(since + Duration::from_millis(due))
    }

    /// What is to be written next, without its entry, and the events that the entry is made of.
    fn next_append(&mut self) -> Option<(Append, Vec<Event>)> {
        let then = self.then();
        if self.pending.is_empty() && self.read.is_empty() && then == Then::Keep {
            return None;
        }
        let events = std::mem::take(&mut self.pending);
        let snapshot = match events.as_slice() {
            [] => SnapshotChange::None,
            some => self.since_snapshot.written(bytes_of(some), &self.state),
        };
        let status = self.state.status();
        self.news = News::of(&self.state, self.process.graph(), self.status, self.turned_back);
        let append = Append {
            saga: self.saga,
            epoch: self.epoch,
            seq: self.seq + i32::from(!events.is_empty()),
            entry: None,
            read: std::mem::take(&mut self.read),
            status: (status != self.status).then_some(status),
            then,
            age: Duration::from_millis(self.now()),
            snapshot,
        };
        Some((append, events))
    }

    /// Writes, and waits for the answer; `None` when the engine stops. The entry is made when its turn has come: what
    /// waits for that is not in memory twice.
    fn write(&mut self, append: Append, events: Vec<Event>) -> BoxFuture<'static, Option<Write>> {
        let bytes = bytes_of(&events) + append.snapshot.bytes();
        // What an attempt said is in the journal only.
        self.place.weight.add(events.iter().map(Event::payload).sum());
        let (shared, lease) = (self.shared.clone(), self.lease.clone());
        Box::pin(async move {
            let turn = shared.committer.gate().pass(bytes).await;
            // Events hold text and numbers only, which JSON can always express.
            let entry = if events.is_empty() { None } else { journal::encode(&events).ok() };
            drop(events);
            shared.committer.append(&lease, Append { entry, ..append }, turn).await.ok()
        })
    }

    /// A reply mostly comes soon: a saga that waits for one is held for a while.
    fn held_until(&self) -> Option<Millis> {
        let hold = Millis::try_from(self.shared.config.hold.as_millis()).unwrap_or(Millis::MAX / 2);
        let until = self.awaited.iter().map(|awaited| awaited.since + hold).max()?;
        (until > self.now()).then_some(until)
    }

    /// Whether the saga stays in memory after what is decided now.
    fn then(&self) -> Then {
        if self.state.status().is_final() {
            return Then::Release { due_in: None };
        }
        if !self.under_way.is_empty() {
            return Then::Keep;
        }
        let Some(due) = self.due_at() else {
            return Then::Release { due_in: None };
        };
        let due_in = Duration::from_millis(due.saturating_sub(self.now()));
        let is_held = due_in <= self.shared.config.hold || self.held_until().is_some();
        match self.shared.draining.is_cancelled() || !is_held {
            true => Then::Release { due_in: Some(due_in) },
            false => Then::Keep,
        }
    }

    /// Takes note of a successful append; whether the saga stays in memory.
    fn written(&mut self, append: &Append) -> bool {
        self.seq = append.seq;
        // Who does not wait any more has put it into the mailbox.
        for heard in self.heard_before.drain(..) {
            let _ = heard.send(());
        }
        let is_open = |step: &StepIndex| self.state.tries(*step).is_some();
        let suspected = |quarantine: &Quarantine| quarantine.suspected.iter().any(is_open);
        if self.state.lapses_without_progress() == 0 && !self.quarantine.as_ref().is_some_and(suspected) {
            self.quarantine = None;
        }
        for news in std::mem::take(&mut self.news) {
            self.turned_back |= matches!(news, News::TurnedBack(_));
            news.tell(self.saga, &self.name);
        }
        if let Some(status) = append.status {
            self.status = status;
            self.shared.metrics.ended(&self.name, status, Duration::from_millis(self.now()));
            if let Some(ended) = Ended::of(self.process.graph(), self.process.output(), &self.state) {
                self.shared.store.hint(Hint::Ended);
                self.ended.send_replace(Some(ended));
            }
        }
        match append.then {
            Then::Keep => true,
            Then::Release { due_in } => {
                if due_in.is_some_and(|due_in| due_in.is_zero()) {
                    self.shared.store.hint(Hint::Work);
                }
                false
            }
        }
    }

    /// The store will never take what was to be written. The saga is parked as it was before; if not even that can be written, its row
    /// alone is marked.
    async fn unwritable(&mut self, append: &Append, error: &StoreError) -> Option<()> {
        tracing::error!(saga = %self.saga, %error, "what the saga was to write is refused by the store: parking it");
        self.attempts.clear();
        self.over.clear();
        self.under_way.clear();
        self.quarantine = None;
        // What is forgotten was not heard: it comes by the mailbox.
        (self.heard, self.heard_before) = (vec![], vec![]);
        let parking_was_refused = self.state.status() == Status::Parked && append.status == Some(Status::Parked);
        if parking_was_refused {
            let then = Then::Release { due_in: None };
            let mark = Append { read: vec![], then, ..append.clone() };
            if let Ok(Ok(Appended::Written)) = self.shared.committer.append(&self.lease, mark, None).await {
                self.news.drain(..).for_each(|news| news.tell(self.saga, &self.name));
            }
            return None;
        }
        let record = self.shared.reread(&self.lease, self.saga).await?;
        let events = journal::decode(&record.journal).ok()?;
        self.state = State::replay(self.process.graph(), &events);
        self.await_what_was_published();
        self.opened.clear();
        self.unposted.clear();
        self.pending.clear();
        self.read.clear();
        self.take(Input::Unwritable { reason: error.to_string() });
        Some(())
    }
}

/// Whether it is a [`Letter`] of a kind that this release does not know.
fn is_of_a_newer_kind(letter: &[u8]) -> bool {
    let kind = serde_json::from_slice::<HashMap<String, IgnoredAny>>(letter).ok().filter(|kinds| kinds.len() == 1);
    kind.is_some_and(|kind| !kind.keys().any(|kind| matches!(kind.as_str(), "cancel" | "resume" | "skip" | "reply")))
}

/// The end of an attempt to do or undo a step.
fn ended(step: StepIndex, op: Op, outcome: Outcome) -> Input {
    match (op, outcome) {
        (Op::Do, outcome) => Input::Attempt { step, outcome },
        (Op::Undo, Outcome::Success(_)) => Input::Compensation { step, outcome: Ok(()) },
        (Op::Undo, Outcome::Retry(error) | Outcome::Fail(error) | Outcome::Unknown(error) | Outcome::Broken(error)) => {
            Input::Compensation { step, outcome: Err(error) }
        }
    }
}

const NO_OUTPUT: &str = "it reads a step that has no output";

fn too_large(output: &Encoded, longest: usize) -> Outcome {
    Outcome::Broken(format!("its output has {} bytes, more than the {longest} allowed", output.as_str().len()))
}

async fn answer_of(writing: &mut Option<(Append, BoxFuture<'static, Option<Write>>)>) -> Option<Write> {
    match writing {
        Some((_, answer)) => answer.await,
        None => None,
    }
}

async fn wait_until(timer: Option<Instant>) {
    if let Some(timer) = timer {
        sleep_until(timer).await;
    }
}

/// Whether they are as much as goes into one entry: what else has ended waits for the next.
fn is_full(events: &[Event]) -> bool {
    bytes_of(events) >= ENTRY
}

/// How many bytes they bring into the journal, about.
fn bytes_of(events: &[Event]) -> usize {
    events.iter().map(Event::bytes).sum()
}

/// What an error says goes into the journal for good: the first few thousand letters will do.
fn cut(mut error: String) -> String {
    const LONGEST: usize = 4000;
    if error.len() > LONGEST {
        let bytes = error.len();
        error.truncate(error.floor_char_boundary(LONGEST));
        error += &format!(".. ({bytes} bytes in all)");
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_letter_is_known_and_others_are_of_a_newer_release() {
        let id = CommandId { saga: SagaId::generate(), step: "pay".into(), generation: 0 };
        let reply = Reply { id, op: Op::Do, attempt: 1, answer: Answer::Fail("no".into()) };
        let letters = [
            Letter::Cancel { reason: String::new() },
            Letter::Resume { by: String::new() },
            Letter::Skip { step: String::new(), reason: String::new() },
            Letter::Reply(reply),
        ];
        for letter in letters {
            // One that is missing above does not compile here.
            match letter {
                Letter::Cancel { .. } | Letter::Resume { .. } | Letter::Skip { .. } | Letter::Reply(_) => {}
            }
            assert!(!is_of_a_newer_kind(&serde_json::to_vec(&letter).unwrap()), "{letter:?}");
        }
        assert!(is_of_a_newer_kind(br#"{"signal":{"name":"approval"}}"#));
        assert!(!is_of_a_newer_kind(b"{"), "that is damaged");
    }
}
