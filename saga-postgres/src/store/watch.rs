//! Which workers are dead. The clock alone does not decide: it may be set, and after a failover it is another server's.
//!
//! Each process looks at all workers several times a lease. A worker is dead when it wrote nothing for 1 1/4 leases of
//! such looks; or, sooner, when its lease is over by the server's clock and it wrote nothing for [a while](ENOUGH).
//! Only regular looks count. A process that stood still, or whose database was away, knows nothing about the others:
//! they may have stood still as well, and get their time to come back.

use chrono::{DateTime, Utc};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// Workers beat every two seconds at least.
const ENOUGH: Duration = Duration::from_secs(6);
/// What an earlier release wrote says nothing of its lease. This is the default.
const USUAL: Duration = Duration::from_secs(15);

/// A worker, as its row has it.
#[derive(Clone, Debug)]
pub(super) struct Worker {
    pub(super) id: Uuid,
    pub(super) until: DateTime<Utc>,
    /// By the server's clock.
    pub(super) expired: bool,
    /// `None` of a worker of an earlier release.
    pub(super) lease: Option<Duration>,
}

#[derive(Debug, Default)]
pub(super) struct Watch {
    looked: Option<Instant>,
    silent: HashMap<Uuid, (DateTime<Utc>, Duration)>,
}

impl Watch {
    /// A look that came to nothing: what was seen before says nothing any more.
    pub(super) fn lost_sight(&mut self) {
        *self = Self::default();
    }

    /// Takes note of a look, and says who is dead.
    pub(super) fn look(&mut self, workers: &[Worker], now: Instant) -> Vec<Worker> {
        let since = self.looked.replace(now).map(|looked| now.duration_since(looked)).unwrap_or_default();
        let before = std::mem::take(&mut self.silent);
        let mut dead = vec![];
        for worker in workers {
            let lease = worker.lease.unwrap_or(USUAL);
            let silent = match before.get(&worker.id) {
                // After a pause of our own it may not have had its chance to write.
                Some((until, silent)) if *until == worker.until => *silent + since.min(lease.min(ENOUGH) / 2),
                _ => Duration::ZERO,
            };
            let over = worker.expired && silent >= lease.min(ENOUGH);
            // Its end may lie in a future that will not come.
            let ahead = worker.lease.is_some() && silent >= lease + lease / 4;
            if over || ahead {
                dead.push(worker.clone());
            }
            self.silent.insert(worker.id, (worker.until, silent));
        }
        dead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    fn worker(beats: i64, expired: bool) -> Worker {
        let until = DateTime::from_timestamp(1_000_000 + beats, 0).unwrap();
        Worker { id: Uuid::nil(), until, expired, lease: Some(LEASE) }
    }

    /// Looks every two seconds, and says after how many the worker was found dead.
    fn found_dead(look: impl Fn(u32) -> Worker, looks: u32) -> Option<u32> {
        let (mut watch, began) = (Watch::default(), Instant::now());
        (0..looks).find(|n| !watch.look(&[look(*n)], began + Duration::from_secs(2) * *n).is_empty())
    }

    #[test]
    fn who_beats_lives_whatever_the_clock_says() {
        assert_eq!(found_dead(|n| worker(n.into(), true), 100), None);
    }

    #[test]
    fn who_is_silent_and_whose_lease_is_over_is_dead_after_a_while() {
        assert_eq!(found_dead(|_| worker(0, true), 100), Some(3));
    }

    #[test]
    fn who_is_silent_is_dead_when_the_lease_is_over_by_our_own_clock_too() {
        assert_eq!(found_dead(|_| worker(0, false), 100), Some(10));
    }

    #[test]
    fn who_could_not_look_says_nothing_about_the_others() {
        let (mut watch, began) = (Watch::default(), Instant::now());
        watch.look(&[worker(0, false)], began);
        watch.lost_sight();
        assert!(watch.look(&[worker(0, true)], began + 10 * LEASE).is_empty());
        // It stood still itself: little of that counts.
        assert!(watch.look(&[worker(0, true)], began + 20 * LEASE).is_empty());
    }

    #[test]
    fn of_an_earlier_release_the_clock_decides() {
        let old = |expired| Worker { lease: None, ..worker(0, expired) };
        assert_eq!(found_dead(|_| old(false), 100), None);
        assert_eq!(found_dead(|_| old(true), 100), Some(3));
    }
}
