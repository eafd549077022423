//! How much is read in one go.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

/// Enough to make a round trip worth it, and little enough for a slow network.
const MOST: i64 = 4 << 20;
const LEAST: i64 = 16 << 10;

/// So many sagas are weighed for a claim at most.
const SAGAS: usize = 500;

/// So many bytes, about, and so many sagas to find them in. What got no answer is asked for again in smaller portions;
/// they grow again with each one that comes. Where few sagas are a portion, few are weighed.
#[derive(Debug)]
pub(crate) struct Portion {
    most: i64,
    bytes: AtomicI64,
    sagas: AtomicUsize,
}

impl Default for Portion {
    fn default() -> Self {
        Self::of(MOST)
    }
}

impl Portion {
    /// So many bytes at most.
    pub(crate) fn of(most: i64) -> Self {
        Self { most, bytes: AtomicI64::new(most), sagas: AtomicUsize::new(SAGAS) }
    }

    pub(crate) fn bytes(&self) -> i64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn sagas(&self) -> usize {
        self.sagas.load(Ordering::Relaxed)
    }

    /// Takes note of how it went.
    pub(crate) fn tried<T, E>(&self, answer: Result<T, E>) -> Result<T, E> {
        let bytes = self.bytes();
        let next = match answer {
            Err(_) => bytes / 4,
            Ok(_) => bytes * 2,
        };
        self.bytes.store(next.clamp(LEAST, self.most), Ordering::Relaxed);
        answer
    }

    /// Of so many sagas that were weighed, so many were a portion.
    pub(crate) fn held(&self, weighed: usize, sagas: usize) {
        let next = if sagas < weighed { 2 * sagas } else { 4 * self.sagas() };
        self.sagas.store(next.clamp(1, SAGAS), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_got_no_answer_is_asked_for_in_smaller_portions() {
        let (portion, silence) = (Portion::default(), || Err::<(), _>("silence"));
        assert_eq!(portion.bytes(), MOST);
        for _ in 0..9 {
            let _ = portion.tried(silence());
        }
        assert_eq!(portion.bytes(), LEAST);
        for _ in 0..9 {
            let _ = portion.tried(Ok::<_, &str>(()));
        }
        assert_eq!(portion.bytes(), MOST);
    }

    #[test]
    fn where_few_sagas_are_a_portion_few_are_weighed() {
        let portion = Portion::default();
        portion.held(SAGAS, 3);
        assert_eq!(portion.sagas(), 6);
        portion.held(6, 0);
        assert_eq!(portion.sagas(), 1);
        for _ in 0..9 {
            portion.held(portion.sagas(), portion.sagas());
        }
        assert_eq!(portion.sagas(), SAGAS);
    }
}
