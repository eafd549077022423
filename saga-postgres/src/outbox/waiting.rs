//! The keys whose events the broker did not take, and which are left alone for a while.

use super::plan::Key;
use std::{collections::HashMap, time::Duration};
use tokio::time::Instant;

/// For how long a key is left alone.
const PAUSE: Duration = Duration::from_secs(1);
/// So many keys may wait by themselves; with more of them everything waits.
const MOST: usize = 1_000;

#[derive(Default)]
pub(super) struct Waiting {
    until: HashMap<Key, Instant>,
}

impl Waiting {
    pub(super) fn add(&mut self, keys: impl IntoIterator<Item = Key>) {
        let until = Instant::now() + PAUSE;
        self.until.extend(keys.into_iter().map(|key| (key, until)));
    }

    /// The topics and the keys that are to be left alone now.
    pub(super) fn now(&mut self) -> (Vec<String>, Vec<String>) {
        let now = Instant::now();
        self.until.retain(|_, until| *until > now);
        self.until.keys().cloned().unzip()
    }

    /// When the first of them is to be tried again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.until.values().min().copied()
    }

    /// Until when everything has to wait.
    pub(super) fn full_until(&self) -> Option<Instant> {
        self.next().filter(|_| self.until.len() >= MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_left_alone_for_a_while() {
        let mut waiting = Waiting::default();
        waiting.add([("events".to_owned(), "a".to_owned())]);
        assert_eq!(waiting.now(), (vec!["events".to_owned()], vec!["a".to_owned()]));
        assert_eq!(waiting.next(), Some(Instant::now() + PAUSE));
        tokio::time::advance(PAUSE).await;
        assert_eq!(waiting.now(), (vec![], vec![]));
        assert_eq!(waiting.next(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn when_too_many_keys_wait_everything_does() {
        let mut waiting = Waiting::default();
        let keys = |count: usize| (0..count).map(|n| ("events".to_owned(), n.to_string()));
        waiting.add(keys(MOST - 1));
        assert_eq!(waiting.full_until(), None);
        waiting.add(keys(MOST));
        assert_eq!(waiting.full_until(), Some(Instant::now() + PAUSE));
    }
}
