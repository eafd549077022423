//! Where a look begins: for sagas that are due, and for letters.
//!
//! Entries of what was claimed or read stay in the index until a vacuum removes them, and none does while somebody's
//! long transaction may still see them. Each look from the beginning would read them all. So most looks begin where the
//! ones before ended, and a full look is taken now and then. It finds what was passed over because somebody held it,
//! and what others put back.

use saga_core::{WorkerId, store::DefinitionId};
use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant},
};

/// Between two full looks, at least.
pub(super) const FULL_LOOK: Duration = Duration::from_secs(5);
/// A full look takes so small a share of the time, if it takes long.
const SHARE: u32 = 20;
pub(super) const LONGEST: Duration = Duration::from_secs(45);
/// Those of former workers need not be remembered.
const KINDS: usize = 64;

/// How long to wait after what reads all that there is and took so long.
pub(super) fn pause(took: Duration) -> Duration {
    (took * SHARE).clamp(FULL_LOOK, LONGEST)
}

/// What finds the same: a worker's looks for sagas of these definitions that lapsed so often at most. What one leaves for
/// that, another takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Looks {
    worker: WorkerId,
    lapses: u32,
    /// A hash of them, in their order.
    definitions: u64,
}

impl Looks {
    pub(super) fn of(worker: WorkerId, definitions: &[DefinitionId], lapses: u32) -> Self {
        let mut hasher = DefaultHasher::new();
        definitions.hash(&mut hasher);
        Self { worker, lapses, definitions: hasher.finish() }
    }
}

/// Where looks begin.
#[derive(Debug)]
pub(super) struct Heads<N> {
    heads: HashMap<Looks, Head<N>>,
    /// Workers that have missed something: a full look finds it that begins then or later.
    missed: HashMap<WorkerId, Instant>,
    /// How often all that was known has been given up.
    age: u64,
}

impl<N> Default for Heads<N> {
    fn default() -> Self {
        Self { heads: HashMap::new(), missed: HashMap::new(), age: 0 }
    }
}

#[derive(Clone, Copy, Debug)]
struct Head<N> {
    /// Unless it is the beginning.
    from: Option<N>,
    full_look_at: Instant,
    /// When the last look ended, and when the last one began that was answered.
    ended: Instant,
    answered: Instant,
}

/// A look that begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look<N> {
    /// Where, unless it is at the beginning.
    pub(super) from: Option<N>,
    full: bool,
    began: Instant,
    /// Of the one before it that was answered.
    before: Instant,
    age: u64,
}

impl<N> Look<N> {
    /// How long before it the last one began that was answered.
    pub(super) fn since(&self) -> Duration {
        self.began.duration_since(self.before)
    }
}

impl<N: Copy> Heads<N> {
    pub(super) fn begin(&self, looks: Looks, now: Instant) -> Look<N> {
        let full = Look { from: None, full: true, began: now, before: now, age: self.age };
        match self.heads.get(&looks) {
            _ if self.missed.contains_key(&looks.worker) => full,
            // Who has not looked for a while may have missed something.
            Some(head) if now < head.full_look_at && now.duration_since(head.ended) < FULL_LOOK => {
                Look { from: head.from, full: false, before: head.answered, ..full }
            }
            _ => full,
        }
    }

    /// A look has found all that there was, and the next one may begin at `next`. `None` if there was more than it
    /// could take: the next one begins where this one did.
    pub(super) fn end(&mut self, looks: Looks, look: Look<N>, next: Option<N>, now: Instant) {
        if look.age != self.age {
            return;
        }
        if self.heads.len() >= KINDS && !self.heads.contains_key(&looks) {
            self.heads.clear();
        }
        let next = match self.missed.get(&looks.worker) {
            Some(from) if look.full && look.began >= *from && next.is_some() => {
                self.missed.remove(&looks.worker);
                next
            }
            Some(_) => None,
            None => next,
        };
        let pause = pause(now.duration_since(look.began));
        let (full_look_at, answered) = (now + pause, look.began);
        let head = self.heads.entry(looks).or_insert(Head { from: None, full_look_at, ended: now, answered });
        (head.from, head.ended, head.answered) = (next.or(look.from), now, answered);
        if look.full {
            head.full_look_at = now + pause;
        }
    }

    /// A look has got no answer. If it was a full one that takes too long, looks go on from where those before it ended,
    /// or, if there were none, from `new`, until after a pause a full one is tried again.
    pub(super) fn failed(&mut self, looks: Looks, look: Look<N>, new: N, pause: Duration, now: Instant) {
        if look.age != self.age {
            return;
        }
        let (full_look_at, answered) = (now, look.began);
        let head = self.heads.entry(looks).or_insert(Head { from: Some(new), full_look_at, ended: now, answered });
        if look.full {
            self.missed.remove(&looks.worker);
            head.full_look_at = now + pause;
        }
        head.ended = now;
    }

    /// The worker has missed something: its looks are full ones until one that begins then or later has found it.
    pub(super) fn missed(&mut self, worker: WorkerId, from: Instant) {
        if self.missed.len() >= KINDS {
            self.forget();
        }
        self.missed.insert(worker, from);
    }

    /// Nothing that was known holds, and what looks that are under way will say does not either.
    pub(super) fn forget(&mut self) {
        *self = Self { age: self.age + 1, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_looks() -> Looks {
        Looks::of(WorkerId::generate(), &[], u32::MAX)
    }

    #[test]
    fn a_look_begins_where_the_last_one_ended_and_now_and_then_at_the_beginning() {
        let (mut heads, looks, now) = (Heads::default(), some_looks(), Instant::now());
        let first = heads.begin(looks, now);
        assert_eq!(first.from, None);
        heads.end(looks, first, Some(7), now);
        let second = heads.begin(looks, now + FULL_LOOK / 2);
        assert_eq!(second.from, Some(7));
        heads.end(looks, second, Some(9), now + FULL_LOOK / 2);
        assert_eq!(heads.begin(looks, now + FULL_LOOK / 2).from, Some(9));
        assert_eq!(heads.begin(looks, now + FULL_LOOK).from, None);
        let other = [DefinitionId { name: "order".into(), version: 1 }];
        for others in [some_looks(), Looks { lapses: 1, ..looks }, Looks::of(looks.worker, &other, u32::MAX)] {
            assert_eq!(heads.begin(others, now).from, None, "others begin for themselves");
        }
        heads.forget();
        heads.end(looks, second, Some(9), now + FULL_LOOK / 2);
        assert_eq!(heads.begin(looks, now + FULL_LOOK / 2).from, None, "that was another server's");
    }

    #[test]
    fn after_a_look_that_could_not_take_all_the_next_one_begins_at_the_same_place() {
        let (mut heads, looks, now) = (Heads::default(), some_looks(), Instant::now());
        let first = heads.begin(looks, now);
        heads.end(looks, first, None, now);
        let second = heads.begin(looks, now);
        assert!(!second.full && second.from.is_none());
        heads.end(looks, second, Some(7), now);
        let third = heads.begin(looks, now);
        heads.end(looks, third, None, now);
        assert_eq!(heads.begin(looks, now).from, Some(7));
        // A full one as well: it does not go on behind what it left.
        let fourth = heads.begin(looks, now + FULL_LOOK);
        heads.end(looks, fourth, None, now + FULL_LOOK);
        assert_eq!(heads.begin(looks, now + FULL_LOOK).from, None);
    }

    #[test]
    fn what_a_worker_has_missed_is_found_by_the_next_look() {
        let (mut heads, looks, now) = (Heads::default(), some_looks(), Instant::now());
        let first = heads.begin(looks, now);
        heads.missed(looks.worker, now + FULL_LOOK / 2);
        // It was under way, and may have passed that over.
        heads.end(looks, first, Some(7), now);
        let second = heads.begin(looks, now + FULL_LOOK / 2);
        assert_eq!(second.from, None);
        heads.end(looks, second, Some(7), now + FULL_LOOK / 2);
        assert_eq!(heads.begin(looks, now + FULL_LOOK / 2).from, Some(7));
    }

    #[test]
    fn a_full_look_that_gets_no_answer_is_not_made_again_and_again() {
        let (mut heads, looks, now) = (Heads::default(), some_looks(), Instant::now());
        let first = heads.begin(looks, now);
        heads.end(looks, first, Some(7), now);
        let full = heads.begin(looks, now + FULL_LOOK);
        assert_eq!(full.from, None);
        heads.failed(looks, full, 99, LONGEST, now + 3 * FULL_LOOK);
        let next = heads.begin(looks, now + 3 * FULL_LOOK);
        assert_eq!((next.from, next.since()), (Some(7), 3 * FULL_LOOK), "since the last one that was answered");
        heads.failed(looks, next, 99, LONGEST, now + 5 * FULL_LOOK);
        let next = heads.begin(looks, now + 5 * FULL_LOOK);
        assert_eq!((next.from, next.since()), (Some(7), 5 * FULL_LOOK), "that was none either");
        let later = (0..9).map(|n| now + 5 * FULL_LOOK + n * FULL_LOOK);
        let full = later.map(|at| (at, heads.begin(looks, at))).find(|(at, look)| {
            heads.end(looks, *look, Some(9), *at);
            look.full
        });
        assert!(full.is_some(), "it is tried again");
    }

    #[test]
    fn a_first_look_that_gets_no_answer_keeps_nobody_from_what_is_new() {
        let (mut heads, looks, now) = (Heads::default(), some_looks(), Instant::now());
        let first = heads.begin(looks, now);
        heads.failed(looks, first, 99, FULL_LOOK, now + FULL_LOOK);
        let next = heads.begin(looks, now + FULL_LOOK);
        assert_eq!((next.from, next.full, next.since()), (Some(99), false, FULL_LOOK));
        heads.end(looks, next, Some(99), now + FULL_LOOK);
        assert!(heads.begin(looks, now + 2 * FULL_LOOK).full);
    }

    #[test]
    fn a_full_look_that_takes_long_is_taken_less_often() {
        let (mut heads, looks, now) = (Heads::default(), some_looks(), Instant::now());
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
