//! Where a look begins: for sagas that are due, and for letters.
//!
//! Entries of what was claimed or read stay in the index until a vacuum removes them, and none does while somebody's
//! long transaction may still see them. Each look from the beginning would read them all. So most looks begin where the
//! ones before ended, and a full look is taken now and then. It finds what was passed over because somebody held it,
//! and what others put back.

use saga_core::{WorkerId, store::DefinitionId};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Between two full looks, at least.
const FULL_LOOK: Duration = Duration::from_secs(5);
/// A full look takes so small a share of the time, if it takes long.
const SHARE: u32 = 20;
const LONGEST: Duration = Duration::from_secs(45);
/// Those of former workers need not be remembered.
const WORKERS: usize = 64;
const KINDS: usize = 4096;

/// How long to wait after what reads all that there is and took so long.
pub(super) fn pause(took: Duration) -> Duration {
    (took * SHARE).clamp(FULL_LOOK, LONGEST)
}

/// A worker's looks for sagas of these definitions that lapsed so often at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Looks<'d> {
    pub(super) worker: WorkerId,
    pub(super) lapses: u32,
    pub(super) definitions: &'d [DefinitionId],
}

/// What finds the same. What a look leaves because of its lapses, or its definition, another one takes.
type Kind = (WorkerId, u32, DefinitionId);

impl Looks<'_> {
    fn kinds(self) -> impl Iterator<Item = Kind> {
        self.definitions.iter().map(move |definition| (self.worker, self.lapses, definition.clone()))
    }
}

/// Where looks begin.
#[derive(Debug)]
pub(super) struct Heads<N> {
    heads: HashMap<Kind, Head<N>>,
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

impl<N: Copy + Ord> Heads<N> {
    pub(super) fn begin(&self, looks: Looks<'_>, now: Instant) -> Look<N> {
        let full = Look { from: None, full: true, began: now, before: now, age: self.age };
        // Who has not looked for a while may have missed something.
        let goes_on = |head: &&Head<N>| now < head.full_look_at && now.duration_since(head.ended) < FULL_LOOK;
        let heads: Option<Vec<&Head<N>>> = looks.kinds().map(|kind| self.heads.get(&kind).filter(goes_on)).collect();
        match heads {
            Some(heads) if !self.missed.contains_key(&looks.worker) => Look {
                from: heads.iter().map(|head| head.from).min().flatten(),
                full: false,
                before: heads.iter().map(|head| head.answered).min().unwrap_or(now),
                ..full
            },
            _ => full,
        }
    }

    /// A look has found all that there was, and the next one may begin at `next`. `None` if there was more than it
    /// could take: the next one begins where this one did.
    pub(super) fn end(&mut self, looks: Looks<'_>, look: Look<N>, next: Option<N>, now: Instant) {
        if look.age != self.age {
            return;
        }
        if self.heads.len() >= KINDS && !looks.kinds().all(|kind| self.heads.contains_key(&kind)) {
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
        let (full_look_at, answered) = (now + pause(now.duration_since(look.began)), look.began);
        for kind in looks.kinds() {
            let head = self.heads.entry(kind).or_insert(Head { from: None, full_look_at, ended: now, answered });
            (head.from, head.ended, head.answered) = (next.or(look.from), now, answered);
            if look.full {
                head.full_look_at = full_look_at;
            }
        }
    }

    /// A look has got no answer. If it was a full one, and takes too long, looks go on for a while from where those before
    /// it ended, or, if there were none, from `new`. What failed at once says nothing of how long it takes.
    pub(super) fn failed(&mut self, looks: Looks<'_>, look: Look<N>, new: N, now: Instant) {
        let took = now.duration_since(look.began);
        if look.age != self.age || took < FULL_LOOK {
            return;
        }
        if look.full {
            self.missed.remove(&looks.worker);
        }
        let (from, full_look_at, answered) = (Some(new), now, look.began);
        for kind in looks.kinds() {
            let head = self.heads.entry(kind).or_insert(Head { from, full_look_at, ended: now, answered });
            if look.full {
                head.full_look_at = now + pause(took);
            }
            head.ended = now;
        }
    }

    /// The worker has missed something: its looks are full ones until one that begins then or later has found it.
    pub(super) fn missed(&mut self, worker: WorkerId, from: Instant) {
        if self.missed.len() >= WORKERS {
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

    fn definitions() -> Vec<DefinitionId> {
        ["order", "trip"].map(|name| DefinitionId { name: name.into(), version: 1 }).into()
    }

    fn looks(definitions: &[DefinitionId]) -> Looks<'_> {
        Looks { worker: WorkerId::generate(), lapses: u32::MAX, definitions }
    }

    #[test]
    fn a_look_begins_where_the_last_one_ended_and_now_and_then_at_the_beginning() {
        let (mut heads, both, now) = (Heads::default(), definitions(), Instant::now());
        let looks = looks(&both);
        let first = heads.begin(looks, now);
        assert_eq!(first.from, None);
        heads.end(looks, first, Some(7), now);
        let second = heads.begin(looks, now + FULL_LOOK / 2);
        assert_eq!(second.from, Some(7));
        heads.end(looks, second, Some(9), now + FULL_LOOK / 2);
        assert_eq!(heads.begin(looks, now + FULL_LOOK / 2).from, Some(9));
        assert_eq!(heads.begin(looks, now + FULL_LOOK).from, None);
        for others in [Looks { worker: WorkerId::generate(), ..looks }, Looks { lapses: 1, ..looks }] {
            assert_eq!(heads.begin(others, now).from, None, "others begin for themselves");
        }
        heads.forget();
        heads.end(looks, second, Some(9), now + FULL_LOOK / 2);
        assert_eq!(heads.begin(looks, now + FULL_LOOK / 2).from, None, "that was another server's");
    }

    #[test]
    fn after_a_look_that_could_not_take_all_the_next_one_begins_at_the_same_place() {
        let (mut heads, both, now) = (Heads::default(), definitions(), Instant::now());
        let looks = looks(&both);
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
        let (mut heads, both, now) = (Heads::default(), definitions(), Instant::now());
        let looks = looks(&both);
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
    fn a_look_for_several_definitions_begins_where_any_of_them_needs_it() {
        let (mut heads, both, now) = (Heads::default(), definitions(), Instant::now());
        let looks = looks(&both);
        let one = Looks { definitions: &both[..1], ..looks };
        let second = Duration::from_secs(1);
        let first = heads.begin(looks, now);
        heads.end(looks, first, Some(7), now);
        let look = heads.begin(one, now + second);
        heads.end(one, look, Some(9), now + second);
        assert_eq!(heads.begin(one, now + 2 * second).from, Some(9));
        let next = heads.begin(looks, now + 2 * second);
        assert_eq!((next.from, next.since()), (Some(7), 2 * second));
        heads.end(looks, next, Some(11), now + 2 * second);
        assert_eq!(heads.begin(one, now + 2 * second).from, Some(11));
    }

    /// When the first full look begins, of those that are taken often enough.
    fn full_look(heads: &mut Heads<i32>, looks: Looks<'_>, from: Instant) -> Option<Duration> {
        (0..40).map(|n| n * FULL_LOOK / 2).find(|after| {
            let look = heads.begin(looks, from + *after);
            heads.end(looks, look, Some(9), from + *after);
            look.full
        })
    }

    #[test]
    fn a_full_look_that_gets_no_answer_is_not_made_again_and_again() {
        let (mut heads, both, now) = (Heads::default(), definitions(), Instant::now());
        let looks = looks(&both);
        let first = heads.begin(looks, now);
        heads.end(looks, first, Some(7), now);
        let full = heads.begin(looks, now + FULL_LOOK);
        assert_eq!(full.from, None);
        heads.failed(looks, full, 99, now + 3 * FULL_LOOK);
        let next = heads.begin(looks, now + 3 * FULL_LOOK);
        assert_eq!((next.from, next.since()), (Some(7), 3 * FULL_LOOK), "since the last one that was answered");
        heads.failed(looks, next, 99, now + 5 * FULL_LOOK);
        let next = heads.begin(looks, now + 5 * FULL_LOOK);
        assert_eq!((next.from, next.since()), (Some(7), 5 * FULL_LOOK), "that was none either");
        assert_eq!(full_look(&mut heads, looks, now + 5 * FULL_LOOK), Some(LONGEST - 2 * FULL_LOOK));
    }

    #[test]
    fn a_first_look_that_gets_no_answer_keeps_nobody_from_what_is_new() {
        let (mut heads, both, now) = (Heads::default(), definitions(), Instant::now());
        let looks = looks(&both);
        let first = heads.begin(looks, now);
        heads.failed(looks, first, 99, now + FULL_LOOK);
        let next = heads.begin(looks, now + FULL_LOOK);
        assert_eq!((next.from, next.full, next.since()), (Some(99), false, FULL_LOOK));
        assert_eq!(full_look(&mut heads, looks, now + FULL_LOOK), Some(LONGEST));
    }

    #[test]
    fn a_look_that_fails_at_once_is_made_again() {
        let (mut heads, both, now) = (Heads::default(), definitions(), Instant::now());
        let looks = looks(&both);
        let first = heads.begin(looks, now);
        heads.failed(looks, first, 99, now + Duration::from_secs(1));
        assert!(heads.begin(looks, now + Duration::from_secs(1)).full);
    }

    #[test]
    fn a_full_look_that_takes_long_is_taken_less_often() {
        let (mut heads, both, now) = (Heads::default(), definitions(), Instant::now());
        let looks = looks(&both);
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
