//! How much is read in one go.

use saga_core::store::StoreError;
use std::sync::atomic::{AtomicI64, Ordering};

/// Enough to make a round trip worth it, and little enough for a slow network.
const MOST: i64 = 4 << 20;
const LEAST: i64 = 16 << 10;

/// So many bytes, about. What got no answer is asked for again in smaller portions; they grow again with each one that
/// comes.
#[derive(Debug)]
pub(super) struct Portion(AtomicI64);

impl Default for Portion {
    fn default() -> Self {
        Self(AtomicI64::new(MOST))
    }
}

impl Portion {
    pub(super) fn bytes(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes note of how it went.
    pub(super) fn tried<T>(&self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        let bytes = self.bytes();
        let next = match answer {
            Err(StoreError::Unavailable(_)) => bytes / 4,
            _ => bytes * 2,
        };
        self.0.store(next.clamp(LEAST, MOST), Ordering::Relaxed);
        answer
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
}
