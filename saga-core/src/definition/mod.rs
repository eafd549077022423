//! What a saga is: its steps, their kinds, their order and their undo.
//!
//! A definition is read top to bottom in one function, [`Saga::define`]. Four rules are all there is to learn:
//!
//! 1. The first word of a line is the step's kind: `effect_free`, `compensatable`, `pivot`, `retriable`.
//! 2. Steps run in the order written. Inside [`parallel`](SagaBuilder::parallel) they do not wait for each other, except where they
//!    read. `.after(x)` replaces the default wait.
//! 3. A step takes the context, the saga's input, then what it `reads`, in that order. Its compensation takes the same plus
//!    `Option<Output>`, which is `None` when the step is in doubt.
//! 4. Order of words: kind, then `reads / after / retry / timeout`, then the work (`run` or `command`), then the compensation (`compensate` or
//!    `compensate_command`).
//!
//! # Why typed handles, and no macro or trait per step
//!
//! Three shapes were tried against one example: a trait per step, closures with the kind last, and handles returned by
//! the builder with steps as plain functions. The last one won: the process reads in one place, a wrong output or a missing
//! dependency does not compile, steps are ordinary `async fn`s that are tested alone, and a definition can be fingerprinted
//! without any client at hand.

mod builder;
mod context;
mod graph;
mod work;

pub(crate) use context::Call;
pub(crate) use work::{Arguments, Bound, Process, Sending};

pub use builder::{
    AtParticipant, Compensatable, EffectFree, HasItsCompensation, InProcess, Out, Outs, Pivot, Retriable, SagaBuilder,
    StatesItsKind, Step, StepKind, Uncompensated,
};
pub use context::{CompensationCx, Cx};
pub use graph::{BuildError, Graph, Kind, Node, Policy, StepIndex};
pub use work::Definition;

use crate::{Class, Payload};
use std::error::Error;

/// A saga: a named and versioned graph of steps over one input.
///
/// A running saga keeps to the version that it was started with. Change the graph (names, kinds, dependencies) and the version
/// together: a worker that comes with another graph under the same version is refused at its start.
pub trait Saga: Sized + Send + Sync + 'static {
    /// The name: unique among the sagas of one store, and never changed.
    const NAME: &'static str;
    /// The version of the graph.
    const VERSION: u32;
    /// What a saga is started with.
    type Input: Payload;
    /// What a completed saga returns.
    type Output: Payload;
    /// What its steps work with: clients, pools, settings.
    type Deps: Send + Sync + 'static;

    /// Declares the steps; returns the output of the one that is the saga's own.
    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, Self::Output>;

    /// Classifies errors that the steps let through unclassified, by downcast. Defaults to [`Class::Unknown`] for all: only
    /// the author of a call can say that nothing happened.
    fn classify(error: &(dyn Error + 'static)) -> Class {
        let _ = error;
        Class::Unknown
    }
}
