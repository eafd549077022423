//! The shortest ways to what was once wrong. That nothing else is, is for `tests/exhaustive.rs` to say.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::{Clock, Course, Event, Input, Outcome, State, Status, Step};
use crate::{
    Encoded, Retry,
    definition::{Graph, Kind, Node, StepIndex},
};
use std::time::Duration;

fn graph(nodes: &[(&'static str, Kind, &[StepIndex])]) -> Graph {
    let node = |&(name, kind, after): &(&'static str, Kind, &[StepIndex])| {
        let mut node = Node::new(name, kind, after);
        node.forward.retry = Retry::fixed(Duration::ZERO).attempts(2);
        node
    };
    Graph::new("order", nodes.iter().map(node).collect()).unwrap()
}

/// A saga after these inputs.
fn after(graph: &Graph, inputs: impl IntoIterator<Item = Input>) -> State {
    let mut state = State::new(graph);
    for input in inputs {
        for event in state.decide(graph, input, Clock::default()) {
            state.apply(graph, &event);
        }
    }
    state
}

fn success(step: StepIndex) -> Input {
    Input::Attempt { step, outcome: Outcome::Success(Encoded::of(&step).unwrap()) }
}

fn fail(step: StepIndex) -> Input {
    Input::Attempt { step, outcome: Outcome::Fail("no".into()) }
}

fn unknown(step: StepIndex) -> Input {
    Input::Attempt { step, outcome: Outcome::Unknown("no answer".into()) }
}

fn cancel() -> Input {
    Input::Cancel { reason: "changed my mind".into() }
}

fn resume() -> Input {
    Input::Resume { by: "ops".into() }
}

fn skip(step: &str) -> Input {
    Input::Skip { step: step.into(), reason: "done by hand".into() }
}

#[test]
fn all_that_failed_beside_a_pivot_that_succeeds_waits_for_an_operator() {
    let graph =
        graph(&[("charge", Kind::Pivot, &[]), ("score", Kind::EffectFree, &[]), ("rate", Kind::EffectFree, &[])]);
    let ways = [vec![fail(1), fail(2), success(0)], vec![cancel(), fail(1), fail(2), success(0)]];
    for way in ways {
        let parked = after(&graph, way.clone());
        assert_eq!(parked.status(), Status::Parked);
        let resumed = after(&graph, way.into_iter().chain([resume()]));
        assert_eq!(resumed.agenda(&graph).run, [1, 2], "neither is lost: the saga could never complete");
    }
}

#[test]
fn a_pivot_that_is_skipped_while_the_saga_halts_lets_it_go_on() {
    let graph = graph(&[("charge", Kind::Pivot, &[]), ("deliver", Kind::Retriable, &[0])]);
    let state = after(&graph, [cancel(), unknown(0), unknown(0), skip("charge")]);
    assert_eq!(*state.course(), Course::Forward);
    assert_eq!(state.agenda(&graph).run, [1]);
}

#[test]
fn an_outcome_that_the_store_refused_leaves_its_step_in_doubt() {
    let graph = graph(&[("reserve", Kind::Compensatable, &[])]);
    // `reserve` succeeded, and that could not be written.
    let refused = Input::Unwritable { reason: "too large".into() };
    let state = after(&graph, [refused, cancel(), resume(), Input::NotRunning { step: 0 }]);
    assert_eq!(state.agenda(&graph).compensate, [0], "what may have happened is undone");
}

#[test]
fn a_no_after_a_timeout_is_certain_where_nothing_can_be_undone_and_a_retry_has_a_new_key() {
    let graph = graph(&[("charge", Kind::Pivot, &[]), ("deliver", Kind::Retriable, &[0])]);
    let lost = Input::Lapsed { total: 1, survived: vec![] };
    // The participant remembers its no under the old key: with it, every retry would hear the same.
    let state = after(&graph, [success(0), unknown(1), fail(1), lost, resume()]);
    assert_eq!(state.tries(1).unwrap().generation, 1);
}

#[test]
fn a_no_after_a_timeout_is_not_certain_where_something_can_be_undone() {
    let graph = graph(&[("reserve", Kind::Compensatable, &[])]);
    assert_eq!(after(&graph, [unknown(0), fail(0)]).agenda(&graph).compensate, [0]);
}

#[test]
fn a_saga_that_ends_with_the_loss_of_its_worker_is_not_parked() {
    let graph = graph(&[("score", Kind::EffectFree, &[])]);
    assert_eq!(
        after(&graph, [Input::Lapsed { total: 3, survived: vec![] }, Input::Lapsed { total: 6, survived: vec![] }])
            .status(),
        Status::Parked
    );
    let state =
        after(&graph, [Input::Lapsed { total: 1, survived: vec![] }, Input::Lapsed { total: 4, survived: vec![] }]);
    assert_eq!(state.status(), Status::RolledBack, "nothing of it can kill another worker");
}

#[test]
fn an_event_that_does_not_fit_changes_nothing() {
    let graph = graph(&[("reserve", Kind::Compensatable, &[]), ("bill", Kind::Compensatable, &[0])]);
    let half_way = after(&graph, [success(0)]);
    let completed = after(&graph, [success(0), success(1)]);
    let failed = Event::Failed { step: 0, in_doubt: true, error: "late".into() };
    let skipped = Event::Skipped { step: 0, reason: "late".into() };
    let cancelled = Event::CancelRequested { reason: "late".into() };
    let parked = Event::Parked { reason: "late".into() };
    let unfit = [(&half_way, vec![&failed, &skipped]), (&completed, vec![&failed, &skipped, &cancelled, &parked])];
    for (state, events) in unfit {
        for event in events {
            let mut unchanged = state.clone();
            unchanged.apply(&graph, event);
            assert_eq!(&unchanged, state, "{event:?}");
        }
    }
    assert!(matches!(completed.steps()[0], Step::Succeeded(_)));
}
