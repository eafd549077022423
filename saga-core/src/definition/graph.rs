//! The untyped shape of a saga: what the state machine works on.

use crate::Retry;
use std::{borrow::Cow, fmt, time::Duration};

/// What a step may do to the world, and how it can be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Reads or computes; nothing to undo.
    EffectFree,
    /// Changes the world and has an undo.
    Compensatable,
    /// The point of no return: what lies before it is undone if it fails, what lies after it goes forward only.
    Pivot,
    /// After the pivot: tried until it succeeds, never undone.
    Retriable,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EffectFree => "effect-free",
            Self::Compensatable => "compensatable",
            Self::Pivot => "pivot",
            Self::Retriable => "retriable",
        })
    }
}

/// How often, and how long each time, something is tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// When it is tried again.
    pub retry: Retry,
    /// How long one attempt may take; then its outcome is unknown.
    pub timeout: Duration,
}

impl Policy {
    /// Thirty seconds an attempt, and so many attempts that whoever does the work may be away for minutes, however soon
    /// each of them fails. The guide has what they come to in time.
    pub(crate) const fn of_step(kind: Kind) -> Self {
        match kind {
            Kind::Retriable => Self::persistent(),
            // 47 pauses of 5 to 10 minutes in all, and none so long that the saga sleeps on for long when its
            // participant is back. Bounded by attempts, not by time: an outage of the engine itself is no reason to
            // give up.
            Kind::EffectFree | Kind::Compensatable | Kind::Pivot => Self {
                retry: Retry::exponential(Duration::from_millis(200)).longest(Duration::from_secs(15)).attempts(48),
                timeout: Duration::from_secs(30),
            },
        }
    }

    /// For what can only go forward, retriable steps and compensations: 24 pauses of 8 to 16 minutes in all.
    pub(crate) const fn persistent() -> Self {
        Self { retry: Retry::exponential(Duration::from_millis(200)).attempts(25), timeout: Duration::from_secs(30) }
    }
}

/// The place of a step in its graph.
pub type StepIndex = usize;

/// One step of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Unique in its saga; part of the idempotency key.
    pub name: Cow<'static, str>,
    /// What the step may do to the world.
    pub kind: Kind,
    /// The steps that must have succeeded before this one starts.
    pub after: Vec<StepIndex>,
    /// The steps whose outputs it reads, in the order of its arguments.
    pub reads: Vec<StepIndex>,
    /// Whether another step, or the saga's end, needs its output.
    pub output_is_read: bool,
    /// How the step is tried.
    pub forward: Policy,
    /// How its compensation is tried.
    pub compensation: Policy,
    /// The type of the command that does its work at a participant; `None` when it runs in process.
    pub command: Option<Cow<'static, str>>,
    /// The type of the command that undoes it there.
    pub undo_command: Option<Cow<'static, str>>,
}

impl Node {
    /// A step that reads nothing and is tried as its kind is by default.
    pub fn new(name: impl Into<Cow<'static, str>>, kind: Kind, after: &[StepIndex]) -> Self {
        Self {
            name: name.into(),
            kind,
            after: after.to_vec(),
            reads: vec![],
            output_is_read: false,
            forward: Policy::of_step(kind),
            compensation: Policy::persistent(),
            command: None,
            undo_command: None,
        }
    }
}

/// A saga's steps in an order in which each one stands after those it depends on, checked against the rules.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    nodes: Vec<Node>,
    pivot: Option<StepIndex>,
}

/// Why a definition was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says what it means and what to do")]
pub enum BuildError {
    #[error("saga `{saga}` has no steps: `define` must declare at least one")]
    Empty { saga: String },
    #[error("saga `{saga}`: step number {index} has an empty name")]
    Unnamed { saga: String, index: usize },
    #[error(
        "saga `{saga}`: two steps are named `{step}`; a step's name is part of its idempotency key and must be unique"
    )]
    DuplicateName { saga: String, step: String },
    #[error("saga `{saga}`: step `{step}` depends on a step that this saga does not have")]
    UnknownDependency { saga: String, step: String },
    #[error("saga `{saga}`: step `{step}` depends on `{on}`, which is declared later or depends on it: a cycle")]
    Cycle { saga: String, step: String, on: String },
    #[error(
        "saga `{saga}`: `{first}` and `{second}` are both pivots; there is one point of no return, so one of them must be compensatable or retriable"
    )]
    TwoPivots { saga: String, first: String, second: String },
    #[error(
        "saga `{saga}`: compensatable step `{step}` has no compensation: finish its line with `.compensate(..)`, or after a command with `.compensate_command(..)`"
    )]
    NoCompensation { saga: String, step: String },
    #[error(
        "saga `{saga}`: step `{step}` sends its command to `{topic}` and its undo to `{undo_topic}`: both must go to the participant whose barrier knows what was done"
    )]
    UndoneElsewhere { saga: String, step: String, topic: String, undo_topic: String },
    #[error(
        "saga `{saga}`: compensatable step `{step}` does not lie before the pivot `{pivot}`: after the point of no return nothing is undone, and nothing effectful runs beside it; make it retriable, or move it before the pivot"
    )]
    CompensatableNotBeforePivot { saga: String, step: String, pivot: String },
    #[error(
        "saga `{saga}`: retriable step `{step}` does not lie after the pivot `{pivot}`: it could never be undone; make it compensatable, or move it after the pivot"
    )]
    RetriableNotAfterPivot { saga: String, step: String, pivot: String },
    #[error(
        "saga `{saga}`: retriable step `{step}` has no pivot before it: say which step is the point of no return with `.pivot(name)`"
    )]
    RetriableWithoutPivot { saga: String, step: String },
}

impl Graph {
    /// Checks the rules and returns the graph; `saga` is for the error's text.
    ///
    /// # Errors
    /// A [`BuildError`] that names the first step that breaks a rule, and the rule.
    pub fn new(saga: &str, nodes: Vec<Node>) -> Result<Self, BuildError> {
        let saga = || saga.to_owned();
        let name = |i: StepIndex| nodes[i].name.to_string();
        if nodes.is_empty() {
            return Err(BuildError::Empty { saga: saga() });
        }
        for (i, node) in nodes.iter().enumerate() {
            if node.name.is_empty() {
                return Err(BuildError::Unnamed { saga: saga(), index: i });
            }
            if nodes[..i].iter().any(|earlier| earlier.name == node.name) {
                return Err(BuildError::DuplicateName { saga: saga(), step: name(i) });
            }
            if node.after.iter().any(|&on| on >= nodes.len()) {
                return Err(BuildError::UnknownDependency { saga: saga(), step: name(i) });
            }
            if let Some(&on) = node.after.iter().find(|&&on| on >= i) {
                return Err(BuildError::Cycle { saga: saga(), step: name(i), on: name(on) });
            }
        }
        let mut pivots = (0..nodes.len()).filter(|&i| nodes[i].kind == Kind::Pivot);
        let (pivot, second) = (pivots.next(), pivots.next());
        if let (Some(first), Some(second)) = (pivot, second) {
            return Err(BuildError::TwoPivots { saga: saga(), first: name(first), second: name(second) });
        }
        let graph = Self { nodes, pivot };
        graph.check_sides_of_the_pivot(&saga())?;
        Ok(graph)
    }

    fn check_sides_of_the_pivot(&self, saga: &str) -> Result<(), BuildError> {
        let saga = || saga.to_owned();
        for (i, node) in self.nodes.iter().enumerate() {
            let step = || node.name.to_string();
            match (node.kind, self.pivot) {
                (Kind::Retriable, None) => {
                    return Err(BuildError::RetriableWithoutPivot { saga: saga(), step: step() });
                }
                (Kind::Retriable, Some(pivot)) if !self.comes_before(pivot, i) => {
                    let pivot = self.nodes[pivot].name.to_string();
                    return Err(BuildError::RetriableNotAfterPivot { saga: saga(), step: step(), pivot });
                }
                (Kind::Compensatable, Some(pivot)) if !self.comes_before(i, pivot) => {
                    let pivot = self.nodes[pivot].name.to_string();
                    return Err(BuildError::CompensatableNotBeforePivot { saga: saga(), step: step(), pivot });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether `later` depends on `earlier`, directly or through others.
    pub fn comes_before(&self, earlier: StepIndex, later: StepIndex) -> bool {
        let mut leads_to_later = vec![false; later + 1];
        leads_to_later[later] = true;
        for step in (earlier + 1..=later).rev() {
            if leads_to_later[step] {
                for &on in &self.nodes[step].after {
                    leads_to_later[on] = true;
                }
            }
        }
        earlier < later && leads_to_later[earlier]
    }

    /// The steps, each after those it depends on.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The step at a place.
    pub fn node(&self, step: StepIndex) -> &Node {
        &self.nodes[step]
    }

    /// The place of the step of that name.
    pub fn find(&self, name: &str) -> Option<StepIndex> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// The point of no return, if the saga has one.
    pub const fn pivot(&self) -> Option<StepIndex> {
        self.pivot
    }

    /// The steps that directly depend on `step`.
    pub fn dependents(&self, step: StepIndex) -> impl Iterator<Item = StepIndex> {
        (step + 1..self.nodes.len()).filter(move |&later| self.nodes[later].after.contains(&step))
    }

    /// What makes two graphs of one version the same: names, kinds, dependencies by name and types of commands, one step a line.
    ///
    /// It is stored when a version is first registered, and a worker that comes with another one is refused.
    /// It is text and no hash, so that the refusal can show both. Policies are left out: they may be tuned while
    /// sagas run.
    ///
    /// ```text
    /// reserve-stock: compensatable, sends inventory.reserve.v1, undone by inventory.release.v1
    /// charge: pivot after reserve-stock
    /// ```
    pub fn fingerprint(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            let mut after: Vec<&str> = node.after.iter().map(|&on| &*self.nodes[on].name).collect();
            after.sort_unstable();
            text += &format!("{}: {}", node.name, node.kind);
            if !after.is_empty() {
                text += &format!(" after {}", after.join(", "));
            }
            if let Some(command) = &node.command {
                text += &format!(", sends {command}");
            }
            if let Some(command) = &node.undo_command {
                text += &format!(", undone by {command}");
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &'static str, kind: Kind, after: &[StepIndex]) -> Node {
        Node::new(name, kind, after)
    }

    fn refused(nodes: Vec<Node>) -> String {
        Graph::new("order", nodes).unwrap_err().to_string()
    }

    #[test]
    fn a_good_graph_is_fingerprinted_by_names_kinds_and_dependencies() {
        let graph = Graph::new(
            "order",
            vec![
                node("reserve", Kind::Compensatable, &[]),
                node("score", Kind::EffectFree, &[]),
                node("charge", Kind::Pivot, &[1, 0]),
                node("deliver", Kind::Retriable, &[2]),
            ],
        )
        .unwrap();
        assert_eq!(
            graph.fingerprint(),
            "reserve: compensatable\nscore: effect-free\ncharge: pivot after reserve, score\ndeliver: retriable after charge\n"
        );
    }

    #[test]
    fn each_refusal_names_the_step_and_the_rule() {
        use Kind::*;
        assert!(refused(vec![]).contains("no steps"));
        assert!(refused(vec![node("", EffectFree, &[])]).contains("empty name"));
        assert!(refused(vec![node("a", EffectFree, &[]), node("a", EffectFree, &[])]).contains("named `a`"));
        assert!(
            refused(vec![node("a", EffectFree, &[7])]).contains("`a` depends on a step that this saga does not have")
        );
        assert!(refused(vec![node("a", EffectFree, &[1]), node("b", EffectFree, &[0])]).contains("a cycle"));
        assert!(refused(vec![node("a", EffectFree, &[0])]).contains("a cycle"));
        assert!(refused(vec![node("a", Pivot, &[]), node("b", Pivot, &[0])]).contains("`a` and `b` are both pivots"));
        assert!(refused(vec![node("a", Retriable, &[])]).contains("no pivot before it"));
        assert!(
            refused(vec![node("a", Retriable, &[]), node("b", Pivot, &[0])])
                .contains("does not lie after the pivot `b`")
        );
        assert!(
            refused(vec![node("a", Pivot, &[]), node("b", Compensatable, &[0])])
                .contains("does not lie before the pivot `a`")
        );
        assert!(
            refused(vec![node("a", Pivot, &[]), node("b", Compensatable, &[])])
                .contains("nothing effectful runs beside it")
        );
    }

    /// All pauses of a policy, with the least jitter and with the most.
    fn pauses(retry: Retry) -> [Duration; 2] {
        [0.0, 1.0].map(|jitter| (1..).map_while(|made| retry.delay(made, Duration::ZERO, jitter)).sum())
    }

    #[test]
    fn the_default_pauses_come_to_what_the_guide_says() {
        let ms = Duration::from_millis;
        // 0.2 s + 0.4 s + .. + 12.8 s = 25.4 s in 7 pauses, and 40 of 15 s; each at least half of that.
        let five_to_ten_minutes = [ms(312_700), ms(625_400)];
        // 0.2 s + 0.4 s + .. + 51.2 s = 102.2 s in 9 pauses, and 15 of 60 s.
        let eight_to_sixteen = [ms(501_100), ms(1_002_200)];
        for kind in [Kind::EffectFree, Kind::Compensatable, Kind::Pivot] {
            assert_eq!(pauses(Policy::of_step(kind).retry), five_to_ten_minutes, "{kind}");
        }
        assert_eq!(pauses(Policy::of_step(Kind::Retriable).retry), eight_to_sixteen);
        assert_eq!(pauses(node("a", Kind::Compensatable, &[]).compensation.retry), eight_to_sixteen);
        // What is stated is as long as it is stated.
        assert_eq!(pauses(Retry::exponential(ms(200))), [ms(1500), ms(3000)]);
        assert_eq!(pauses(Retry::fixed(ms(1000))), [ms(2000), ms(4000)]);
    }

    #[test]
    fn an_effect_free_step_may_run_beside_the_pivot() {
        assert!(Graph::new("order", vec![node("a", Kind::Pivot, &[]), node("b", Kind::EffectFree, &[])]).is_ok());
    }
}
