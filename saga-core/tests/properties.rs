//! Random ways through large random sagas: what [the exhaustive search](../exhaustive.rs) proves of small graphs, tried on
//! graphs of up to twelve steps, with answers that come late or twice.
//!
//! A run is a list of numbers, each of which picks one of the moves that are possible at that point; when the list ends,
//! everybody cooperates, and the saga has to end. So a failing run shrinks to few steps and few moves.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use proptest::{collection::vec, prelude::*, sample::Index};
use saga_core::{
    Encoded, Retry,
    definition::{Graph, Kind, Node, StepIndex},
    machine::{Clock, Course, Event, Input, Outcome, State, Status, Step},
};
use std::time::Duration;

const ATTEMPTS: u32 = 3;
const MOST_STEPS: usize = 12;

// ---------------------------------------------------------------------------------------------------------------------
// Graphs

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Compensatable), Just(Kind::EffectFree), Just(Kind::Retriable), Just(Kind::Pivot)]
}

/// Any kinds and any edges, mended where they break a rule.
fn graphs() -> impl Strategy<Value = Graph> {
    let step = (kinds(), any::<u16>(), any::<u16>(), any::<bool>());
    vec(step, 1..=MOST_STEPS).prop_map(|steps| {
        let pivot = steps.iter().position(|(kind, ..)| *kind == Kind::Pivot);
        let nodes = steps.iter().enumerate().map(|(i, &(kind, some, of_them, read))| {
            let kind = match (kind, pivot) {
                (Kind::EffectFree, _) => Kind::EffectFree,
                (_, Some(pivot)) if i == pivot => Kind::Pivot,
                (_, Some(pivot)) if i > pivot => Kind::Retriable,
                _ => Kind::Compensatable,
            };
            let must = |on: StepIndex| match kind {
                Kind::Pivot => steps[on].0 != Kind::EffectFree,
                Kind::Retriable => Some(on) == pivot,
                _ => false,
            };
            let after: Vec<_> = (0..i).filter(|&on| must(on) || some & of_them & (1 << on) != 0).collect();
            let mut node = Node::new(format!("step-{i}"), kind, &after);
            node.forward.retry = Retry::fixed(Duration::ZERO).attempts(ATTEMPTS);
            node.compensation.retry = Retry::fixed(Duration::ZERO).attempts(ATTEMPTS);
            node.output_is_read = read;
            node
        });
        Graph::new("random", nodes.collect()).expect("the mended graph keeps the rules")
    })
}

// ---------------------------------------------------------------------------------------------------------------------
// One run

/// What one step has done to the world, under its present key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    None,
    InTheAir,
    Done,
    Refused,
    Undone,
}

/// What can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    Append,
    Run(StepIndex),
    Undo(StepIndex),
    Settle(StepIndex),
    Succeed(StepIndex),
    Fail(StepIndex),
    Retry(StepIndex),
    Unknown(StepIndex),
    Broken(StepIndex),
    Undone(StepIndex),
    NotUndone(StepIndex),
    UndoneButNotSaid(StepIndex),
    // From here on nobody asked for it.
    TakeEffectLate(StepIndex),
    AnswerLate(StepIndex),
    RepeatTimeout(StepIndex),
    RepeatUndo(StepIndex),
    RepeatLapse,
    Crash { appended: bool },
    RefuseToStore,
    Cancel,
    Resume,
    Skip(StepIndex),
}

struct Run<'g> {
    graph: &'g Graph,
    /// The journal, what is being appended to it, and what was decided since; and the state after all of them.
    journal: Vec<Event>,
    appending: Vec<Event>,
    pending: Vec<Event>,
    newest: State,
    /// The generation of the attempt that the driver waits for.
    running: Vec<Option<u32>>,
    undoing: Vec<bool>,
    world: Vec<Effect>,
    lapses: u32,
    /// What went wrong with each step and with each compensation, to know whether parking is deserved.
    wrong: Vec<u32>,
    undo_wrong: Vec<u32>,
    permanent: bool,
}

impl<'g> Run<'g> {
    fn new(graph: &'g Graph) -> Self {
        let steps = graph.nodes().len();
        Self {
            graph,
            journal: vec![],
            appending: vec![],
            pending: vec![],
            newest: State::new(graph),
            running: vec![None; steps],
            undoing: vec![false; steps],
            world: vec![Effect::None; steps],
            lapses: 0,
            wrong: vec![0; steps],
            undo_wrong: vec![0; steps],
            permanent: false,
        }
    }

    fn steps(&self) -> std::ops::Range<StepIndex> {
        0..self.graph.nodes().len()
    }

    fn kind(&self, step: StepIndex) -> Kind {
        self.graph.node(step).kind
    }

    fn generation(&self, step: StepIndex) -> u32 {
        self.newest.tries(step).map_or(0, |tries| tries.generation)
    }

    fn has_ended(&self) -> bool {
        self.appending.is_empty() && self.pending.is_empty() && self.newest.status().is_final()
    }

    /// What the driver and the participants owe; those who cooperate make the first of these moves.
    fn owed(&self) -> Vec<Move> {
        let mut moves = vec![];
        if !self.appending.is_empty() {
            moves.push(Move::Append);
        } else {
            let agenda = self.newest.agenda(self.graph);
            let idle = |step: &StepIndex| self.running[*step].is_none() && !self.undoing[*step];
            moves.extend(agenda.settle.into_iter().filter(idle).map(Move::Settle));
            moves.extend(agenda.run.into_iter().filter(idle).map(Move::Run));
            moves.extend(agenda.compensate.into_iter().filter(idle).map(Move::Undo));
        }
        for step in self.steps() {
            if let Some(generation) = self.running[step] {
                moves.extend(self.endings(step, generation));
            }
            if self.undoing[step] {
                moves.extend([Move::Undone(step), Move::NotUndone(step), Move::UndoneButNotSaid(step)]);
            }
        }
        moves
    }

    /// An attempt under an old key, or after the tombstone, is refused.
    fn endings(&self, step: StepIndex, generation: u32) -> Vec<Move> {
        let is = self.world[step];
        let late = generation != self.generation(step) || is == Effect::Undone;
        let revocable = matches!(self.kind(step), Kind::Compensatable | Kind::EffectFree);
        let mut moves = vec![];
        if !late && is != Effect::Refused {
            moves.push(Move::Succeed(step));
        }
        if revocable || late || is != Effect::Done {
            moves.push(Move::Fail(step));
        }
        moves.extend([Move::Retry(step), Move::Unknown(step), Move::Broken(step)]);
        moves
    }

    fn uncalled_for(&self) -> Vec<Move> {
        let mut moves = vec![Move::Cancel, Move::RepeatLapse, Move::Crash { appended: false }, Move::Resume];
        if !self.appending.is_empty() {
            moves.extend([Move::Crash { appended: true }, Move::RefuseToStore]);
        }
        for step in self.steps() {
            moves.extend([Move::AnswerLate(step), Move::RepeatTimeout(step), Move::RepeatUndo(step), Move::Skip(step)]);
            if self.world[step] == Effect::InTheAir {
                moves.push(Move::TakeEffectLate(step));
            }
        }
        moves
    }

    fn make(&mut self, chosen: Move) {
        match chosen {
            Move::Append => {
                self.journal.append(&mut self.appending);
                std::mem::swap(&mut self.appending, &mut self.pending);
            }
            Move::Run(step) => self.start_attempt(step),
            Move::Undo(step) => self.start_undo(step),
            Move::Settle(step) => self.take(Input::NotRunning { step }),
            Move::Succeed(step) => self.attempt_ends(step, Outcome::Success(output(step))),
            Move::Fail(step) => self.attempt_ends(step, Outcome::Fail("no".into())),
            Move::Retry(step) => self.attempt_ends(step, Outcome::Retry("busy".into())),
            Move::Unknown(step) => self.attempt_ends(step, Outcome::Unknown("no answer".into())),
            Move::Broken(step) => self.attempt_ends(step, Outcome::Broken("unreadable".into())),
            Move::Undone(step) => self.undo_ends(step, true, Ok(())),
            Move::NotUndone(step) => self.undo_ends(step, false, Err("not now".into())),
            Move::UndoneButNotSaid(step) => self.undo_ends(step, true, Err("no answer".into())),
            Move::TakeEffectLate(step) => self.world[step] = Effect::Done,
            Move::AnswerLate(step) => self.answer_late(step),
            Move::RepeatTimeout(step) => {
                self.went_wrong(step, &Outcome::Unknown(String::new()));
                self.take(Input::Attempt { step, outcome: Outcome::Unknown("no answer".into()) });
            }
            Move::RepeatUndo(step) => {
                let done = self.world[step] == Effect::Undone;
                self.undo_wrong[step] += u32::from(!done);
                let outcome = if done { Ok(()) } else { Err("not now".to_owned()) };
                self.take(Input::Compensation { step, outcome });
            }
            Move::RepeatLapse => self.take(Input::Lapsed { total: self.lapses, survived: vec![] }),
            Move::Crash { appended } => self.crash(appended),
            Move::RefuseToStore => {
                self.appending.clear();
                self.lose_what_is_not_durable();
                self.permanent = true;
                self.take(Input::Unwritable { reason: "too large".into() });
            }
            Move::Cancel => self.take(Input::Cancel { reason: "a person".into() }),
            Move::Resume => self.take(Input::Resume { by: "a person".into() }),
            Move::Skip(step) => {
                let step = self.graph.node(step).name.to_string();
                self.take(Input::Skip { step, reason: "a person".into() });
            }
        }
        self.check();
    }

    fn take(&mut self, input: Input) {
        let clock = Clock { now: self.journal.len() as u64, jitter: 0.5 };
        for event in self.newest.decide(self.graph, input, clock) {
            let keys: Vec<u32> = self.steps().map(|step| self.generation(step)).collect();
            self.newest.apply(self.graph, &event);
            self.pending.push(event);
            for (step, &key) in keys.iter().enumerate() {
                if self.generation(step) <= key {
                    continue;
                }
                let clean = matches!(self.world[step], Effect::None | Effect::Refused);
                assert!(clean, "step {step} gets a new key while the old one is in doubt: {:?}", self.world[step]);
                self.world[step] = Effect::None;
            }
        }
        if self.appending.is_empty() {
            std::mem::swap(&mut self.appending, &mut self.pending);
        }
    }

    fn start_attempt(&mut self, step: StepIndex) {
        let passed = |&on: &StepIndex| matches!(self.newest.steps()[on], Step::Succeeded(_) | Step::Skipped);
        assert!(self.graph.node(step).after.iter().all(passed), "step {step} starts too early");
        assert_ne!(self.world[step], Effect::Undone, "step {step} is attempted after its undo");
        self.running[step] = Some(self.generation(step));
    }

    fn start_undo(&mut self, step: StepIndex) {
        for later in self.steps().filter(|&later| self.graph.comes_before(step, later)) {
            let skipped = self.newest.steps()[later] == Step::Skipped;
            let left = self.newest.tries(later).is_some() || (!skipped && self.may_be_left(later));
            assert!(!left, "step {step} is undone before step {later}, which depends on it");
        }
        self.undoing[step] = true;
    }

    fn may_be_left(&self, step: StepIndex) -> bool {
        matches!(self.world[step], Effect::Done | Effect::InTheAir)
    }

    fn attempt_ends(&mut self, step: StepIndex, outcome: Outcome) {
        let Some(generation) = self.running[step].take() else { return };
        let is = self.world[step];
        let late = generation != self.generation(step) || is == Effect::Undone;
        self.world[step] = match (&outcome, self.kind(step)) {
            _ if late => is,
            (_, Kind::EffectFree) | (Outcome::Retry(_), _) | (Outcome::Fail(_), Kind::Compensatable) => is,
            (Outcome::Success(_), _) => Effect::Done,
            (Outcome::Fail(_), _) => Effect::Refused,
            _ if is == Effect::None => Effect::InTheAir,
            _ => is,
        };
        self.went_wrong(step, &outcome);
        self.take(Input::Attempt { step, outcome });
    }

    fn undo_ends(&mut self, step: StepIndex, happened: bool, outcome: Result<(), String>) {
        self.undoing[step] = false;
        if happened {
            self.world[step] = Effect::Undone;
        }
        self.undo_wrong[step] += u32::from(outcome.is_err());
        self.take(Input::Compensation { step, outcome });
    }

    /// The answer of an attempt that had already been given up: it is true, and it may come twice.
    fn answer_late(&mut self, step: StepIndex) {
        let outcome = match self.world[step] {
            Effect::Done => Outcome::Success(output(step)),
            Effect::Refused => Outcome::Fail("no".into()),
            _ => return,
        };
        self.went_wrong(step, &outcome);
        self.take(Input::Attempt { step, outcome });
    }

    fn crash(&mut self, appended: bool) {
        if appended {
            self.make(Move::Append);
        }
        self.appending.clear();
        self.lose_what_is_not_durable();
        self.lapses += 1;
        self.wrong.iter_mut().chain(&mut self.undo_wrong).for_each(|wrong| *wrong += 1);
        self.take(Input::Lapsed { total: self.lapses, survived: vec![] });
    }

    /// Back to the journal; what was under way goes on without anybody who would hear how it ends.
    fn lose_what_is_not_durable(&mut self) {
        self.pending.clear();
        self.newest = State::replay(self.graph, &self.journal);
        for step in self.steps() {
            let current = self.running[step].take() == Some(self.generation(step));
            if current && self.kind(step) != Kind::EffectFree && self.world[step] == Effect::None {
                self.world[step] = Effect::InTheAir;
            }
            self.undoing[step] = false;
        }
    }

    fn went_wrong(&mut self, step: StepIndex, outcome: &Outcome) {
        let forward_only = !matches!(self.kind(step), Kind::Compensatable | Kind::Pivot);
        match outcome {
            Outcome::Success(_) => {}
            Outcome::Fail(_) => self.permanent |= forward_only,
            Outcome::Broken(_) => self.permanent = true,
            Outcome::Retry(_) | Outcome::Unknown(_) => self.wrong[step] += 1,
        }
    }

    /// The law of effects, at any time.
    fn check(&self) {
        let pivot_passed = self.graph.pivot().is_some_and(|pivot| {
            matches!(self.newest.steps()[pivot], Step::Succeeded(_) | Step::Skipped) // by an operator
        });
        assert!(!pivot_passed || *self.newest.course() == Course::Forward, "what passed its pivot goes forward only");
        for step in self.steps() {
            let (is, effect) = (&self.newest.steps()[step], self.world[step]);
            let effect_free = self.kind(step) == Kind::EffectFree;
            let lawful = match is {
                Step::Waiting => effect == Effect::None,
                Step::Enabled(_) => effect != Effect::Undone,
                Step::Succeeded(written) => (effect_free || effect == Effect::Done) && *written == output(step),
                Step::Void => matches!(effect, Effect::None | Effect::Refused),
                Step::Undoing { output: written, .. } => written.as_ref().is_none_or(|it| *it == output(step)),
                Step::Undone => effect == Effect::Undone,
                Step::Skipped => true,
            };
            assert!(lawful, "law of effects: step {step} is {is:?}, its effect {effect:?}");
        }
        if self.newest.status() == Status::Parked {
            let exhausted = self.wrong.iter().chain(&self.undo_wrong).any(|&wrong| wrong >= ATTEMPTS);
            assert!(self.permanent || exhausted, "parked, and nothing that went wrong was permanent");
        }
    }

    /// Everybody cooperates: the participants work, and an operator resumes what is parked.
    fn lead_home(&mut self) {
        let moves = 50 * self.graph.nodes().len();
        for _ in 0..moves {
            if self.has_ended() {
                return;
            }
            match self.owed().first() {
                Some(&chosen) => self.make(chosen),
                None if self.newest.status() == Status::Parked => self.make(Move::Resume),
                None => panic!("nothing leads on from {:#?}", self.newest),
            }
        }
        panic!("after {moves} moves the saga has not ended: {:#?}", self.newest);
    }
}

fn output(step: StepIndex) -> Encoded {
    Encoded::of(&format!("of step {step}")).unwrap()
}

/// A schedule: how often something happens that nobody asked for, and which of the possible moves is made each time.
fn schedules() -> impl Strategy<Value = (u8, Vec<(u8, Index)>)> {
    (0..=128u8, vec((any::<u8>(), any::<Index>()), 0..150))
}

proptest! {
    // What is found becomes a test with a name, in the machine or in the exhaustive search, rather than a file of seeds.
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_schedule_keeps_the_law_and_leads_to_an_end(graph in graphs(), (trouble, schedule) in schedules()) {
        let mut run = Run::new(&graph);
        for (dice, index) in schedule {
            if run.has_ended() {
                break;
            }
            let (owed, uncalled_for) = (run.owed(), run.uncalled_for());
            let moves = if dice < trouble || owed.is_empty() { uncalled_for } else { owed };
            run.make(*index.get(&moves));
        }
        run.lead_home();

        prop_assert_eq!(&State::replay(&graph, &run.journal), &run.newest, "replayed");
        let kept = serde_json::to_string(&run.newest).unwrap();
        prop_assert_eq!(&serde_json::from_str::<State>(&kept).unwrap(), &run.newest, "kept and read");
        let text = serde_json::to_string(&run.journal).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Vec<Event>>(&text).unwrap(), &run.journal, "written and read");
        let left = |step: StepIndex| run.may_be_left(step) && run.newest.steps()[step] != Step::Skipped;
        prop_assert!(run.newest.status() == Status::Completed || !run.steps().any(left), "rolled back, and not all undone");
    }

    #[test]
    fn a_saga_without_trouble_completes(graph in graphs(), order in vec(any::<Index>(), 0..100)) {
        let mut run = Run::new(&graph);
        for index in order {
            let owed = run.owed();
            let good: Vec<Move> =
                owed.into_iter().filter(|it| matches!(it, Move::Append | Move::Run(_) | Move::Succeed(_))).collect();
            if !good.is_empty() {
                run.make(*index.get(&good));
            }
        }
        run.lead_home();
        prop_assert_eq!(run.newest.status(), Status::Completed);
    }

    #[test]
    fn a_cancelled_saga_whose_participants_answer_is_never_parked(
        graph in graphs(), order in vec(any::<Index>(), 0..100), when in 0..100usize,
    ) {
        let mut run = Run::new(&graph);
        for (i, index) in order.iter().enumerate() {
            if i == when && !run.newest.status().is_final() {
                run.make(Move::Cancel);
            }
            let bad = |it: &Move| matches!(it, Move::Broken(_) | Move::Unknown(_) | Move::Retry(_) | Move::NotUndone(_))
                || matches!(it, Move::UndoneButNotSaid(_) | Move::Fail(_));
            let good: Vec<Move> = run.owed().into_iter().filter(|it| !bad(it)).collect();
            if !good.is_empty() {
                run.make(*index.get(&good));
            }
            prop_assert_ne!(run.newest.status(), Status::Parked);
        }
        run.lead_home();
    }

    #[test]
    fn an_answer_that_comes_twice_is_decided_once(graph in graphs(), order in vec((0..3u8, any::<Index>()), 0..60)) {
        let mut state = State::new(&graph);
        for (kind, index) in order {
            let step = index.index(graph.nodes().len());
            let input = match kind {
                0 => Input::Attempt { step, outcome: Outcome::Success(output(step)) },
                1 => Input::Attempt { step, outcome: Outcome::Fail("no".into()) },
                _ => Input::Compensation { step, outcome: Ok(()) },
            };
            for event in state.decide(&graph, input.clone(), Clock::default()) {
                state.apply(&graph, &event);
            }
            let mut again = state.clone();
            for event in again.decide(&graph, input, Clock::default()) {
                again.apply(&graph, &event);
            }
            prop_assert_eq!(&again, &state);
        }
    }

    #[test]
    fn apply_is_total_and_what_has_ended_stays_as_it_is(
        graph in graphs(), events in vec((events(), any::<Index>()), 0..60),
    ) {
        let mut state = State::new(&graph);
        let mut journal = vec![];
        for (event, index) in events {
            let event = aimed_at(event, index.index(graph.nodes().len()));
            let before = state.clone();
            state.apply(&graph, &event);
            if before.status().is_final() {
                prop_assert_eq!(&state, &before);
            }
            let agenda = state.agenda(&graph);
            let rests = state.status() == Status::Parked || state.status().is_final();
            prop_assert!(!rests || agenda == Default::default());
            journal.push(event);
        }
        prop_assert_eq!(State::replay(&graph, &journal), state);
    }

    #[test]
    fn decide_is_total_and_answers_what_has_ended_with_refusals_only(
        graph in graphs(), told in vec((events(), inputs(), any::<Index>()), 0..40),
    ) {
        let mut state = State::new(&graph);
        for (event, input, index) in told {
            let step = index.index(graph.nodes().len());
            state.apply(&graph, &aimed_at(event, step));
            let events = state.decide(&graph, input_at(input, step, &graph), Clock::default());
            let refused = events.iter().all(|event| matches!(event, Event::Refused { .. }));
            prop_assert!(!state.status().is_final() || refused, "{events:?}");
        }
    }

    #[test]
    fn every_event_reads_back_as_it_was_written(event in events()) {
        let text = serde_json::to_vec(&event).unwrap();
        prop_assert_eq!(serde_json::from_slice::<Event>(&text).unwrap(), event);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Any events and any inputs, fitting or not

/// At step 0; [`aimed_at`] moves them.
fn events() -> impl Strategy<Value = Event> {
    let text = || ".{0,8}";
    let step = 0;
    prop_oneof![
        text().prop_map(move |it| Event::Succeeded { step, output: Encoded::of(&it).unwrap() }),
        any::<f64>().prop_map(move |it| Event::Succeeded { step, output: Encoded::of(&vec![it]).unwrap() }),
        (any::<bool>(), any::<u64>(), any::<u64>(), text())
            .prop_map(move |(in_doubt, since, at, error)| Event::Retrying { step, in_doubt, since, at, error }),
        text().prop_map(move |it| Event::Commanded { step, body: Encoded::of(&it).unwrap() }),
        any::<u64>().prop_map(move |until| Event::Awaiting { step, until }),
        (any::<bool>(), text()).prop_map(move |(in_doubt, error)| Event::Failed { step, in_doubt, error }),
        (any::<bool>(), text()).prop_map(move |(in_doubt, error)| Event::Stuck { step, in_doubt, error }),
        Just(Event::Compensated { step }),
        (any::<u64>(), any::<u64>(), text()).prop_map(move |(since, at, error)| Event::CompensationRetrying {
            step,
            since,
            at,
            error
        }),
        text().prop_map(move |error| Event::CompensationStuck { step, error }),
        (any::<u32>(), any::<u64>()).prop_map(|(total, at)| Event::Lapsed { total, at }),
        text().prop_map(|reason| Event::Parked { reason }),
        text().prop_map(|reason| Event::CancelRequested { reason }),
        text().prop_map(|by| Event::Resumed { by }),
        text().prop_map(move |reason| Event::Skipped { step, reason }),
        text().prop_map(|reason| Event::Refused { reason }),
    ]
}

fn aimed_at(mut event: Event, aim: StepIndex) -> Event {
    match &mut event {
        Event::Succeeded { step, .. }
        | Event::Commanded { step, .. }
        | Event::Awaiting { step, .. }
        | Event::Retrying { step, .. }
        | Event::Failed { step, .. }
        | Event::Stuck { step, .. }
        | Event::Compensated { step }
        | Event::CompensationRetrying { step, .. }
        | Event::CompensationStuck { step, .. }
        | Event::Skipped { step, .. } => *step = aim,
        _ => {}
    }
    event
}

fn inputs() -> impl Strategy<Value = Input> {
    let attempt = |outcome| Input::Attempt { step: 0, outcome };
    prop_oneof![
        Just(attempt(Outcome::Success(output(0)))),
        Just(attempt(Outcome::Retry("busy".into()))),
        Just(attempt(Outcome::Fail("no".into()))),
        Just(attempt(Outcome::Unknown("no answer".into()))),
        Just(attempt(Outcome::Broken("unreadable".into()))),
        Just(Input::NotRunning { step: 0 }),
        Just(Input::Compensation { step: 0, outcome: Ok(()) }),
        Just(Input::Compensation { step: 0, outcome: Err("not now".into()) }),
        any::<u32>().prop_map(|total| Input::Lapsed { total, survived: vec![] }),
        Just(Input::Unwritable { reason: "too large".into() }),
        Just(Input::Cancel { reason: "a person".into() }),
        Just(Input::Resume { by: "a person".into() }),
        Just(Input::Skip { step: String::new(), reason: "a person".into() }),
    ]
}

fn input_at(mut input: Input, aim: StepIndex, graph: &Graph) -> Input {
    match &mut input {
        Input::Attempt { step, .. } | Input::NotRunning { step } | Input::Compensation { step, .. } => *step = aim,
        Input::Skip { step, .. } => *step = graph.node(aim).name.to_string(),
        _ => {}
    }
    input
}
