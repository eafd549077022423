//! A circuit breaker: whoever asks a service that mostly fails is told so at once, and the service has time to recover.
//!
//! *Closed*: calls go through. When half of the last ten have failed it is *open*: for a while nothing goes through. Then one call at a time is let through to try,
//! and the first that succeeds closes it.
//!
//! It is not a crate, because none does just that: `recloser` lets everybody through while it tries, and counts the eleventh call of ten;
//! `tower-resilience-circuitbreaker` has no window that slides by calls and is a hundred times as long; `failsafe` counts failures in a row or by an average over time. All of
//! them look at a clock that a test cannot move.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

const CALLS: usize = 10;
const FAILURES: usize = 5;
/// How long it is open before a call may try, and how long that one may take before another may.
const PAUSE: Duration = Duration::from_secs(5);

/// See [the module](self).
#[derive(Debug, Default)]
pub struct Breaker {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Which of the last calls failed.
    failed: VecDeque<bool>,
    /// While it is open: when the next call may try.
    open_until: Option<Instant>,
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub enum NoAnswer<E> {
    /// It was not asked.
    Open,
    /// It was asked, and this is what came of it.
    Failed(E),
}

impl Breaker {
    /// Makes the call, unless the breaker is open. A call that is given up half-way counts for nothing.
    pub async fn call<T, E>(&self, call: impl Future<Output = Result<T, E>>) -> Result<T, NoAnswer<E>> {
        let tries = self.admit().ok_or(NoAnswer::Open)?;
        let answer = call.await;
        self.count(tries, answer.is_err());
        answer.map_err(NoAnswer::Failed)
    }

    /// Whether a call may be made, and if so, whether it is one that tries.
    fn admit(&self) -> Option<bool> {
        let mut state = self.state();
        match state.open_until {
            None => Some(false),
            Some(until) if Instant::now() < until => None,
            Some(_) => {
                state.open_until = Some(Instant::now() + PAUSE);
                Some(true)
            }
        }
    }

    fn count(&self, tries: bool, failed: bool) {
        let mut state = self.state();
        if state.open_until.is_none() {
            state.failed.push_back(failed);
            if state.failed.len() > CALLS {
                state.failed.pop_front();
            }
            if state.failed.len() == CALLS && state.failed.iter().filter(|failed| **failed).count() >= FAILURES {
                state.open_until = Some(Instant::now() + PAUSE);
            }
        } else if tries && !failed {
            *state = State::default();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use tokio::time::{advance, timeout};

    async fn call(breaker: &Breaker, answer: Result<u8, u8>) -> Result<u8, NoAnswer<u8>> {
        breaker.call(async move { answer }).await
    }

    async fn opened() -> Breaker {
        let breaker = Breaker::default();
        for n in 0..10 {
            let answer = if n % 2 == 0 { Ok(1) } else { Err(2) };
            assert_eq!(call(&breaker, answer).await, answer.map_err(NoAnswer::Failed), "call {n}");
        }
        assert_eq!(call(&breaker, Ok(1)).await, Err(NoAnswer::Open));
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_ten_calls_fail_and_nobody_is_asked_any_more() {
        let breaker = opened().await;
        let never = breaker.call::<(), ()>(async { unreachable!("it is open") }).await;
        assert_eq!(never, Err(NoAnswer::Open));
    }

    #[tokio::test(start_paused = true)]
    async fn fewer_failures_change_nothing_however_long_it_goes_on() {
        let breaker = Breaker::default();
        for n in 0..1000 {
            let answer = if n % 10 < 4 { Err(2) } else { Ok(1) };
            assert_eq!(call(&breaker, answer).await, answer.map_err(NoAnswer::Failed), "call {n}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_pause_one_call_tries_and_its_success_lets_all_through() {
        let breaker = opened().await;
        advance(PAUSE).await;
        let while_trying = breaker.call(async { Ok::<_, u8>(call(&breaker, Ok(1)).await) }).await;
        assert_eq!(while_trying, Ok(Err(NoAnswer::Open)));
        for n in 0..9 {
            assert_eq!(
                call(&breaker, Err(2)).await,
                Err(NoAnswer::Failed(2)),
                "call {n}: what was before is forgotten"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_fails_is_followed_by_another_pause() {
        let breaker = opened().await;
        for _ in 0..3 {
            advance(PAUSE).await;
            assert_eq!(call(&breaker, Err(2)).await, Err(NoAnswer::Failed(2)));
            assert_eq!(call(&breaker, Ok(1)).await, Err(NoAnswer::Open));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_is_given_up_keeps_nobody_out_for_ever() {
        let breaker = opened().await;
        advance(PAUSE).await;
        assert!(timeout(PAUSE, breaker.call::<(), ()>(pending())).await.is_err());
        assert_eq!(call(&breaker, Ok(1)).await, Ok(1));
    }
}
