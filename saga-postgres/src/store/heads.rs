//! Where a look begins: for sagas that are due, and for letters.
//!
//! Entries of what was claimed or read stay in the index until a vacuum removes them, and none does while somebody's
//! long transaction may still see them. Each look from the beginning would read them all. So most looks begin where the
//! ones before ended, and a full look is taken now and then. It finds what was passed over because somebody held it,
//! and what others put back.

use saga_core::WorkerId;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Between two full looks, at least.
const FULL_LOOK: Duration = Duration::from_secs(5);
/// A full look takes so small a share of the time, if it takes long.
const SHARE: u32 = 20;
const LONGEST: Duration = Duration::from_secs(60);
/// Those of former workers need not be remembered.
const KINDS: usize = 64;

/// How long to wait after what reads all that there is and took so long.
pub(super) fn pause(took: Duration) -> Duration {
    (took * SHARE).clamp(FULL_LOOK, LONGEST)
}

/// What finds the same: a worker's looks for sagas that lapsed so often at most. What one leaves for that, another takes.
pub(super) type Looks = (WorkerId, u32);

/// Where looks begin.
#[derive(Debug)]
pub(super) struct Heads<N>(HashMap<Looks, Head<N>>);

impl<N> Default for Heads<N> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

#[derive(Clone, Copy, Debug)]
struct Head<N> {
    /// Unless it is the beginning.
    from: Option<N>,
    full_look_at: Instant,
    /// When the last look ended.
    ended: Instant,
}

/// A look that begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look<N> {
    /// Where, unless it is at the beginning.
    pub(super) from: Option<N>,
    full: bool,
    began: Instant,
}

impl<N: Copy> Heads<N> {
    pub(super) fn begin(&self, looks: Looks, now: Instant) -> Look<N> {
        match self.0.get(&looks) {
            // Who has not looked for a while may have missed something.
            Some(head) if now < head.full_look_at && now.duration_since(head.ended) < FULL_LOOK => {
                Look { from: head.from, full: false, began: now }
            }
            _ => Look { from: None, full: true, began: now },
        }
    }

    /// A look has found all that there was, and the next one may begin at `next`. `None` if there was more than it
    /// could take: the next one begins where this one did.
    pub(super) fn end(&mut self, looks: Looks, look: Look<N>, next: Option<N>, now: Instant) {
        if self.0.len() >= KINDS && !self.0.contains_key(&looks) {
            self.0.clear();
        }
        let pause = pause(now.duration_since(look.began));
        let head = self.0.entry(looks).or_insert(Head { from: None, full_look_at: now + pause, ended: now });
        (head.from, head.ended) = (next.or(head.from), now);
        if look.full {
            head.full_look_at = now + pause;
        }
    }

    /// The worker's next look is a full one.
    pub(super) fn forget(&mut self, worker: WorkerId) {
        self.0.retain(|(other, _), _| *other != worker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_begins_where_the_last_one_ended_and_now_and_then_at_the_beginning() {
        let (mut heads, looks, now) = (Heads::default(), (WorkerId::generate(), u32::MAX), Instant::now());
        let first = heads.begin(looks, now);
        assert_eq!(first.from, None);
        heads.end(looks, first, Some(7), now);
        let second = heads.begin(looks, now + FULL_LOOK / 2);
        assert_eq!(second.from, Some(7));
        heads.end(looks, second, Some(9), now + FULL_LOOK / 2);
        assert_eq!(heads.begin(looks, now + FULL_LOOK / 2).from, Some(9));
        assert_eq!(heads.begin(looks, now + FULL_LOOK).from, None);
        for others in [(WorkerId::generate(), u32::MAX), (looks.0, 1)] {
            assert_eq!(heads.begin(others, now).from, None, "others begin for themselves");
        }
        heads.forget(looks.0);
        assert_eq!(heads.begin(looks, now + FULL_LOOK / 2).from, None);
    }

    #[test]
    fn after_a_look_that_could_not_take_all_the_next_one_begins_at_the_same_place() {
        let (mut heads, looks, now) = (Heads::default(), (WorkerId::generate(), u32::MAX), Instant::now());
        let first = heads.begin(looks, now);
        heads.end(looks, first, None, now);
        let second = heads.begin(looks, now);
        assert!(!second.full && second.from.is_none());
        heads.end(looks, second, Some(7), now);
        let third = heads.begin(looks, now);
        heads.end(looks, third, None, now);
        assert_eq!(heads.begin(looks, now).from, Some(7));
    }

    #[test]
    fn a_full_look_that_takes_long_is_taken_less_often() {
        let (mut heads, looks, now) = (Heads::default(), (WorkerId::generate(), u32::MAX), Instant::now());
        let look = heads.begin(looks, now);
        heads.end(looks, look, Some(1), now + Duration::from_secs(1));
        let full = (2..).map(|second| now + Duration::from_secs(second)).find(|at| {
            let look = heads.begin(looks, *at);
            heads.end(looks, look, Some(1), *at);
            look.full
        });
        assert_eq!(full, Some(now + Duration::from_secs(21)));
        assert!(heads.begin(looks, now + Duration::from_secs(21) + FULL_LOOK).full, "nobody has looked for a while");
    }
}
