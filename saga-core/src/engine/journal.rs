//! How events become the bytes of a journal's entry: a JSON array, so that people and other languages can read it. And
//! how a saga is read again.

use crate::{
    definition::Graph,
    machine::{Event, State},
    store::Record,
};

pub(crate) fn encode(events: &[Event]) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(events)
}

pub(crate) fn decode(entries: &[Vec<u8>]) -> Result<Vec<Event>, serde_json::Error> {
    let mut events = vec![];
    for entry in entries {
        events.extend(serde_json::from_slice::<Vec<Event>>(entry)?);
    }
    Ok(events)
}

/// Folds entries into a state.
pub(crate) fn replay(graph: &Graph, mut state: State, entries: &[Vec<u8>]) -> Result<State, serde_json::Error> {
    for event in decode(entries)? {
        state.apply(graph, &event);
    }
    Ok(state)
}

/// What the entries of a record go on from; `None` when that is a snapshot of another release, whose form is not known
/// here.
pub(crate) fn beginning(graph: &Graph, record: &Record) -> Option<State> {
    match &record.snapshot {
        Some(snapshot) => State::from_bytes(graph, &snapshot.state),
        None => Some(State::new(graph)),
    }
}
