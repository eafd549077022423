//! Idempotency keys, read back.

use saga_core::message::{CommandId, Op};

/// Whose key it is: `<saga>/<step>`, `/<generation>` behind if that is not 0, and `/undo` behind that in an undo, which may leave it out.
pub(super) fn command_id(key: &str, op: Op) -> Result<CommandId, String> {
    parsed(key, op).ok_or_else(|| {
        let wanted = "<saga>/<step>, or <saga>/<step>/<generation>, where the step's name has no `/`";
        format!("`{key}` is not the idempotency key of a step to {op}: that is {wanted}")
    })
}

fn parsed(key: &str, op: Op) -> Option<CommandId> {
    let mut parts: Vec<&str> = key.split('/').collect();
    // Behind saga and step only, so that a step may be called `undo`.
    if op == Op::Undo && parts.len() > 2 && parts.last() == Some(&"undo") {
        parts.pop();
    }
    let (saga, step, generation) = match parts[..] {
        [saga, step] => (saga, step, 0),
        [saga, step, generation] => (saga, step, generation.parse().ok()?),
        _ => return None,
    };
    let id = CommandId { saga: saga.parse().ok()?, step: step.into(), generation };
    (!id.step.is_empty()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use saga_core::SagaId;

    #[test]
    fn every_key_that_a_step_or_a_message_has_is_read_back() {
        for step in ["reserve", "undo", "7"] {
            for generation in [0, 1, 12] {
                let id = CommandId { saga: SagaId::generate(), step: step.into(), generation };
                assert_eq!(command_id(&id.key(), Op::Do), Ok(id.clone()));
                assert_eq!(command_id(&id.key(), Op::Undo), Ok(id.clone()));
                assert_eq!(command_id(&id.message_id(Op::Undo), Op::Undo), Ok(id));
            }
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let saga = SagaId::generate();
        let wrong = ["", "/", "reserve"].map(String::from);
        let wrong = wrong.into_iter().chain(
            ["", "/", "/reserve/", "/reserve/one", "/reserve/-1", "/reserve/1/2", "/reserve/1/undo/undo", "//1"]
                .map(|rest| format!("{saga}{rest}")),
        );
        for key in wrong {
            assert!(command_id(&key, Op::Do).is_err(), "{key}");
            assert!(command_id(&key, Op::Undo).is_err(), "{key}");
        }
        assert!(command_id(&format!("{saga}/reserve/undo"), Op::Do).unwrap_err().contains("of a step to do"));
    }
}
