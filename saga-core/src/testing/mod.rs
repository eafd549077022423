//! The test kit, for your sagas as much as for ours. Behind the cargo feature `testing`.
//!
//! - [`crash_everywhere`] runs a saga of yours again and again, with a crash, a lost answer, a duplicate or a refusal at every single point,
//!   and checks that nothing is ever half done. One line in a plain `#[test]`.
//! - [`in_virtual_time`] runs a test in which a saga that waits for a week ends in a millisecond.
//! - [`same_graph`] guards a version's graph.
//! - [`World`] is a participant for such tests.
//! - [`conformance`] checks implementations of [`Store`](crate::store::Store).
//! - [`transport`] checks implementations of [`Transport`](crate::transport::Transport).
//!
//! A step alone needs no kit: it is a function, called with [`Cx::test`](crate::Cx::test).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test kit tells what it finds by panicking"
)]

pub mod conformance;
mod crash;
mod faults;
pub mod transport;
mod world;

use crate::{Definition, Saga};

pub use crash::{Report, crash_everywhere};
pub use world::World;

/// Guards a version of a saga in your CI: its graph must stay what it was when the first saga of that version was started.
///
/// `fingerprint` is what [`Graph::fingerprint`](crate::definition::Graph::fingerprint) printed then, one step a line; begin with `""` and paste what the failure shows.
///
/// # Panics
/// When the graph is another one.
pub fn same_graph<S: Saga>(fingerprint: &str) {
    let definition = Definition::<S>::build().unwrap_or_else(|error| panic!("{error}"));
    let now = definition.graph().fingerprint();
    assert!(
        now == fingerprint,
        "saga `{}` version {} has another graph than it had: change its version together with its graph\nwas:\n{fingerprint}\nis:\n{now}",
        S::NAME,
        S::VERSION,
    );
}

/// Runs a test in a runtime of its own whose time is virtual: whenever nothing can go on, the clock jumps to the next timer.
///
/// ```
/// use saga_core::testing::in_virtual_time;
/// use std::time::Duration;
///
/// in_virtual_time(async { tokio::time::sleep(Duration::from_secs(7 * 24 * 3600)).await });
/// ```
///
/// # Panics
/// When `test` does, and when it is called inside another runtime: make the test a plain `#[test]`, or use `#[tokio::test(start_paused = true)]`.
pub fn in_virtual_time<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime with virtual time")
        .block_on(test)
}
