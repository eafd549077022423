//! Where a look for due sagas begins.
//!
//! Entries of what was claimed stay in the index until a vacuum removes them, and none does while somebody's long
//! transaction may still see them. Each look from the beginning would read them all. So most looks begin where the last
//! one ended, less ten seconds, and a full look is taken now and then. It finds what was written earlier and committed
//! later than that, what was passed over because somebody held it, and what others put back.

use chrono::{DateTime, Utc};
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

/// What finds the same: a worker's looks for sagas that lapsed so often at most. What one leaves for that, another takes.
type Looks = (WorkerId, u32);

/// Where looks begin.
#[derive(Debug, Default)]
pub(super) struct Heads(HashMap<Looks, Head>);

#[derive(Clone, Copy, Debug)]
struct Head {
    from: DateTime<Utc>,
    full_look_at: Instant,
    /// When the last look ended.
    ended: Instant,
}

/// A look that begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) from: DateTime<Utc>,
    full: bool,
    began: Instant,
}

impl Heads {
    pub(super) fn begin(&self, looks: Looks, now: Instant) -> Look {
        match self.0.get(&looks) {
            // Who has not looked for a while may have missed something.
            Some(head) if now < head.full_look_at && now.duration_since(head.ended) < FULL_LOOK => {
                Look { from: head.from, full: false, began: now }
            }
            _ => Look { from: DateTime::UNIX_EPOCH, full: true, began: now },
        }
    }

    /// A look has found what is due up to `last`, or all of it.
    pub(super) fn end(&mut self, looks: Looks, look: Look, last: Option<DateTime<Utc>>, now: Instant) {
        if self.0.len() >= KINDS && !self.0.contains_key(&looks) {
            self.0.clear();
        }
        let from = last.unwrap_or(DateTime::<Utc>::MAX_UTC);
        let pause = (now.duration_since(look.began) * SHARE).clamp(FULL_LOOK, LONGEST);
        let head = self.0.entry(looks).or_insert(Head { from, full_look_at: now + pause, ended: now });
        (head.from, head.ended) = (from, now);
        if look.full {
            head.full_look_at = now + pause;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_begins_where_the_last_one_ended_and_now_and_then_at_the_beginning() {
        let (mut heads, looks, now) = (Heads::default(), (WorkerId::generate(), u32::MAX), Instant::now());
        let first = heads.begin(looks, now);
        assert_eq!(first.from, DateTime::UNIX_EPOCH);
        let last = DateTime::from_timestamp(1_000_000, 0).unwrap();
        heads.end(looks, first, Some(last), now);
        let second = heads.begin(looks, now + FULL_LOOK / 2);
        assert_eq!(second.from, last);
        heads.end(looks, second, None, now + FULL_LOOK / 2);
        assert_eq!(heads.begin(looks, now + FULL_LOOK / 2).from, DateTime::<Utc>::MAX_UTC);
        assert_eq!(heads.begin(looks, now + FULL_LOOK).from, DateTime::UNIX_EPOCH);
        for others in [(WorkerId::generate(), u32::MAX), (looks.0, 1)] {
            assert_eq!(heads.begin(others, now).from, DateTime::UNIX_EPOCH, "others begin for themselves");
        }
    }

    #[test]
    fn a_full_look_that_takes_long_is_taken_less_often() {
        let (mut heads, looks, now) = (Heads::default(), (WorkerId::generate(), u32::MAX), Instant::now());
        let look = heads.begin(looks, now);
        heads.end(looks, look, None, now + Duration::from_secs(1));
        let full = (2..).map(|second| now + Duration::from_secs(second)).find(|at| {
            let look = heads.begin(looks, *at);
            heads.end(looks, look, None, *at);
            look.full
        });
        assert_eq!(full, Some(now + Duration::from_secs(21)));
        assert!(heads.begin(looks, now + Duration::from_secs(21) + FULL_LOOK).full, "nobody has looked for a while");
    }
}
