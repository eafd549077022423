use super::{
    World,
    faults::{Fault, Faults, FaultyProcess, FaultyStore, Point},
    in_virtual_time,
};
use crate::{
    Definition, Engine, MemoryStore, Outcome, Saga, Sagas,
    definition::{Bound, Kind, Policy},
};
use std::{fmt, sync::Arc, time::Duration};
use tokio::time::timeout;

/// Longer than any retries take in virtual time, and no time at all in real time.
const AGES: Duration = Duration::from_secs(6 * 3600);
/// How many broken promises a report tells.
const TOLD: usize = 5;

/// What [`crash_everywhere`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// How often the saga was run.
    pub runs: usize,
    /// How many of these runs completed.
    pub completed: usize,
    /// How many were rolled back.
    pub rolled_back: usize,
    /// How many were parked on the way, with good reason, and moved on by an operator.
    pub parked: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, completed, rolled_back, parked } = self;
        write!(f, "{runs} runs: {completed} completed, {rolled_back} rolled back, {parked} of them parked on the way")
    }
}

/// Runs a saga again and again, with one thing going wrong at every single point, and checks the law of effects.
///
/// The points are each write to the store, each attempt of a step and each attempt of a compensation, on the way forward and on each way
/// back (one for every step that can refuse). What goes wrong: the process dies before or after; the answer is lost, or the
/// request, or every answer until the step gives up; a transient error; a refusal; a panic; the same call twice; and a call that was under way in a dying process and is
/// executed only after the saga has ended. After a crash another process takes over, and the client submits again under the same key.
///
/// The undisturbed run has to leave an effect in the [`World`], if it completes and not all its steps are free of effects:
/// fakes that say nothing to it would prove nothing.
///
/// Each time: the saga ends, and it is parked only where the pivot is in doubt, a step after it was refused, or a step or compensation gave up that had to be done (it then ends when an operator resumes it); when it completed, every effect is there that
/// is there in an undisturbed run; when it was rolled back, none is; and no idempotency key was ever used with two payloads.
///
/// `input` makes the input, `deps` the dependencies: fakes on the given [`World`]. Everything runs in virtual time, on a thread of its own, in memory; a
/// saga of four steps takes well under a second.
///
/// ```
/// use saga_core::{*, testing::{World, crash_everywhere}};
///
/// struct Order;
/// impl Saga for Order {
///     const NAME: &'static str = "order";
///     const VERSION: u32 = 1;
///     type Input = u32;
///     type Output = ();
///     type Deps = World;
///     fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
///         saga.compensatable("reserve").run(reserve).compensate(release);
///         saga.pivot("charge").run(charge)
///     }
/// }
/// async fn reserve(world: Cx<World>, _: u32) -> Result<(), StepError> {
///     world.apply(world.idempotency_key())
/// }
/// async fn release(world: CompensationCx<World>, _: u32, _: Option<()>) -> Result<(), StepError> {
///     world.revert(world.forward_key())
/// }
/// async fn charge(world: Cx<World>, _: u32) -> Result<(), StepError> {
///     world.apply(world.idempotency_key())
/// }
///
/// let report = crash_everywhere::<Order>(|| 3, |world| world);
/// assert!(report.completed > 0 && report.rolled_back > 0);
/// ```
///
/// # Panics
/// When a promise was broken: with the fault, the journal, and what was left in the world.
pub fn crash_everywhere<S: Saga>(
    input: impl Fn() -> S::Input + Send + Sync,
    deps: impl Fn(World) -> S::Deps + Send + Sync,
) -> Report {
    let definition = Definition::<S>::build().unwrap_or_else(|error| panic!("{error}"));
    let kit = Kit { input, deps, definition };
    std::thread::scope(|scope| match scope.spawn(|| kit.everything()).join() {
        Ok(Ok(report)) => report,
        Ok(Err(broken)) => panic!("{broken}"),
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

struct Kit<S: Saga, I, D> {
    input: I,
    deps: D,
    definition: Definition<S>,
}

/// How a run ended.
struct Run {
    points: Vec<Point>,
    completed: bool,
    parked: bool,
    /// What is left in the world, without the saga's id.
    effects: Vec<String>,
    two_payloads: Vec<String>,
    journal: String,
}

impl<S: Saga, I: Fn() -> S::Input, D: Fn(World) -> S::Deps> Kit<S, I, D> {
    fn is_about_something(&self, plain: &Run) -> Result<(), String> {
        let mut steps = self.definition.graph().nodes().iter();
        if plain.completed && plain.effects.is_empty() && steps.any(|step| step.kind != Kind::EffectFree) {
            return Err(
                "the saga completed, and there is no effect in the `World`, so nothing can be told of any: let \
                        your fakes call `World::apply` with the idempotency key where the real ones do something, and \
                        `World::revert` with the forward key where they undo it"
                    .into(),
            );
        }
        Ok(())
    }

    fn everything(&self) -> Result<Report, String> {
        let plain = self.run(vec![])?;
        self.is_about_something(&plain)?;
        let completed = usize::from(plain.completed);
        let mut report = Report { runs: 1, completed, rolled_back: 1 - completed, parked: 0 };
        let mut broken = vec![];
        for way in self.ways(&plain) {
            let points = self.run(way.clone())?.points;
            let from = way.last().map_or(0, |(at, _)| at + 1);
            for (at, point) in points.iter().enumerate().skip(from) {
                for &fault in Fault::at(point) {
                    let mut planned = way.clone();
                    planned.push((at, fault));
                    report.runs += 1;
                    let told = told(&planned, &points);
                    match self.run(planned.clone()) {
                        Ok(run) => {
                            report.completed += usize::from(run.completed);
                            report.rolled_back += usize::from(!run.completed);
                            report.parked += usize::from(run.parked);
                            broken.extend(run.broken(&plain, self.may_park(&planned, &points)).map(|what| {
                                format!("after {told}:\n  {what}\n  the journal:\n{}", indented(&run.journal))
                            }));
                        }
                        Err(what) => broken.push(format!("after {told}:\n  {what}")),
                    }
                }
            }
        }
        if broken.is_empty() {
            return Ok(report);
        }
        let count = broken.len();
        broken.truncate(TOLD);
        Err(format!(
            "saga `{}` broke its promises in {count} of {} runs. The first ones:\n\n{}",
            S::NAME,
            report.runs,
            broken.join("\n")
        ))
    }

    /// The way forward, and the way back from each step that can refuse.
    fn ways(&self, plain: &Run) -> Vec<Vec<(usize, Fault)>> {
        let graph = self.definition.graph();
        let can_turn_back = |point: &Point| match point {
            Point::Attempt(step) => graph.find(step).is_some_and(|step| graph.node(step).kind != Kind::Retriable),
            _ => false,
        };
        let refusals = plain.points.iter().enumerate().filter(|(_, point)| can_turn_back(point));
        std::iter::once(vec![]).chain(refusals.map(|(at, _)| vec![(at, Fault::Refused)])).collect()
    }

    fn run(&self, planned: Vec<(usize, Fault)>) -> Result<Run, String> {
        fastrand::seed(4711);
        in_virtual_time(self.run_in_virtual_time(planned))
    }

    async fn run_in_virtual_time(&self, planned: Vec<(usize, Fault)>) -> Result<Run, String> {
        let (world, store) = (World::default(), MemoryStore::default());
        let faults = Faults::planned(planned);
        let mut parked = false;
        let (outcome, journal, id) = loop {
            let engine = self.engine(&world, &store, &faults).await?;
            let ended = tokio::select! {
                ended = timeout(AGES, self.submit_and_wait(engine.sagas(), &faults, &mut parked)) => Some(ended),
                () = faults.crash.notified() => None,
            };
            engine.kill().await;
            match ended {
                Some(ended) => break ended.map_err(|_| "the saga did not end".to_owned())??,
                None => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        };
        for late in faults.late_work() {
            late.await;
        }
        Ok(Run {
            points: faults.points(),
            completed: matches!(outcome, Outcome::Completed(_)),
            parked,
            effects: world.effects().into_iter().map(|effect| self.comparable(effect, &id)).collect(),
            two_payloads: faults.two_payloads(),
            journal,
        })
    }

    /// Whether what goes wrong leaves something in doubt, or undone, that has to be resolved by a person.
    fn may_park(&self, planned: &[(usize, Fault)], points: &[Point]) -> bool {
        let graph = self.definition.graph();
        let gives_up = |policy: &Policy, fault: Fault| {
            fault == Fault::NoAnswer || policy.retry.delay(1, Duration::ZERO, 1.0).is_none()
        };
        planned.iter().any(|&(at, fault)| match points.get(at) {
            Some(Point::Attempt(step)) => graph.find(step).is_some_and(|step| {
                let node = graph.node(step);
                let after_the_pivot = graph.pivot().is_some_and(|pivot| graph.comes_before(pivot, step));
                (after_the_pivot && fault == Fault::Refused)
                    || ((after_the_pivot || node.kind == Kind::Pivot) && gives_up(&node.forward, fault))
            }),
            Some(Point::Compensation(step)) => {
                graph.find(step).is_some_and(|step| gives_up(&graph.node(step).compensation, fault))
            }
            _ => false,
        })
    }

    /// An effect's name without what differs from run to run: the saga's id, and the generation that an operator's retry opens.
    fn comparable(&self, effect: String, id: &str) -> String {
        let mut effect = effect.replace(id, "<saga>");
        for node in self.definition.graph().nodes() {
            effect = effect.replace(&format!("<saga>/{}/1", node.name), &format!("<saga>/{}", node.name));
        }
        effect
    }

    async fn engine(&self, world: &World, store: &MemoryStore, faults: &Arc<Faults>) -> Result<Engine, String> {
        let definition = Definition::<S>::build().map_err(|error| error.to_string())?;
        let inner = Arc::new(Bound { definition, deps: Arc::new((self.deps)(world.clone())) });
        Engine::builder(FaultyStore { inner: store.clone(), faults: faults.clone() })
            .register_process::<S>(Arc::new(FaultyProcess { inner, faults: faults.clone() }))
            .start()
            .await
            .map_err(|error| error.to_string())
    }

    /// As a client does: submits under the same key each time. And as an operator does: resumes what is parked, once.
    async fn submit_and_wait(
        &self,
        sagas: Sagas<S>,
        faults: &Faults,
        parked: &mut bool,
    ) -> Result<(Outcome<S::Output>, String, String), String> {
        let started = sagas.submit("the same key", (self.input)()).await.map_err(|error| error.to_string())?;
        loop {
            let outcome = started.outcome().await.map_err(|error| error.to_string())?;
            if let Outcome::Parked(why) = &outcome {
                if *parked {
                    return Err(format!("it was parked twice: {why}"));
                }
                *parked = true;
                faults.end_the_silence();
                sagas.resume(started.id(), "the test kit").await.map_err(|error| error.to_string())?;
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            let journal = started.history().await.map_err(|error| error.to_string())?.to_string();
            return Ok((outcome, journal, started.id().to_string()));
        }
    }
}

impl Run {
    /// The promises that this run broke.
    fn broken(&self, plain: &Run, may_park: bool) -> impl Iterator<Item = String> {
        let mut broken: Vec<String> = self
            .two_payloads
            .iter()
            .map(|keys| format!("an idempotency key was used with two payloads: {keys}"))
            .collect();
        if self.completed && self.effects != plain.effects {
            broken
                .push(format!("it completed, but of the effects {:?} these stand: {:?}", plain.effects, self.effects));
        }
        if !self.completed && !self.effects.is_empty() {
            broken.push(format!("it was rolled back, but these effects stand: {:?}", self.effects));
        }
        if self.parked && !may_park {
            broken.push("it was parked, although nothing was refused for good".into());
        }
        broken.into_iter()
    }
}

fn told(planned: &[(usize, Fault)], points: &[Point]) -> String {
    let one = |(at, fault): &(usize, Fault)| match points.get(*at) {
        Some(point) => format!("{fault} {point}"),
        None => format!("{fault} point {at}"),
    };
    planned.iter().map(one).collect::<Vec<_>>().join(" and ")
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}
