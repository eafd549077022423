use crate::{OrClass, StepError};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    sync::{Arc, Mutex, PoisonError},
};

/// The outside world, for tests: a ledger of effects that behaves like a participant with a barrier.
///
/// Doing the same effect again changes nothing; undoing what was never done leaves a note, and the effect that comes late is
/// then refused; undoing twice is fine. Name each effect by the key under which it is done. Clones share the ledger.
#[derive(Clone, Debug, Default)]
pub struct World {
    ledger: Arc<Mutex<Ledger>>,
}

#[derive(Debug, Default)]
struct Ledger {
    done: BTreeMap<String, u32>,
    undone: BTreeSet<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("`{0}` was undone before it was done")]
struct Late(String);

impl World {
    /// Does an effect.
    ///
    /// # Errors
    /// A business no, when the effect was undone before.
    pub fn apply(&self, effect: impl Display) -> Result<(), StepError> {
        let effect = effect.to_string();
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        if ledger.undone.contains(&effect) {
            return Err(Late(effect)).or_fail();
        }
        *ledger.done.entry(effect).or_default() += 1;
        Ok(())
    }

    /// Undoes an effect, and makes sure that it will not be done later.
    ///
    /// # Errors
    /// None so far; it returns a result so that a compensation can end with it.
    pub fn revert(&self, effect: impl Display) -> Result<(), StepError> {
        let effect = effect.to_string();
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.done.remove(&effect);
        ledger.undone.insert(effect);
        Ok(())
    }

    /// The effects that stand, in alphabetical order.
    pub fn effects(&self) -> Vec<String> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).done.keys().cloned().collect()
    }

    /// Whether an effect stands.
    pub fn has(&self, effect: impl Display) -> bool {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).done.contains_key(&effect.to_string())
    }
}
