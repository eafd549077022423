//! How events become the bytes of a journal's entry: a JSON array, so that people and other languages can read it.

use crate::machine::Event;

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
