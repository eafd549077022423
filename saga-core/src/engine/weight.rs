//! What is in memory, and what is under way to the store, is bounded by its weight as well as by its number.
//!
//! Sagas in memory weigh what was read of them, and the outputs and commands that they have made since. While they are as
//! many as [`Config::sagas`](super::Config::sagas), or weigh more than [`Config::memory`](super::Config::memory), none is
//! claimed and none begins here; those that are here go on, and become lighter only by leaving. No definition takes all
//! of it: its sagas come in while it has little of what there is, or [its share](super::shares) of what is free. What is
//! written passes a narrow gate if it is heavy, so that what is light is never behind more than a little.

use super::shares::{SHARE, may_take};
use crate::store::DefinitionId;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Such a part of the memory each definition may have, however full it is.
const LITTLE: usize = 64;
/// Such a part of what is free is claimed at a time: by more a definition could come far above its share.
const PART: usize = 2 * (SHARE + 1);

/// Room in memory, which definitions share.
#[derive(Debug)]
pub(crate) struct Memory {
    most: Load,
    definitions: HashMap<DefinitionId, usize>,
    used: Mutex<Used>,
    less: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct Load {
    sagas: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Used {
    all: Load,
    /// So many sagas more may be on their way, from claims.
    claimed: usize,
    /// By each definition, in their order.
    of: Vec<Load>,
}

impl Memory {
    pub(crate) fn new(sagas: usize, bytes: usize, definitions: &[DefinitionId]) -> Self {
        Self {
            most: Load { sagas, bytes },
            definitions: definitions.iter().cloned().zip(0..).collect(),
            used: Mutex::new(Used { all: Load::default(), claimed: 0, of: vec![Load::default(); definitions.len()] }),
            less: Notify::new(),
        }
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is free, and not kept for what is being claimed.
    const fn free(&self, used: &Used) -> Load {
        Load {
            sagas: self.most.sagas.saturating_sub(used.all.sagas + used.claimed),
            bytes: self.most.bytes.saturating_sub(used.all.bytes),
        }
    }

    /// What each definition may weigh in any case.
    const fn little(&self) -> usize {
        self.most.bytes.div_ceil(LITTLE)
    }

    fn is_open(&self, used: &Used, definition: usize) -> bool {
        let (free, has) = (self.free(used), used.of[definition]);
        may_take(has.sagas, free.sagas) && (has.bytes < self.little() || may_take(has.bytes, free.bytes))
    }

    /// A place for a saga that begins here, if there is one.
    pub(crate) fn place(self: &Arc<Self>, definition: &DefinitionId) -> Option<Weight> {
        let definition = *self.definitions.get(definition)?;
        let mut used = self.used();
        self.is_open(&used, definition).then(|| self.take(&mut used, definition))
    }

    /// A place for a saga that was claimed.
    pub(crate) fn place_for_claimed(self: &Arc<Self>, definition: &DefinitionId) -> Option<Weight> {
        let definition = *self.definitions.get(definition)?;
        Some(self.take(&mut self.used(), definition))
    }

    fn take(self: &Arc<Self>, used: &mut Used, definition: usize) -> Weight {
        used.all.sagas += 1;
        used.of[definition].sagas += 1;
        Weight { memory: self.clone(), definition, bytes: 0 }
    }

    /// Room for what is to be claimed, of those definitions that may have more. One claim takes a part of what is free, so
    /// that the next one sees what it brought.
    pub(crate) fn vacancy(self: &Arc<Self>, definitions: &[DefinitionId], most: usize) -> Vacancy {
        let mut used = self.used();
        let is_open = |definition: &&DefinitionId| {
            self.definitions.get(definition).is_some_and(|definition| self.is_open(&used, *definition))
        };
        let (open, closed): (Vec<_>, Vec<_>) = definitions.iter().partition(is_open);
        let free = self.free(&used);
        let sagas = if open.is_empty() { 0 } else { free.sagas.div_ceil(PART).min(most) };
        used.claimed += sagas;
        drop(used);
        Vacancy {
            open: open.into_iter().cloned().collect(),
            closed: closed.into_iter().cloned().collect(),
            sagas,
            bytes: (free.bytes / PART).max(self.little()),
            memory: self.clone(),
        }
    }

    /// Whether one of these definitions may have more.
    pub(crate) fn is_any_open(&self, definitions: &[DefinitionId]) -> bool {
        let used = self.used();
        let mut indices = definitions.iter().filter_map(|definition| self.definitions.get(definition));
        indices.any(|definition| self.is_open(&used, *definition))
    }

    /// Waits until one of these definitions may have more. For one caller at a time.
    pub(crate) async fn opens(&self, definitions: &[DefinitionId]) {
        while !self.is_any_open(definitions) {
            self.less.notified().await;
        }
    }
}

/// Room that is kept for a claim, until it is dropped.
#[derive(Debug)]
pub(crate) struct Vacancy {
    memory: Arc<Memory>,
    /// Of which definitions it is, and of which it is not.
    pub(crate) open: Vec<DefinitionId>,
    pub(crate) closed: Vec<DefinitionId>,
    pub(crate) sagas: usize,
    pub(crate) bytes: usize,
}

impl Drop for Vacancy {
    fn drop(&mut self) {
        self.memory.used().claimed -= self.sagas;
        self.memory.less.notify_one();
    }
}

/// One saga in memory, until it is dropped.
#[derive(Debug)]
pub(crate) struct Weight {
    memory: Arc<Memory>,
    definition: usize,
    bytes: usize,
}

impl Weight {
    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        let mut used = self.memory.used();
        used.all.bytes += bytes;
        used.of[self.definition].bytes += bytes;
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        let mut used = self.memory.used();
        let Used { all, of, .. } = &mut *used;
        for load in [all, &mut of[self.definition]] {
            load.sagas -= 1;
            load.bytes -= self.bytes;
        }
        drop(used);
        self.memory.less.notify_one();
    }
}

/// What has so many bytes, or more, is heavy.
pub(crate) const HEAVY: usize = 4 << 10;
/// So many bytes of heavy things are under way at once, or one thing alone.
pub(crate) const UNDER_WAY: usize = 4 << 20;
/// What one permit stands for.
const UNIT: usize = 1 << 10;

/// The turn of something heavy, for as long as it is kept.
pub(crate) type Turn = Option<OwnedSemaphorePermit>;

/// Lets so much pass at a time; what is light passes at once.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<Semaphore>);

impl Gate {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(UNDER_WAY / UNIT)))
    }

    /// Waits for its turn, which lasts until what is returned is dropped.
    pub(crate) async fn pass(&self, bytes: usize) -> Turn {
        if bytes < HEAVY {
            return None;
        }
        let permits = u32::try_from(bytes.min(UNDER_WAY) / UNIT).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        self.0.clone().acquire_many_owned(permits).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn definition(name: &str) -> DefinitionId {
        DefinitionId { name: name.into(), version: 1 }
    }

    #[tokio::test]
    async fn there_is_room_again_when_a_saga_has_gone() {
        let definitions = [definition("a")];
        let memory = Arc::new(Memory::new(100, 640, &definitions));
        let mut one = memory.place(&definitions[0]).unwrap();
        one.add(300);
        assert_eq!(memory.opens(&definitions).now_or_never(), Some(()));
        let mut other = memory.place(&definitions[0]).unwrap();
        other.add(2_000);
        assert_eq!(memory.opens(&definitions).now_or_never(), None, "what is here may weigh more");
        assert!(memory.place(&definitions[0]).is_none());
        drop(one);
        assert_eq!(memory.opens(&definitions).now_or_never(), None);
        drop(other);
        assert_eq!(memory.opens(&definitions).now_or_never(), Some(()));
    }

    #[test]
    fn a_definition_that_is_heavy_or_has_many_sagas_leaves_room_for_others() {
        let definitions = ["heavy", "light", "many"].map(definition);
        let [heavy, light, many] = &definitions;
        let memory = Arc::new(Memory::new(64, 6_400, &definitions));
        let mut first = memory.place(heavy).unwrap();
        first.add(10_000);
        let vacancy = memory.vacancy(&definitions, 500);
        assert_eq!((vacancy.open.as_slice(), vacancy.closed.as_slice()), (&definitions[1..], &definitions[..1]));
        assert_eq!((vacancy.sagas, vacancy.bytes), (8, 100));
        drop(vacancy);
        let taken: Vec<_> = std::iter::from_fn(|| memory.place(many)).collect();
        assert_eq!(taken.len(), 48);
        assert!(memory.place(light).is_some());
        assert_eq!(memory.vacancy(&definitions, 500).open, std::slice::from_ref(light));
        drop(taken);
        assert!(memory.place(many).is_some());
    }

    #[tokio::test]
    async fn what_is_light_passes_what_is_heavy() {
        let gate = Gate::new();
        let whole = gate.pass(100 * UNDER_WAY).await;
        assert!(whole.is_some());
        assert!(gate.pass(HEAVY).now_or_never().is_none(), "nothing heavy beside it");
        assert!(gate.pass(HEAVY - 1).now_or_never().is_some());
        drop(whole);
        assert!(gate.pass(HEAVY).now_or_never().is_some());
    }
}
