//! What goes on and on is said at once, and again now and then.

use std::time::Duration;
use tokio::time::Instant;

const PAUSE: Duration = Duration::from_secs(5);

/// When something was last said.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rarely(Option<Instant>);

impl Rarely {
    /// Nothing is said before a while has passed.
    pub(super) fn not_yet() -> Self {
        Self(Some(Instant::now()))
    }

    /// Whether it is to be said now; then it counts as said.
    pub(super) fn now(&mut self) -> bool {
        let now = self.0.is_none_or(|said| said.elapsed() >= PAUSE);
        if now {
            self.0 = Some(Instant::now());
        }
        now
    }
}
