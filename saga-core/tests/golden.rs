//! Journals as earlier releases wrote them are folded into the same states for ever: a saga goes on where it was,
//! whichever release goes on with it.
//!
//! Each file of `golden/` has a graph, a journal, and what release 0.1 made of it. They were written by that release,
//! and are not to be written again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use saga_core::{
    definition::{Graph, Kind, Node, StepIndex},
    machine::{Course, Event, State, Step, Tries},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, path::Path};

#[derive(Deserialize)]
struct Golden {
    /// Name, kind, and what it comes after.
    steps: Vec<(String, String, Vec<StepIndex>)>,
    /// One entry for each append.
    journal: Vec<Vec<Value>>,
    /// After each entry, the first before any.
    states: Vec<Value>,
}

fn graph(steps: &[(String, String, Vec<StepIndex>)]) -> Graph {
    let node = |(name, kind, after): &(String, String, Vec<StepIndex>)| {
        let kind = match kind.as_str() {
            "compensatable" => Kind::Compensatable,
            "pivot" => Kind::Pivot,
            "retriable" => Kind::Retriable,
            "effect_free" => Kind::EffectFree,
            other => panic!("no kind: {other}"),
        };
        Node::new(name.clone(), kind, after)
    };
    Graph::new("golden", steps.iter().map(node).collect()).unwrap()
}

fn tries(tries: &Tries) -> Value {
    let Tries { made, since, not_before, in_doubt, stuck, generation, command, awaiting, .. } = tries;
    let command = command.as_ref().map(|command| command.as_str().to_owned());
    json!({
        "made": made, "since": since, "not_before": not_before, "in_doubt": in_doubt, "stuck": stuck, "generation": generation, "command": command,
        "awaiting": awaiting
    })
}

fn step(step: &Step) -> Value {
    match step {
        Step::Waiting => json!("waiting"),
        Step::Enabled(of) => json!({ "enabled": tries(of) }),
        Step::Succeeded(output) => json!({ "succeeded": output.as_str() }),
        Step::Void => json!("void"),
        Step::Undoing { output, tries: of } => {
            json!({ "undoing": tries(of), "output": output.as_ref().map(|output| output.as_str().to_owned()) })
        }
        Step::Undone => json!("undone"),
        Step::Skipped => json!("skipped"),
    }
}

/// All that a state says, in words that do not change with its type.
fn told(graph: &Graph, state: &State) -> Value {
    let course = match state.course() {
        Course::Forward => "forward".into(),
        Course::Halting(cause) => format!("halting: {cause:?}"),
        Course::Backward(cause) => format!("backward: {cause:?}"),
    };
    let agenda = state.agenda(graph);
    json!({
        "status": state.status().to_string(),
        "course": course,
        "parked": state.parked_at().map(|(step, reason)| json!([step, reason])),
        "lapses": [state.lapses(), state.lapses_without_progress()],
        "steps": state.steps().iter().map(step).collect::<Vec<_>>(),
        "run": agenda.run, "settle": agenda.settle, "compensate": agenda.compensate,
    })
}

fn folded(graph: &Graph, journal: &[Vec<Value>]) -> Vec<Value> {
    let mut state = State::new(graph);
    let mut states = vec![told(graph, &state)];
    for entry in journal {
        for event in entry {
            let event: Event = serde_json::from_value(event.clone()).unwrap_or_else(|error| panic!("{event}: {error}"));
            state.apply(graph, &event);
        }
        states.push(told(graph, &state));
    }
    states
}

fn all() -> Vec<(String, Golden)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let files = files.filter(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.map(|file| (file.display().to_string(), serde_json::from_slice(&fs::read(&file).unwrap()).unwrap())).collect()
}

#[test]
fn journals_of_release_0_1_fold_to_what_they_folded_to() {
    for (name, golden) in all() {
        let graph = graph(&golden.steps);
        for (n, (now, then)) in folded(&graph, &golden.journal).into_iter().zip(&golden.states).enumerate() {
            assert_eq!(&now, then, "{name} after {n} entries");
        }
        assert_eq!(golden.states.len(), golden.journal.len() + 1, "{name}");
    }
}

#[test]
fn every_kind_of_event_of_release_0_1_is_among_them() {
    let kinds: BTreeSet<String> = all()
        .iter()
        .flat_map(|(_, golden)| golden.journal.iter().flatten())
        .map(|event| event.as_object().unwrap().keys().next().unwrap().clone())
        .collect();
    let known = [
        "awaiting",
        "cancel_requested",
        "commanded",
        "compensated",
        "compensation_retrying",
        "compensation_stuck",
        "failed",
        "lapsed",
        "parked",
        "refused",
        "resumed",
        "retrying",
        "skipped",
        "stuck",
        "succeeded",
    ];
    assert_eq!(kinds.iter().map(String::as_str).collect::<Vec<_>>(), known);
}

#[test]
fn what_release_0_1_reads_is_written_as_it_was() {
    for (name, golden) in all() {
        for event in golden.journal.into_iter().flatten() {
            let read: Event = serde_json::from_value(event.clone()).unwrap();
            assert_eq!(serde_json::to_value(&read).unwrap(), event, "{name}");
        }
    }
}
