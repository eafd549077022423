//! Every reachable state of every small saga: a model checker around the state machine.
//!
//! # The model
//!
//! A [`Moment`] is all there is at one time: the journal (what is durable, what is being appended, what is decided), the
//! driver's memory (which attempts and compensations are under way), the world (what each step did to it), and what is left of
//! the faults and of the people's wishes that the [`Bounds`] allow. From each moment every move that anybody could make leads to
//! another one:
//!
//! - the *driver* starts what the agenda allows, appends one batch at a time, settles what will not be attempted again;
//! - a *participant* answers with every outcome there is, or does not answer and acts later, at any time: a zombie;
//! - *crashes* hit before or after an append is durable, and all that was in memory is lost;
//! - the *store* refuses a batch for good;
//! - *people* cancel at any time, and resume or skip whatever is parked.
//!
//! The search is depth first over remembered moments, hence exhaustive within the bounds. It fails on the first moment that breaks
//! the law and tells the way there. A way that leads back to itself would be a livelock, and a moment without a next move has to be
//! an end: so every way ends, completed, rolled back or parked.
//!
//! Time is left out: whatever is retried is due at once.
//!
//! Participants keep what the guide asks of them: under one key an effect happens once; an undo leaves a tombstone that refuses
//! whatever comes late; the *no* of a step that cannot be undone is remembered. All else is against the engine: a compensatable
//! step may say no although an earlier attempt took effect, and an undo that failed may have undone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use saga_core::{
    Encoded, Retry,
    definition::{Graph, Kind, Node, StepIndex},
    machine::{Clock, Course, Event, Input, Outcome, State, Status, Step},
};
use std::{
    collections::{HashMap, HashSet},
    fmt,
    hash::{BuildHasherDefault, Hash, Hasher},
    ops::AddAssign,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

const MOST_STEPS: usize = 4;
const KINDS: [Kind; 4] = [Kind::EffectFree, Kind::Compensatable, Kind::Pivot, Kind::Retriable];

/// How far a search goes.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Of a step, and of a compensation, before it gives up.
    attempts: u32,
    /// Workers that are lost.
    crashes: u8,
    /// Requests to cancel.
    cancels: u8,
    /// Verbs of an operator.
    verbs: u8,
    /// Batches that the store refuses for good.
    refusals: u8,
    /// Attempts may end as [`Outcome::Broken`].
    broken: bool,
    /// Appends take time in which more is decided, and starting takes time in which more happens. Without it each decision
    /// is durable at once and all that may start does. What that leaves out are delays: a decision that a crash swallows is
    /// the same as an answer that a crash swallows, which is still explored.
    delays: bool,
}

// ---------------------------------------------------------------------------------------------------------------------
// Graphs

/// Kinds, and for each step the set of steps it comes directly after.
type Shape = Vec<(u8, Kind)>;

/// Every graph of so many steps that the rules allow: all partial orders, times all kinds.
fn graphs(steps: usize, bounds: Bounds, up_to_symmetry: bool) -> Vec<Graph> {
    let mut found = vec![];
    for order in orders(steps) {
        for kinds in 0..KINDS.len().pow(u32::try_from(steps).unwrap()) {
            let kind = |step: usize| KINDS[kinds / KINDS.len().pow(u32::try_from(step).unwrap()) % KINDS.len()];
            let shape: Shape = order.iter().enumerate().map(|(step, &after)| (after, kind(step))).collect();
            if (!up_to_symmetry || is_first_of_its_like(&shape))
                && let Some(graph) = graph_of(&shape, bounds)
            {
                found.push(graph);
            }
        }
    }
    found
}

fn graph_of(shape: &Shape, bounds: Bounds) -> Option<Graph> {
    const NAMES: [&str; MOST_STEPS] = ["a", "b", "c", "d"];
    let retry = Retry::fixed(Duration::ZERO).attempts(bounds.attempts);
    let node = |(step, &(after, kind)): (usize, &(u8, Kind))| {
        let mut node = Node::new(NAMES[step], kind, &members(after).collect::<Vec<_>>());
        node.forward.retry = retry;
        node.compensation.retry = retry;
        node
    };
    Graph::new("model", shape.iter().enumerate().map(node).collect()).ok()
}

/// All ways in which so many steps can wait for each other, without waits that follow from others.
fn orders(steps: usize) -> Vec<Vec<u8>> {
    let mut orders = vec![vec![]];
    for step in 0..steps {
        let longer = |order: &Vec<u8>| (0..1u8 << step).map(|after| [order.as_slice(), &[after]].concat()).collect();
        orders = orders.iter().flat_map(|order| -> Vec<Vec<u8>> { longer(order) }).collect();
    }
    orders.retain(|order| {
        let before = closure(order.iter().copied());
        order.iter().all(|&after| members(after).all(|on| before[on] & after == 0))
    });
    orders
}

/// For each step, all that it waits for, directly or through others.
fn closure(order: impl Iterator<Item = u8>) -> Vec<u8> {
    let mut before: Vec<u8> = vec![];
    for after in order {
        before.push(members(after).fold(after, |all, on| all | before[on]));
    }
    before
}

/// Of all graphs that differ in nothing but the order in which steps are written, one stands for the others.
fn is_first_of_its_like(shape: &Shape) -> bool {
    fn permutations(steps: usize) -> Vec<Vec<usize>> {
        if steps == 0 {
            return vec![vec![]];
        }
        let shorter = permutations(steps - 1);
        let insert = |places: &Vec<usize>, at: usize| [&places[..at], &[steps - 1], &places[at..]].concat();
        shorter.iter().flat_map(|places| (0..steps).map(move |at| insert(places, at))).collect()
    }
    let written = |places: &[usize]| -> Vec<(u8, Option<usize>)> {
        let mut other = vec![(0, None); shape.len()];
        for (step, &(after, kind)) in shape.iter().enumerate() {
            let after = members(after).fold(0u8, |all, on| all | bit(places[on]));
            other[places[step]] = (after, KINDS.iter().position(|&other| other == kind));
        }
        other
    };
    let as_is = written(&(0..shape.len()).collect::<Vec<_>>());
    let in_order = |other: &Vec<(u8, Option<usize>)>| other.iter().enumerate().all(|(i, &(after, _))| after < bit(i));
    permutations(shape.len()).iter().map(|places| written(places)).filter(in_order).all(|other| as_is <= other)
}

/// A set of steps.
type Set = u8;

const fn bit(step: StepIndex) -> Set {
    1 << step
}

/// The steps of a set, in order.
struct Members(Set);

impl Iterator for Members {
    type Item = StepIndex;

    fn next(&mut self) -> Option<StepIndex> {
        let first = self.0.trailing_zeros() as StepIndex;
        (self.0 != 0).then(|| {
            self.0 &= self.0 - 1;
            first
        })
    }
}

const fn members(set: Set) -> Members {
    Members(set)
}

fn set(steps: &[StepIndex]) -> Set {
    steps.iter().fold(0, |all, &step| all | bit(step))
}

// ---------------------------------------------------------------------------------------------------------------------
// What can break

/// Who breaks the rules, to see that the checker notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rogue {
    Nobody,
    /// The driver starts what it has decided but not yet written.
    ActsBeforeTheAppend,
    /// The driver takes over from a lost worker and does not say so.
    ConcealsLapses,
    /// The driver writes that nothing happened where it may have.
    ConcealsDoubt,
    /// The driver undoes in any order.
    UndoesInAnyOrder,
    /// The driver says of every step to be settled that no attempt is under way.
    SettlesWhatRuns,
    /// Participants have no barrier: what comes after the undo takes effect.
    LetsZombiesIn,
}

// ---------------------------------------------------------------------------------------------------------------------
// The machine, with each state that was met under a number

type Number = u32;

/// An input, small enough to be a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Told {
    Attempt(StepIndex, Ending),
    NotRunning(StepIndex),
    Undo(StepIndex, bool),
    Lapsed(u8),
    Unwritable,
    Cancel,
    Resume,
    Skip(StepIndex),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Ending {
    Success,
    Retry,
    Fail,
    Unknown,
    Broken,
}

const NOW: Clock = Clock { now: 0, jitter: 1.0 };

impl Told {
    fn input(self, graph: &Graph) -> Input {
        let error = || "an error".to_owned();
        match self {
            Self::Attempt(step, ending) => Input::Attempt {
                step,
                outcome: match ending {
                    Ending::Success => Outcome::Success(Encoded::of(&step).unwrap()),
                    Ending::Retry => Outcome::Retry(error()),
                    Ending::Fail => Outcome::Fail(error()),
                    Ending::Unknown => Outcome::Unknown(error()),
                    Ending::Broken => Outcome::Broken(error()),
                },
            },
            Self::NotRunning(step) => Input::NotRunning { step },
            Self::Undo(step, done) => Input::Compensation { step, outcome: if done { Ok(()) } else { Err(error()) } },
            Self::Lapsed(total) => Input::Lapsed { total: total.into(), survived: vec![] },
            Self::Unwritable => Input::Unwritable { reason: error() },
            Self::Cancel => Input::Cancel { reason: "a person".into() },
            Self::Resume => Input::Resume { by: "a person".into() },
            Self::Skip(step) => Input::Skip { step: graph.node(step).name.to_string(), reason: "a person".into() },
        }
    }
}

/// A state, and what is asked of it again and again.
struct Known {
    state: State,
    /// How it was first reached, so that its journal can be told.
    from: Option<(Number, Vec<Event>)>,
    status: Status,
    run: Set,
    settle: Set,
    compensate: Set,
    stuck: Set,
    undoing: Set,
    generation: [u32; MOST_STEPS],
}

struct Machine<'g> {
    graph: &'g Graph,
    /// For each step, all that it waits for, directly or through others.
    before: Vec<Set>,
    attempts: u32,
    rogue: Rogue,
    known: Vec<Known>,
    numbers: HashMap<State, Number, Fast>,
    decided: HashMap<(Number, Told), Number, Fast>,
}

type Verdict<T = ()> = Result<T, String>;

fn demand(holds: bool, law: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(law()) }
}

impl<'g> Machine<'g> {
    fn new(graph: &'g Graph, bounds: Bounds, rogue: Rogue) -> Self {
        let before = closure(graph.nodes().iter().map(|node| set(&node.after)));
        let (known, numbers, decided) = (vec![], HashMap::default(), HashMap::default());
        Self { graph, before, attempts: bounds.attempts, rogue, known, numbers, decided }
    }

    fn start(&mut self) -> Verdict<Number> {
        self.number(State::new(self.graph), None)
    }

    fn at(&self, number: Number) -> &Known {
        &self.known[number as usize]
    }

    fn kind(&self, step: StepIndex) -> Kind {
        self.graph.node(step).kind
    }

    fn steps(&self) -> std::ops::Range<StepIndex> {
        0..self.graph.nodes().len()
    }

    /// Decides and folds.
    fn tell(&mut self, number: Number, told: Told) -> Verdict<Number> {
        if let Some(&next) = self.decided.get(&(number, told)) {
            return Ok(next);
        }
        let before = self.at(number).state.clone();
        let mut events = before.decide(self.graph, told.input(self.graph), NOW);
        if self.rogue == Rogue::ConcealsDoubt {
            events.iter_mut().for_each(conceal_doubt);
        }
        let mut after = before.clone();
        for event in &events {
            demand(fits(&after, event), || format!("{event:?} was decided where it does not fit"))?;
            after.apply(self.graph, event);
        }
        self.check_that_parking_has_a_reason(&before, told, &events, &after)?;
        let next = if after == before { number } else { self.number(after, Some((number, events)))? };
        self.decided.insert((number, told), next);
        Ok(next)
    }

    fn number(&mut self, state: State, from: Option<(Number, Vec<Event>)>) -> Verdict<Number> {
        if let Some(&number) = self.numbers.get(&state) {
            return Ok(number);
        }
        self.check(&state)?;
        let agenda = state.agenda(self.graph);
        let number = Number::try_from(self.known.len()).unwrap();
        let mut generation = [0; MOST_STEPS];
        for step in self.steps() {
            generation[step] = state.tries(step).map_or(0, |tries| tries.generation);
        }
        let those = |is: fn(&Step) -> bool| {
            state.steps().iter().enumerate().filter(|(_, step)| is(step)).fold(0, |all, (i, _)| all | bit(i))
        };
        self.known.push(Known {
            from,
            status: state.status(),
            run: set(&agenda.run),
            settle: set(&agenda.settle),
            compensate: set(&agenda.compensate),
            stuck: stuck(&state),
            undoing: those(|step| matches!(step, Step::Undoing { .. })),
            generation,
            state: state.clone(),
        });
        demand(State::replay(self.graph, &self.journal(number)) == state, || {
            "the journal, folded again, gives another state".into()
        })?;
        self.numbers.insert(state, number);
        Ok(number)
    }

    fn journal(&self, number: Number) -> Vec<Event> {
        let mut batches = vec![];
        let mut at = number;
        while let Some((earlier, events)) = &self.at(at).from {
            batches.push(events.clone());
            at = *earlier;
        }
        batches.into_iter().rev().flatten().collect()
    }

    /// What holds of every state, whatever the world looks like.
    fn check(&self, state: &State) -> Verdict {
        let steps = state.steps();
        let passed = |step: StepIndex| matches!(steps[step], Step::Succeeded(_) | Step::Skipped);
        let agenda = state.agenda(self.graph);
        let forward = matches!(state.course(), Course::Forward);
        let backward = matches!(state.course(), Course::Backward(_));
        let pivot_passed = self.graph.pivot().is_some_and(passed);
        demand(!pivot_passed || forward, || "a saga that passed its pivot goes forward only".into())?;
        for step in self.steps() {
            let name = &self.graph.node(step).name;
            let is = &steps[step];
            let waits_for_nothing = members(self.before[step]).all(passed);
            let undone = matches!(is, Step::Undoing { .. } | Step::Undone);
            demand(!undone || backward, || format!("{name} is undone by a saga that does not go backward"))?;
            demand(!undone || self.kind(step) == Kind::Compensatable, || format!("{name} has no undo"))?;
            demand(!matches!(is, Step::Void) || !forward, || format!("{name} is given up by a saga that goes on"))?;
            let settles = !backward || self.kind(step) == Kind::Compensatable;
            demand(!matches!(is, Step::Enabled(_)) || settles, || format!("{name} is enabled going backward"))?;
            let early = forward && matches!(is, Step::Enabled(_) | Step::Succeeded(_)) && !waits_for_nothing;
            demand(!early, || format!("{name} is enabled before what it depends on succeeded"))?;
            let key = state.tries(step).map_or(0, |tries| tries.generation);
            demand(key == 0 || !matches!(self.kind(step), Kind::Compensatable | Kind::Pivot), || {
                format!("{name} got a new key, though its undo or its doubt belongs to the old one")
            })?;
        }
        let halted = matches!(state.course(), Course::Halting(_));
        let pivot_is_open = self.graph.pivot().is_some_and(|pivot| matches!(steps[pivot], Step::Enabled(_)));
        demand(!halted || pivot_is_open, || "a saga halts for a pivot that has its outcome".into())?;
        let acts = !(agenda.run.is_empty() && agenda.settle.is_empty() && agenda.compensate.is_empty());
        let rests = state.status() == Status::Parked || state.status().is_final();
        demand(!(acts && rests), || "a saga that ended or is parked has an agenda".into())?;
        if state.status().is_final() {
            self.check_that_it_is_over(state)?;
        }
        Ok(())
    }

    fn check_that_it_is_over(&self, state: &State) -> Verdict {
        let late = self.steps().flat_map(|step| {
            let endings = [Ending::Success, Ending::Retry, Ending::Fail, Ending::Unknown, Ending::Broken];
            let of_step = [Told::NotRunning(step), Told::Undo(step, true), Told::Undo(step, false), Told::Skip(step)];
            endings.map(|ending| Told::Attempt(step, ending)).into_iter().chain(of_step)
        });
        for told in late.chain([Told::Cancel, Told::Resume, Told::Unwritable, Told::Lapsed(9)]) {
            let mut after = state.clone();
            for event in state.decide(self.graph, told.input(self.graph), NOW) {
                after.apply(self.graph, &event);
            }
            demand(after == *state, || format!("{told:?} changed a saga that has ended"))?;
        }
        Ok(())
    }

    /// Only what is permanent parks: a step that gave up where it can be neither undone nor passed, a compensation that gave
    /// up, workers lost again and again, and what the store will not take.
    fn check_that_parking_has_a_reason(&self, before: &State, told: Told, events: &[Event], after: &State) -> Verdict {
        let unreasonable = |what: &str| Err(format!("{told:?} parks the saga for no good reason: {what}"));
        let lapsed = matches!(told, Told::Lapsed(_));
        let exhausted = |step| before.tries(step).is_some_and(|tries| tries.made + 1 >= self.attempts);
        let mut explained = stuck(before);
        for event in events {
            match *event {
                Event::Stuck { step, in_doubt, .. } => {
                    explained |= bit(step);
                    let gave_up = exhausted(step) && (lapsed || matches!(told, Told::Attempt(..)));
                    let refused = matches!(told, Told::Attempt(_, Ending::Fail));
                    let pivot_passed = || {
                        let pivot = self.graph.pivot().map(|pivot| &after.steps()[pivot]);
                        matches!(pivot, Some(Step::Succeeded(_) | Step::Skipped))
                    };
                    let reasonable = match self.kind(step) {
                        _ if matches!(told, Told::Attempt(_, Ending::Broken)) => true,
                        Kind::Pivot => gave_up && in_doubt,
                        Kind::Retriable => gave_up || refused,
                        Kind::EffectFree => (gave_up || refused) && pivot_passed(),
                        Kind::Compensatable => false,
                    };
                    if !reasonable {
                        return unreasonable("a step that could have been retried or undone is stuck");
                    }
                }
                Event::CompensationStuck { step, .. } => {
                    explained |= bit(step);
                    if !exhausted(step) {
                        return unreasonable("a compensation has attempts left");
                    }
                }
                Event::Parked { .. } if told == Told::Unwritable => {}
                Event::Parked { .. } if matches!(told, Told::Lapsed(3..)) => {}
                Event::Parked { .. } => return unreasonable("the saga as a whole"),
                _ => {}
            }
        }
        // What failed beside a pivot that was passed after all.
        let failed = |step| matches!(before.steps()[step], Step::Void) && self.kind(step) == Kind::EffectFree;
        let explained = members(stuck(after) & !explained).all(failed);
        if explained { Ok(()) } else { unreasonable("a step is stuck, and no event says so") }
    }
}

fn conceal_doubt(event: &mut Event) {
    if let Event::Failed { in_doubt, .. } | Event::Retrying { in_doubt, .. } | Event::Stuck { in_doubt, .. } = event {
        *in_doubt = false;
    }
}

fn stuck(state: &State) -> Set {
    let is_stuck = |&step: &StepIndex| state.tries(step).is_some_and(|tries| tries.stuck.is_some());
    (0..state.steps().len()).filter(is_stuck).fold(0, |all, step| all | bit(step))
}

/// Whether an event is about something that is under way: what is decided must never be what `apply` ignores.
fn fits(state: &State, event: &Event) -> bool {
    let enabled = |step: StepIndex| matches!(state.steps()[step], Step::Enabled(_));
    let undoing = |step: StepIndex| matches!(state.steps()[step], Step::Undoing { .. });
    match *event {
        Event::Succeeded { step, .. }
        | Event::Retrying { step, .. }
        | Event::Failed { step, .. }
        | Event::Stuck { step, .. } => enabled(step),
        Event::Compensated { step }
        | Event::CompensationRetrying { step, .. }
        | Event::CompensationStuck { step, .. } => undoing(step),
        Event::Commanded { step, .. } | Event::Awaiting { step, .. } => enabled(step) || undoing(step),
        Event::Skipped { step, .. } => stuck(state) & bit(step) != 0,
        Event::Resumed { .. } => state.status() == Status::Parked,
        Event::CancelRequested { .. } | Event::Parked { .. } | Event::Lapsed { .. } => !state.status().is_final(),
        Event::Refused { .. } => true,
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Moments

/// What one step has done to the world, under its present key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Effect {
    /// Nothing, and it will stay so unless an attempt is made.
    None,
    /// Nothing, but an attempt that nobody waits for may yet take effect.
    InTheAir,
    /// It happened.
    Done,
    /// The participant said no, and remembers it.
    Refused,
    /// There is a tombstone: what comes late is refused.
    Undone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment {
    /// What is in the journal; what will be, once the append under way is through; and what was decided since.
    durable: Number,
    appending: Number,
    newest: Number,
    /// Attempts and compensations that the driver waits for.
    running: Set,
    undoing: Set,
    world: [Effect; MOST_STEPS],
    /// What is left of the bounds.
    crashes: u8,
    cancels: u8,
    verbs: u8,
    refusals: u8,
}

/// In two words: this is what the search spends its time on.
impl Hash for Moment {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let [a, b, c, d] = self.world;
        let world = a as u64 | (b as u64) << 3 | (c as u64) << 6 | (d as u64) << 9;
        let left = [self.crashes, self.cancels, self.verbs, self.refusals];
        let left = left.iter().fold(0, |all, &left| all << 3 | u64::from(left));
        let under_way = u64::from(self.running) << 4 | u64::from(self.undoing);
        hasher.write_u64(u64::from(self.durable) << 32 | u64::from(self.appending));
        hasher.write_u64(u64::from(self.newest) << 32 | under_way << 24 | left << 12 | world);
    }
}

impl Moment {
    const fn all_is_durable(&self) -> bool {
        self.durable == self.appending && self.appending == self.newest
    }
}

/// What leads from one moment to the next.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "read by whoever reads a violation")]
enum Move {
    Started,
    Run(StepIndex),
    Undo(StepIndex),
    Appended,
    Told(Told),
    UndoFailedAfterItsEffect(StepIndex),
    TookEffectLate(StepIndex),
    Crash { appended: bool, undone: Set },
}

type Next = Vec<(Move, Moment)>;

struct Search<'g> {
    machine: Machine<'g>,
    bounds: Bounds,
    rogue: Rogue,
    /// Each moment that was met, and whether the way that is being followed leads through it.
    seen: HashMap<Moment, bool, Fast>,
    /// Where a parked saga was led, by an operator who skips or who does not.
    led_home: HashSet<(Number, [Effect; MOST_STEPS], bool), Fast>,
    figures: Figures,
}

#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    graphs: usize,
    states: usize,
    moments: usize,
    moves: usize,
    completed: usize,
    rolled_back: usize,
    parked: usize,
}

/// A law that was broken, and the way to it.
struct Violation {
    law: String,
    graph: String,
    way: Vec<Move>,
    state: Option<State>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { law, graph, way, state } = self;
        writeln!(f, "{law}\nin the saga\n{graph}by the way of")?;
        way.iter().try_for_each(|step| writeln!(f, "  {step:?}"))?;
        writeln!(f, "at {state:#?}")
    }
}

fn search(graph: &Graph, bounds: Bounds, rogue: Rogue) -> Result<Figures, Box<Violation>> {
    let machine = Machine::new(graph, bounds, rogue);
    let figures = Figures { graphs: 1, ..Figures::default() };
    let (seen, led_home) = (HashMap::default(), HashSet::default());
    Search { machine, bounds, rogue, seen, led_home, figures }.run()
}

struct Frame {
    by: Move,
    moment: Moment,
    next: Next,
}

impl Search<'_> {
    /// Depth first, so that the frames are the way to where we are.
    fn run(mut self) -> Result<Figures, Box<Violation>> {
        let mut way: Vec<Frame> = vec![];
        let mut step = self.first().map(|moment| Some((Move::Started, moment)));
        loop {
            match step {
                Err(law) => return Err(Box::new(self.violation(law, &way))),
                Ok(Some((by, moment))) => {
                    self.seen.insert(moment, true);
                    way.push(Frame { by, moment, next: vec![] });
                    match self.check(&moment).and_then(|()| self.next(&moment)) {
                        Ok(next) => {
                            self.figures.moves += next.len();
                            way.last_mut().unwrap().next = next;
                        }
                        Err(law) => return Err(Box::new(self.violation(law, &way))),
                    }
                }
                Ok(None) => {}
            }
            let Some(frame) = way.last_mut() else { break };
            step = Ok(None);
            if let Some((by, moment)) = frame.next.pop() {
                match self.seen.get(&moment) {
                    Some(false) => {}
                    Some(true) => step = Err(format!("{by:?} leads back to where the saga was: a livelock")),
                    None => step = Ok(Some((by, moment))),
                }
            } else {
                self.seen.insert(frame.moment, false);
                way.pop();
            }
        }
        self.figures.states = self.machine.known.len();
        self.figures.moments = self.seen.len();
        Ok(self.figures)
    }

    fn violation(&self, law: String, way: &[Frame]) -> Violation {
        let state = way.last().map(|frame| self.machine.at(frame.moment.newest).state.clone());
        let way = way.iter().map(|frame| frame.by).collect();
        Violation { law, graph: self.machine.graph.fingerprint(), way, state }
    }

    fn first(&mut self) -> Verdict<Moment> {
        let start = self.machine.start()?;
        let Bounds { crashes, cancels, verbs, refusals, .. } = self.bounds;
        let mut first = Moment {
            durable: start,
            appending: start,
            newest: start,
            running: 0,
            undoing: 0,
            world: [Effect::None; MOST_STEPS],
            crashes,
            cancels,
            verbs,
            refusals,
        };
        self.start_all_without_delay(&mut first)?;
        Ok(first)
    }

    /// The law of effects, and all that ties what was decided to what happened.
    fn check(&self, at: &Moment) -> Verdict {
        let state = &self.machine.at(at.newest).state;
        for step in self.machine.steps() {
            let effect = at.world[step];
            let (running, undoing) = (at.running & bit(step) != 0, at.undoing & bit(step) != 0);
            let kind = self.machine.kind(step);
            let effect_free = kind == Kind::EffectFree;
            let nothing_left = matches!(effect, Effect::None | Effect::Refused);
            let lawful = match &state.steps()[step] {
                Step::Waiting => effect == Effect::None && !running && !undoing,
                Step::Enabled(_) => effect != Effect::Undone && !undoing,
                Step::Succeeded(_) => (effect_free || effect == Effect::Done) && !running && !undoing,
                Step::Void => nothing_left && !undoing && (effect_free || !running),
                Step::Undoing { .. } => !running,
                Step::Undone => effect == Effect::Undone && !running && !undoing,
                Step::Skipped => !running && !undoing,
            };
            demand(lawful, || {
                let name = &self.machine.graph.node(step).name;
                let is = &state.steps()[step];
                format!(
                    "law of effects: {name} is {is:?}, its effect {effect:?} (running {running}, undoing {undoing})"
                )
            })?;
        }
        Ok(())
    }

    fn next(&mut self, at: &Moment) -> Verdict<Next> {
        let mut next = vec![];
        let status = self.machine.at(at.durable).status;
        if at.all_is_durable() && status.is_final() {
            match status {
                Status::Completed => self.figures.completed += 1,
                _ => self.figures.rolled_back += 1,
            }
            return Ok(next);
        }
        self.driver(at, &mut next)?;
        self.participants(at, &mut next)?;
        if next.is_empty() {
            let parked = at.all_is_durable() && status == Status::Parked;
            demand(parked, || "nothing leads on, and the saga has neither ended nor is it parked".into())?;
            self.figures.parked += 1;
            self.check_that_operators_lead_on(at)?;
        }
        self.zombies(at, &mut next);
        self.crashes(at, &mut next)?;
        self.store(at, &mut next)?;
        self.people(at, &mut next)?;
        Ok(next)
    }

    fn driver(&mut self, at: &Moment, next: &mut Next) -> Verdict {
        if at.durable != at.appending {
            let mut after = Moment { durable: at.appending, appending: at.newest, ..*at };
            self.start_all_without_delay(&mut after)?;
            next.push((Move::Appended, after));
        }
        if !at.all_is_durable() && self.rogue != Rogue::ActsBeforeTheAppend {
            return Ok(());
        }
        let known = self.machine.at(at.newest);
        let (run, settle) = (known.run & !at.running, known.settle);
        let compensate = if self.rogue == Rogue::UndoesInAnyOrder && known.status == Status::Compensating {
            known.undoing
        } else {
            known.compensate
        };
        for step in members(run) {
            let mut after = *at;
            self.start_attempt(&mut after, step)?;
            next.push((Move::Run(step), after));
        }
        for step in members(compensate & !at.undoing) {
            let mut after = *at;
            self.start_undo(&mut after, step)?;
            next.push((Move::Undo(step), after));
        }
        for step in members(settle) {
            if at.running & bit(step) == 0 || self.rogue == Rogue::SettlesWhatRuns {
                self.tell(at, Told::NotRunning(step), next)?;
            }
        }
        Ok(())
    }

    fn start_all_without_delay(&mut self, at: &mut Moment) -> Verdict {
        if self.bounds.delays || !at.all_is_durable() {
            return Ok(());
        }
        let known = self.machine.at(at.newest);
        let (run, compensate) = (known.run & !at.running, known.compensate & !at.undoing);
        members(run).try_for_each(|step| self.start_attempt(at, step))?;
        members(compensate).try_for_each(|step| self.start_undo(at, step))
    }

    fn start_attempt(&self, at: &mut Moment, step: StepIndex) -> Verdict {
        let name = || &self.machine.graph.node(step).name;
        let journal = &self.machine.at(at.newest).state;
        let passed = |on| matches!(journal.steps()[on], Step::Succeeded(_) | Step::Skipped);
        demand(members(self.machine.before[step]).all(passed), || format!("{} starts too early", name()))?;
        demand(at.world[step] != Effect::Undone, || format!("{} is attempted after its undo", name()))?;
        at.running |= bit(step);
        Ok(())
    }

    fn start_undo(&self, at: &mut Moment, step: StepIndex) -> Verdict {
        let name = |step: StepIndex| &self.machine.graph.node(step).name;
        let journal = &self.machine.at(at.newest).state;
        for later in self.machine.steps().filter(|&later| self.machine.before[later] & bit(step) != 0) {
            let left = match &journal.steps()[later] {
                Step::Enabled(_) | Step::Undoing { .. } => true,
                Step::Skipped => false,
                _ => matches!(at.world[later], Effect::Done | Effect::InTheAir),
            };
            demand(!left, || format!("{} is undone before {}, which depends on it", name(step), name(later)))?;
        }
        at.undoing |= bit(step);
        Ok(())
    }

    fn participants(&mut self, at: &Moment, next: &mut Next) -> Verdict {
        for step in members(at.running) {
            self.attempt_ends(at, step, next)?;
        }
        for step in members(at.undoing) {
            let before = Moment { undoing: at.undoing & !bit(step), ..*at };
            let mut undone = before;
            let lets_in = self.rogue == Rogue::LetsZombiesIn && at.world[step] == Effect::InTheAir;
            undone.world[step] = if lets_in { Effect::InTheAir } else { Effect::Undone };
            self.tell(&undone, Told::Undo(step, true), next)?;
            self.tell(&before, Told::Undo(step, false), next)?;
            if undone.world != before.world {
                self.tell(&undone, Told::Undo(step, false), next)?;
                next.last_mut().unwrap().0 = Move::UndoFailedAfterItsEffect(step);
            }
        }
        Ok(())
    }

    fn attempt_ends(&mut self, at: &Moment, step: StepIndex, next: &mut Next) -> Verdict {
        let is = at.world[step];
        let may_have_happened = if is == Effect::None { Effect::InTheAir } else { is };
        let endings = match self.machine.kind(step) {
            Kind::Pivot | Kind::Retriable if is == Effect::Refused => vec![Ending::Fail],
            Kind::Pivot | Kind::Retriable if is == Effect::Done => vec![Ending::Success],
            _ => vec![Ending::Success, Ending::Fail],
        };
        for ending in endings.into_iter().chain([Ending::Retry, Ending::Unknown, Ending::Broken]) {
            let effect = match (self.machine.kind(step), ending) {
                (Kind::EffectFree, _) | (_, Ending::Retry) | (Kind::Compensatable, Ending::Fail) => is,
                (_, Ending::Fail) => Effect::Refused,
                (_, Ending::Success) => Effect::Done,
                (_, Ending::Unknown | Ending::Broken) => may_have_happened,
            };
            if ending != Ending::Broken || self.bounds.broken {
                let mut after = Moment { running: at.running & !bit(step), ..*at };
                after.world[step] = effect;
                self.tell(&after, Told::Attempt(step, ending), next)?;
            }
        }
        Ok(())
    }

    fn zombies(&self, at: &Moment, next: &mut Next) {
        for step in self.machine.steps().filter(|&step| at.world[step] == Effect::InTheAir) {
            let mut after = *at;
            after.world[step] = Effect::Done;
            next.push((Move::TookEffectLate(step), after));
        }
    }

    /// A worker is lost, and another one takes over: before or after the append that was under way became durable, and with
    /// every subset of the compensations that were under way having happened.
    fn crashes(&mut self, at: &Moment, next: &mut Next) -> Verdict {
        if at.crashes == 0 {
            return Ok(());
        }
        let lost = Moment { crashes: at.crashes - 1, ..self.nobody_waits(at) };
        let ends = if at.durable == at.appending { vec![false] } else { vec![false, true] };
        let subsets = (0..=at.undoing).filter(|subset| subset & !at.undoing == 0);
        for (undone, appended) in subsets.flat_map(|subset| ends.iter().map(move |&end| (subset, end))) {
            let durable = if appended { at.appending } else { at.durable };
            let mut found = Moment { durable, appending: durable, newest: durable, ..lost };
            members(undone).for_each(|step| found.world[step] = Effect::Undone);
            if self.machine.at(durable).status.is_final() {
                next.push((Move::Crash { appended, undone }, found));
                continue;
            }
            let total = self.bounds.crashes - found.crashes;
            match self.rogue {
                Rogue::ConcealsLapses => next.push((Move::Crash { appended, undone }, found)),
                _ => self.tell(&found, Told::Lapsed(total), next)?,
            }
            next.last_mut().unwrap().0 = Move::Crash { appended, undone };
        }
        Ok(())
    }

    /// The store will not take what is being appended. The driver forgets it, and all that it was waiting for.
    fn store(&mut self, at: &Moment, next: &mut Next) -> Verdict {
        if at.refusals == 0 || at.durable == at.appending {
            return Ok(());
        }
        let (durable, refusals) = (at.durable, at.refusals - 1);
        let after = Moment { appending: durable, newest: durable, refusals, ..self.nobody_waits(at) };
        self.tell(&after, Told::Unwritable, next)
    }

    /// Whatever was under way goes on without anybody who would hear how it ends.
    fn nobody_waits(&self, at: &Moment) -> Moment {
        let mut after = Moment { running: 0, undoing: 0, ..*at };
        for step in members(at.running) {
            if self.machine.kind(step) != Kind::EffectFree && at.world[step] == Effect::None {
                after.world[step] = Effect::InTheAir;
            }
        }
        after
    }

    fn people(&mut self, at: &Moment, next: &mut Next) -> Verdict {
        let known = self.machine.at(at.newest);
        if known.status.is_final() {
            return Ok(());
        }
        let (parked, stuck) = (known.status == Status::Parked, known.stuck);
        if at.cancels > 0 {
            self.tell(&Moment { cancels: at.cancels - 1, ..*at }, Told::Cancel, next)?;
        }
        if at.verbs > 0 && parked {
            let after = Moment { verbs: at.verbs - 1, ..*at };
            self.tell(&after, Told::Resume, next)?;
            members(stuck).try_for_each(|step| self.tell(&after, Told::Skip(step), next))?;
        }
        Ok(())
    }

    /// Decides, and hands the batch to the store if nothing else is on the way to it.
    fn tell(&mut self, at: &Moment, told: Told, next: &mut Next) -> Verdict {
        let mut after = self.told(at, told)?;
        if !self.bounds.delays {
            after.durable = after.newest;
        }
        if at.durable == at.appending {
            after.appending = after.newest;
        }
        self.start_all_without_delay(&mut after)?;
        next.push((Move::Told(told), after));
        Ok(())
    }

    /// Decides. A new key means a new effect, so there must be none under the old one, now or later.
    fn told(&mut self, at: &Moment, told: Told) -> Verdict<Moment> {
        let mut after = Moment { newest: self.machine.tell(at.newest, told)?, ..*at };
        let (old, new) = (self.machine.at(at.newest), self.machine.at(after.newest));
        if new.generation == old.generation {
            return Ok(after);
        }
        for step in self.machine.steps().filter(|&step| new.generation[step] > old.generation[step]) {
            let clean = matches!(at.world[step], Effect::None | Effect::Refused) && at.running & bit(step) == 0;
            demand(clean || self.machine.kind(step) == Kind::EffectFree, || {
                format!("{} gets a new key while the old one is in doubt", self.machine.graph.node(step).name)
            })?;
            after.world[step] = Effect::None;
        }
        Ok(after)
    }

    /// Nothing is parked for ever: with participants that work again, verbs lead to an end.
    fn check_that_operators_lead_on(&mut self, at: &Moment) -> Verdict {
        self.lead_home(*at, false)?;
        self.lead_home(*at, true)
    }

    /// Everybody cooperates, and an operator skips what can be skipped, or resumes.
    fn lead_home(&mut self, mut at: Moment, skips: bool) -> Verdict {
        let mut walked = vec![];
        // From a place that an earlier walk passed, the rest of the way is known.
        while !self.led_home.contains(&(at.newest, at.world, skips)) {
            self.check(&at)?;
            let here = (at.newest, at.world, skips);
            demand(!walked.contains(&here), || "no verb gets the saga out of being parked".into())?;
            walked.push(here);
            let known = self.machine.at(at.newest);
            if known.status.is_final() {
                break;
            }
            if known.status == Status::Parked {
                let stuck = members(known.stuck).next().filter(|_| skips);
                at = self.told(&at, stuck.map_or(Told::Resume, Told::Skip))?;
                continue;
            }
            let first = |set| members(set).next();
            let (run, compensate, settle) = (first(known.run), first(known.compensate), first(known.settle));
            let told = match (run, compensate, settle) {
                (Some(step), ..) if at.world[step] == Effect::Refused => Told::Attempt(step, Ending::Fail),
                (Some(step), ..) => {
                    self.start_attempt(&mut at, step)?;
                    if self.machine.kind(step) != Kind::EffectFree {
                        at.world[step] = Effect::Done;
                    }
                    Told::Attempt(step, Ending::Success)
                }
                (_, Some(step), _) => {
                    self.start_undo(&mut at, step)?;
                    at.world[step] = Effect::Undone;
                    Told::Undo(step, true)
                }
                (.., Some(step)) => Told::NotRunning(step),
                _ => return Err("after an operator's verb there is nothing to do, and no end".into()),
            };
            (at.running, at.undoing) = (0, 0);
            at = self.told(&at, told)?;
        }
        self.led_home.extend(walked);
        Ok(())
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Searching many graphs, on two threads

impl AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.graphs += other.graphs;
        self.states += other.states;
        self.moments += other.moments;
        self.moves += other.moves;
        self.completed += other.completed;
        self.rolled_back += other.rolled_back;
        self.parked += other.parked;
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { graphs, states, moments, moves, completed, rolled_back, parked } = self;
        write!(f, "{graphs} graphs, {states} states of the machine, {moments} moments, {moves} moves; ")?;
        write!(f, "ends: {completed} completed, {rolled_back} rolled back, {parked} parked")
    }
}

fn search_all(graphs: &[Graph], bounds: Bounds) -> Figures {
    let (next, figures) = (AtomicUsize::new(0), Mutex::new(Figures::default()));
    let work = || {
        while let Some(graph) = graphs.get(next.fetch_add(1, Ordering::Relaxed)) {
            match search(graph, bounds, Rogue::Nobody) {
                Ok(found) => *figures.lock().unwrap() += found,
                Err(violation) => panic!("{violation}"),
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
    figures.into_inner().unwrap()
}

/// The hash of rustc and Firefox, since moments are hashed by the million.
#[derive(Default)]
struct FastHasher(u64);

type Fast = BuildHasherDefault<FastHasher>;

impl Hasher for FastHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word as u64);
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The tests

/// One search over all graphs of a size, and how much it must find: the figures are the same on every run, so a search that
/// shrinks was changed.
struct Level {
    steps: usize,
    up_to_symmetry: bool,
    bounds: Bounds,
    graphs: usize,
    moments: usize,
}

const fn level(steps: usize, bounds: Bounds, graphs: usize, moments: usize) -> Level {
    Level { steps, up_to_symmetry: steps == MOST_STEPS, bounds, graphs, moments }
}

/// Every outcome, one crash, one request to cancel; each step gives up at once.
const NARROW: Bounds =
    Bounds { attempts: 1, crashes: 1, cancels: 1, verbs: 0, refusals: 0, broken: false, delays: false };

/// All that the model knows.
const WIDE: Bounds = Bounds { attempts: 2, crashes: 1, cancels: 1, verbs: 1, refusals: 1, broken: true, delays: true };

/// The smaller the graph, the more may happen to it. The dev profile is some fifteen times slower, so less happens there.
fn levels() -> Vec<Level> {
    let twice = Bounds { attempts: 2, ..NARROW };
    let slow = Bounds { delays: true, ..NARROW };
    if cfg!(debug_assertions) {
        vec![
            level(1, Bounds { crashes: 3, verbs: 2, ..WIDE }, 3, 80_000),
            level(2, WIDE, 14, 650_000),
            level(3, twice, 102, 340_000),
            level(3, slow, 102, 300_000),
            level(4, NARROW, 373, 1_250_000),
        ]
    } else {
        vec![
            level(1, Bounds { crashes: 4, verbs: 3, cancels: 2, ..WIDE }, 3, 450_000),
            level(2, Bounds { crashes: 2, ..WIDE }, 14, 1_500_000),
            level(3, Bounds { crashes: 2, verbs: 1, broken: true, ..twice }, 102, 2_600_000),
            level(3, Bounds { attempts: 2, ..slow }, 102, 4_500_000),
            level(4, NARROW, 373, 1_250_000),
            level(4, Bounds { cancels: 0, ..twice }, 373, 2_900_000),
        ]
    }
}

#[test]
fn every_way_through_every_small_saga_ends_and_keeps_the_law_of_effects() {
    let started = Instant::now();
    let mut all = Figures::default();
    for Level { steps, up_to_symmetry, bounds, graphs, moments } in levels() {
        let found = search_all(&self::graphs(steps, bounds, up_to_symmetry), bounds);
        println!("{steps} steps, {bounds:?}\n    {found}");
        assert_eq!(found.graphs, graphs, "graphs of {steps} steps");
        assert!(found.moments >= moments, "{} moments of {steps} steps, where there were {moments}", found.moments);
        assert!(found.completed > 0 && found.rolled_back > 0 && found.parked > 0, "not all ends were met");
        all += found;
    }
    println!("in all {all}, in {:.1?}: every way ends, and the law of effects holds", started.elapsed());
}

/// A checker that cannot fail checks nothing: someone breaks a rule, and some small saga must show it.
fn assert_is_caught(rogue: Rogue, law: &str) {
    let bounds = Bounds { verbs: 0, refusals: 0, broken: false, ..WIDE };
    let small = (1..=2).flat_map(|steps| graphs(steps, bounds, false));
    let laws: Vec<String> = small.filter_map(|graph| Some(search(&graph, bounds, rogue).err()?.law)).collect();
    assert!(laws.iter().any(|found| found.contains(law)), "{rogue:?} broke other laws, or none: {laws:#?}");
}

#[test]
fn a_driver_that_acts_before_the_append_is_caught() {
    assert_is_caught(Rogue::ActsBeforeTheAppend, "is Waiting, its effect InTheAir");
}

#[test]
fn a_driver_that_conceals_a_lost_worker_is_caught() {
    assert_is_caught(Rogue::ConcealsLapses, "is Void, its effect Done");
}

#[test]
fn a_driver_that_conceals_doubt_is_caught() {
    assert_is_caught(Rogue::ConcealsDoubt, "is Void, its effect Done");
}

#[test]
fn a_driver_that_undoes_in_any_order_is_caught() {
    assert_is_caught(Rogue::UndoesInAnyOrder, "a is undone before b, which depends on it");
}

#[test]
fn a_driver_that_settles_what_runs_is_caught() {
    assert_is_caught(Rogue::SettlesWhatRuns, "is Void, its effect None (running true");
}

#[test]
fn a_participant_without_a_barrier_is_caught() {
    assert_is_caught(Rogue::LetsZombiesIn, "is Undone, its effect InTheAir");
}
