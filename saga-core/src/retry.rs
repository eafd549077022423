use std::time::Duration;

/// When an attempt that did not succeed is made again: exponential backoff with *equal jitter*
/// (each delay is drawn between half of the computed delay and all of it), bounded by attempts, by elapsed time, or by neither.
///
/// ```
/// use saga_core::Retry;
/// use std::time::Duration;
///
/// let retry = Retry::exponential(Duration::from_millis(200)).attempts(5);
/// assert_eq!(retry.delay(1, Duration::ZERO, 1.0), Some(Duration::from_millis(200)));
/// assert_eq!(retry.delay(3, Duration::ZERO, 1.0), Some(Duration::from_millis(800)));
/// assert_eq!(retry.delay(5, Duration::ZERO, 1.0), None, "five attempts were made");
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    initial: Duration,
    factor: f64,
    longest: Duration,
    attempts: Option<u32>,
    elapsed: Option<Duration>,
}

impl Retry {
    /// Delays of `initial`, twice that, four times that, .. up to one minute; five attempts in all, unless you say how
    /// many, or for how long. Those five are over after 15 times `initial`, or half of that: shorter than a restart
    /// takes, if `initial` is less than some seconds.
    pub const fn exponential(initial: Duration) -> Self {
        Self { initial, factor: 2.0, longest: Duration::from_secs(60), attempts: Some(5), elapsed: None }
    }

    /// The same delay each time; five attempts in all, unless you say how many, or for how long. Those five are over
    /// after four times `delay`, or half of that.
    pub const fn fixed(delay: Duration) -> Self {
        Self { initial: delay, factor: 1.0, longest: delay, attempts: Some(5), elapsed: None }
    }

    /// One attempt only.
    pub const fn never() -> Self {
        Self::fixed(Duration::ZERO).attempts(1)
    }

    /// At most `n` attempts, the first one included; 0 counts as 1.
    pub const fn attempts(mut self, n: u32) -> Self {
        self.attempts = Some(if n == 0 { 1 } else { n });
        self
    }

    /// No attempt begins once this much time has passed since the first one ended. Lifts the limit on attempts.
    pub const fn elapsed(mut self, time: Duration) -> Self {
        self.attempts = None;
        self.elapsed = Some(time);
        self
    }

    /// Never gives up.
    pub const fn forever(mut self) -> Self {
        self.attempts = None;
        self.elapsed = None;
        self
    }

    /// Delays grow by this factor. Defaults to 2; less than 1 counts as 1.
    pub const fn factor(mut self, factor: f64) -> Self {
        self.factor = if factor >= 1.0 { factor } else { 1.0 };
        self
    }

    /// No delay is longer than this. Defaults to one minute.
    pub const fn longest(mut self, longest: Duration) -> Self {
        self.longest = longest;
        self
    }

    /// The delay before the next attempt, or `None` to give up.
    ///
    /// `made` attempts have ended, the first of them `elapsed` ago; `jitter` lies in 0..=1. A pure function: the
    /// same arguments give the same answer.
    pub fn delay(&self, made: u32, elapsed: Duration, jitter: f64) -> Option<Duration> {
        if self.attempts.is_some_and(|limit| made >= limit) {
            return None;
        }
        let exponent = i32::try_from(made.saturating_sub(1)).unwrap_or(i32::MAX);
        let longest = self.longest.as_secs_f64();
        let full = (self.initial.as_secs_f64() * self.factor.powi(exponent)).min(longest);
        let delay = Duration::from_secs_f64(full * (0.5 + 0.5 * jitter.clamp(0.0, 1.0)));
        match self.elapsed {
            Some(limit) if elapsed + delay > limit => None,
            _ => Some(delay),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn delays_stay_between_half_and_all_of_the_backoff() {
        let retry = Retry::exponential(100 * MS).forever();
        assert_eq!(retry.delay(2, Duration::ZERO, 0.0), Some(100 * MS));
        assert_eq!(retry.delay(2, Duration::ZERO, 1.0), Some(200 * MS));
    }

    #[test]
    fn no_delay_is_longer_than_the_longest_however_many_attempts_were_made() {
        let retry = Retry::exponential(100 * MS).longest(300 * MS).forever();
        assert_eq!(retry.delay(u32::MAX, Duration::ZERO, 1.0), Some(300 * MS));
    }

    #[test]
    fn elapsed_time_ends_the_retries() {
        let retry = Retry::fixed(100 * MS).elapsed(Duration::from_secs(1));
        assert_eq!(retry.delay(50, 900 * MS, 1.0), Some(100 * MS));
        assert_eq!(retry.delay(50, 901 * MS, 1.0), None);
    }

    #[test]
    fn zero_attempts_count_as_one() {
        assert_eq!(Retry::never(), Retry::fixed(Duration::ZERO).attempts(0));
        assert_eq!(Retry::never().delay(1, Duration::ZERO, 0.5), None);
    }
}
