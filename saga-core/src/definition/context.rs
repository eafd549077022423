use crate::SagaId;
use std::{fmt, ops::Deref, sync::Arc};

/// What an attempt knows about itself.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) saga: SagaId,
    pub(crate) step: String,
    pub(crate) forward_key: String,
    pub(crate) attempt: u32,
    /// Why the saga turned back.
    pub(crate) cause: String,
}

impl Call {
    /// `generation` grows when an operator retries what had failed for certain, see the crate's docs on idempotency keys.
    pub(crate) fn new(saga: SagaId, step: &str, generation: u32, attempt: u32) -> Self {
        let forward_key = match generation {
            0 => format!("{saga}/{step}"),
            _ => format!("{saga}/{step}/{generation}"),
        };
        Self { saga, step: step.into(), forward_key, attempt, cause: String::new() }
    }
}

/// What a step is given besides its arguments: its identity, and (by `Deref`) the saga's dependencies.
pub struct Cx<D> {
    deps: Arc<D>,
    call: Arc<Call>,
}

impl<D> Cx<D> {
    pub(crate) fn new(deps: Arc<D>, call: Call) -> Self {
        Self { deps, call: Arc::new(call) }
    }

    /// A context to call one step alone, in a test.
    pub fn test(idempotency_key: &str, deps: impl Into<Arc<D>>) -> Self {
        let call = Call { forward_key: idempotency_key.into(), ..Call::new(SagaId::generate(), "test", 0, 1) };
        Self::new(deps.into(), call)
    }

    /// The key to hand to whoever does the work: the same on every retry and after every crash, on every node, and always with the
    /// same arguments. `<saga id>/<step>`, with `/<generation>` behind once an operator had the step tried anew.
    pub fn idempotency_key(&self) -> &str {
        &self.call.forward_key
    }

    /// The saga.
    pub fn saga_id(&self) -> SagaId {
        self.call.saga
    }

    /// The step's name.
    pub fn step(&self) -> &str {
        &self.call.step
    }

    /// Which attempt this is, as far as the journal knows; the first is 1.
    pub fn attempt(&self) -> u32 {
        self.call.attempt
    }
}

/// What a compensation is given besides its arguments.
///
/// An undo is told the output of what it undoes, or `None` when the step is in doubt: then it must make sure, by [the step's
/// key](Self::forward_key), that nothing is left of it *and nothing will come*: the step may still be under way.
pub struct CompensationCx<D> {
    deps: Arc<D>,
    call: Arc<Call>,
    key: Arc<str>,
}

impl<D> CompensationCx<D> {
    pub(crate) fn new(deps: Arc<D>, call: Call) -> Self {
        let key = format!("{}/undo", call.forward_key).into();
        Self { deps, call: Arc::new(call), key }
    }

    /// A context to call one compensation alone, in a test.
    pub fn test(forward_key: &str, deps: impl Into<Arc<D>>) -> Self {
        let call = Call { forward_key: forward_key.into(), ..Call::new(SagaId::generate(), "test", 0, 1) };
        Self::new(deps.into(), call)
    }

    /// Why the saga turned back: what the step that failed said, or whoever cancelled.
    pub fn cause(&self) -> &str {
        &self.call.cause
    }

    /// The compensation's own key: the step's, with `/undo` behind.
    pub fn idempotency_key(&self) -> &str {
        &self.key
    }

    /// The key under which the step was attempted.
    pub fn forward_key(&self) -> &str {
        &self.call.forward_key
    }

    /// The saga.
    pub fn saga_id(&self) -> SagaId {
        self.call.saga
    }

    /// The step's name.
    pub fn step(&self) -> &str {
        &self.call.step
    }

    /// Which attempt of the compensation this is, as far as the journal knows; the first is 1.
    pub fn attempt(&self) -> u32 {
        self.call.attempt
    }
}

impl<D> Deref for Cx<D> {
    type Target = D;
    fn deref(&self) -> &D {
        &self.deps
    }
}

impl<D> Deref for CompensationCx<D> {
    type Target = D;
    fn deref(&self) -> &D {
        &self.deps
    }
}

impl<D> Clone for Cx<D> {
    fn clone(&self) -> Self {
        Self { deps: self.deps.clone(), call: self.call.clone() }
    }
}

impl<D> Clone for CompensationCx<D> {
    fn clone(&self) -> Self {
        Self { deps: self.deps.clone(), call: self.call.clone(), key: self.key.clone() }
    }
}

impl<D> fmt::Debug for Cx<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.call.fmt(f)
    }
}

impl<D> fmt::Debug for CompensationCx<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.call.fmt(f)
    }
}
