//! What goes on and on is said at once, and again now and then, more and more rarely.

use std::time::Duration;
use tokio::time::Instant;

const PAUSE: Duration = Duration::from_secs(5);
/// The pause doubles each time, up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// When something was last said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rarely {
    said: Option<Instant>,
    pause: Duration,
}

impl Default for Rarely {
    fn default() -> Self {
        Self { said: None, pause: PAUSE }
    }
}

impl Rarely {
    /// Nothing is said before a while has passed.
    pub(super) fn not_yet() -> Self {
        Self { said: Some(Instant::now()), pause: PAUSE }
    }

    /// Whether it is to be said now; then it counts as said.
    pub(super) fn now(&mut self) -> bool {
        let pause = match self.said {
            Some(said) if said.elapsed() < self.pause => return false,
            Some(_) => (2 * self.pause).min(LONGEST_PAUSE),
            None => PAUSE,
        };
        *self = Self { said: Some(Instant::now()), pause };
        true
    }

    /// It is over, at least for now: the next time it is said at once, unless that is but a moment later.
    pub(super) fn over(&mut self) {
        let lately = self.said.filter(|said| said.elapsed() < PAUSE);
        *self = Self { said: lately, pause: PAUSE };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn what_goes_on_is_said_at_once_and_then_more_and_more_rarely() {
        let mut rarely = Rarely::default();
        let mut said = vec![];
        for second in 0..300 {
            if rarely.now() {
                said.push(second);
            }
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!(said, [0, 5, 15, 35, 75, 135, 195, 255]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_over_is_said_at_once_when_it_comes_again_and_not_when_it_comes_and_goes() {
        let mut rarely = Rarely::default();
        assert!(rarely.now());
        advance(PAUSE / 2).await;
        rarely.over();
        assert!(!rarely.now());
        advance(PAUSE).await;
        rarely.over();
        assert!(rarely.now());
    }
}
