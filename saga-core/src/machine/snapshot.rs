//! States as bytes, to be read in the place of the entries that they are the fold of.

use super::State;
use crate::definition::Graph;
use serde::{Deserialize, Serialize};

/// The form in which this release writes states. It grows with every change of it: what has another form is not read,
/// and the journal is read instead.
const FORM: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Kept<S> {
    form: u32,
    state: S,
}

#[derive(Deserialize)]
struct OfForm {
    form: u32,
}

impl State {
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Kept { form: FORM, state: self })
    }

    /// `None` for what another release wrote, and for what is damaged.
    pub(crate) fn from_bytes(graph: &Graph, bytes: &[u8]) -> Option<Self> {
        let OfForm { form } = serde_json::from_slice(bytes).ok()?;
        if form != FORM {
            return None;
        }
        let Kept { state, .. } = serde_json::from_slice::<Kept<Self>>(bytes).ok()?;
        (state.steps.len() == graph.nodes().len()).then_some(state)
    }
}

/// A payload that may be missing. `null` is a payload, so that it cannot stand for none: a list of one, or of none.
pub(super) mod maybe {
    use crate::Encoded;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(payload: &Option<Encoded>, to: S) -> Result<S::Ok, S::Error> {
        payload.as_slice().serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Encoded>, D::Error> {
        Ok(Vec::deserialize(from)?.pop())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Encoded,
        definition::{Kind, Node},
        machine::{Cause, Course, Step, Tries},
    };

    /// One of everything.
    fn everything() -> (Graph, State) {
        let tries = Tries {
            made: 7,
            since: Some(1),
            not_before: 2,
            in_doubt: true,
            stuck: Some("gave up".into()),
            generation: 3,
            command: Some(Encoded::null()),
            awaiting: Some(4),
        };
        let undoing = |output| Step::Undoing { output, tries: Tries::default() };
        let steps = vec![
            Step::Waiting,
            Step::Enabled(tries),
            Step::Succeeded(Encoded::null()),
            Step::Void,
            undoing(None),
            undoing(Some(Encoded::null())),
            Step::Undone,
            Step::Skipped,
        ];
        let course = Course::Backward(Cause::Failed { step: 3, error: "no".into() });
        let state = State { steps, course, parked: Some("halt".into()), lapses: 5, counted: vec![(1, 2), (3, 5)] };
        let nodes = (0..8).map(|n| Node::new(n.to_string(), Kind::Compensatable, &[])).collect();
        (Graph::new("everything", nodes).unwrap(), state)
    }

    /// A text that changes is a new [`FORM`]: this release would read what an earlier one meant otherwise.
    const WRITTEN: &str = concat!(
        r#"{"form":1,"state":{"steps":["waiting",{"enabled":{"made":7,"since":1,"not_before":2,"in_doubt":true,"#,
        r#""stuck":"gave up","generation":3,"command":[null],"awaiting":4}},{"succeeded":null},"void","#,
        r#"{"undoing":{"output":[],"tries":{"made":0,"since":null,"not_before":0,"in_doubt":false,"stuck":null,"#,
        r#""generation":0,"command":[],"awaiting":null}}},"#,
        r#"{"undoing":{"output":[null],"tries":{"made":0,"since":null,"not_before":0,"in_doubt":false,"stuck":null,"#,
        r#""generation":0,"command":[],"awaiting":null}}},"undone","skipped"],"#,
        r#""course":{"backward":{"failed":{"step":3,"error":"no"}}},"parked":"halt","lapses":5,"#,
        r#""counted":[[1,2],[3,5]]}}"#
    );

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let (graph, state) = everything();
        assert_eq!(String::from_utf8(state.to_bytes().unwrap()).unwrap(), WRITTEN);
        assert_eq!(State::from_bytes(&graph, WRITTEN.as_bytes()), Some(state));
    }

    #[test]
    fn what_has_another_form_or_is_damaged_is_not_read() {
        let (graph, _) = everything();
        let newer = WRITTEN.replace(r#""form":1"#, r#""form":2"#);
        for other in [newer.as_str(), &WRITTEN[..200], "null", ""] {
            assert_eq!(State::from_bytes(&graph, other.as_bytes()), None, "{other}");
        }
        let other = Graph::new("other", vec![Node::new("one", Kind::Pivot, &[])]).unwrap();
        assert_eq!(State::from_bytes(&other, WRITTEN.as_bytes()), None);
    }
}
