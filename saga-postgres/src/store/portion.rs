//! How much is read in one go.

use saga_core::store::StoreError;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

/// Enough to make a round trip worth it, and little enough for a slow network.
const MOST: i64 = 4 << 20;
const LEAST: i64 = 16 << 10;

/// So many sagas are weighed for a claim at most.
const SAGAS: usize = 500;

/// So many bytes, about, and so many sagas to find them in. What got no answer is asked for again in smaller portions;
/// they grow again with each one that comes. Where few sagas are a portion, few are weighed.
#[derive(Debug)]
pub(super) struct Portion {
    bytes: AtomicI64,
    sagas: AtomicUsize,
}

impl Default for Portion {
    fn default() -> Self {
        Self { bytes: AtomicI64::new(MOST), sagas: AtomicUsize::new(SAGAS) }
    }
}

impl Portion {
    pub(super) fn bytes(&self) -> i64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn sagas(&self) -> usize {
        self.sagas.load(Ordering::Relaxed)
    }

    /// Takes note of how it went.
    pub(super) fn tried<T>(&self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        let bytes = self.bytes();
        let next = match answer {
            Err(_) => bytes / 4,
            Ok(_) => bytes * 2,
        };
        self.bytes.store(next.clamp(LEAST, MOST), Ordering::Relaxed);
        answer
    }

    /// Of so many sagas that were weighed, so many were a portion.
    pub(super) fn held(&self, weighed: usize, sagas: usize) {
        let next = if sagas < weighed { 2 * sagas } else { 4 * self.sagas() };
        self.sagas.store(next.clamp(1, SAGAS), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_got_no_answer_is_asked_for_in_smaller_portions() {
        let (portion, silence) = (Portion::default(), || Err::<(), _>(StoreError::Unavailable("silence".into())));
        assert_eq!(portion.bytes(), MOST);
        for _ in 0..9 {
            let _ = portion.tried(silence());
        }
        assert_eq!(portion.bytes(), LEAST);
        for _ in 0..9 {
            let _ = portion.tried(Ok(()));
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
