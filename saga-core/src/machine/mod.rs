//! The heart: what a saga does next, as a pure function of what is written in its journal.
//!
//! # The law
//!
//! 1. **Decide, write, fold, act.** Whatever happens outside (an attempt ended, a message came, a worker was lost)
//!    goes in as an [`Input`]; [`State::decide`] answers with the [`Event`]s that it means. Once these are durable, and
//!    never before, [`State::apply`] folds them in, and [`State::agenda`] says what may be done now.
//! 2. **The journal is the only truth.** `apply` looks at nothing but the graph and the event: no policy, no clock, no
//!    chance. Folding a journal gives the state that its writer had.
//! 3. **What was enabled may have started.** From the append that enabled a step until its outcome is journaled, the step
//!    counts as possibly started. A driver that cannot know (it took over from a lost worker) says so with
//!    [`Input::Lapsed`], and every such step is in doubt from then on.
//! 4. **Nothing is undone twice, nothing in doubt is left.** Going backward, a compensatable step is undone if it succeeded or
//!    is in doubt, after everything that depends on it, once.
//! 5. **A pivot in doubt is neither undone nor passed.** While it has no outcome, a reason to turn back waits: its success
//!    makes that reason too late, its failure lets the saga turn back.
//!
//! There is no I/O here, no clock and no async. The driver is [the engine](crate::Engine); the tests drive it through every
//! interleaving of small graphs.
//!
//! ```
//! use saga_core::definition::{Graph, Kind, Node};
//! use saga_core::machine::{Clock, Input, Outcome, State, Status};
//! use saga_core::Encoded;
//!
//! let graph = Graph::new("order", vec![
//!     Node::new("reserve", Kind::Compensatable, &[]),
//!     Node::new("charge", Kind::Pivot, &[0]),
//! ])?;
//! let mut saga = State::new(&graph);
//! let feed = |saga: &mut State, input| for event in saga.decide(&graph, input, Clock::default()) {
//!     saga.apply(&graph, &event); // the driver would have written it first
//! };
//! feed(&mut saga, Input::Attempt { step: 0, outcome: Outcome::Success(Encoded::of(&"r-1")?) });
//! feed(&mut saga, Input::Attempt { step: 1, outcome: Outcome::Fail("declined".into()) });
//! assert_eq!(saga.status(), Status::Compensating);
//! assert_eq!(saga.agenda(&graph).compensate, [0]);
//! feed(&mut saga, Input::Compensation { step: 0, outcome: Ok(()) });
//! assert_eq!(saga.status(), Status::RolledBack);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod decide;
mod event;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;

pub use decide::{Clock, Input, Outcome};
pub use event::{Event, FORMAT, Millis};
pub use state::{Agenda, Cause, Course, State, Status, Step, Tries};
