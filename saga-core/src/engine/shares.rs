//! What is scarce is shared: however much one takes of it, something is left for the others.
//!
//! A step whose participant hangs would hold all attempts in time, and sagas of one definition all places. So each may
//! take more only while it has less than [`SHARE`] times what is still free. Alone it comes to three quarters; whoever
//! joins finds the rest, and what is left is divided again. It is the dynamic threshold of Choudhury and Hahne
//! ("Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998). Of fewer than four there is nothing to
//! share.

use opentelemetry::StringValue;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::oneshot;

pub(crate) const SHARE: usize = 3;

/// Whether one that has so much may take more of what is free.
pub(crate) const fn may_take(held: usize, free: usize) -> bool {
    held < SHARE.saturating_mul(free)
}

/// A step of a definition, whatever its version: what it waits for is the same.
pub(crate) type StepName = (StringValue, StringValue);

/// Room for attempts, which steps share.
#[derive(Debug)]
pub(crate) struct Attempts(Mutex<Held>);

#[derive(Debug)]
struct Held {
    free: usize,
    /// How many wait, over all steps, and how many ever did.
    waiting: usize,
    number: u64,
    steps: HashMap<StepName, Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    held: usize,
    /// With a number each, in the order in which they came.
    waiting: VecDeque<(u64, oneshot::Sender<Permit>)>,
}

/// Room for one attempt, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    attempts: Arc<Attempts>,
    step: StepName,
}

impl Attempts {
    pub(crate) fn new(most: usize) -> Self {
        Self(Mutex::new(Held { free: most, waiting: 0, number: 0, steps: HashMap::new() }))
    }

    /// Waits for room. `None` never comes, since nobody who waits is forgotten.
    pub(crate) async fn room(self: &Arc<Self>, step: StepName) -> Option<Permit> {
        let turn = {
            let mut held = self.held();
            let Held { free, waiting, number, steps } = &mut *held;
            let queue = steps.entry(step.clone()).or_default();
            if queue.waiting.is_empty() && may_take(queue.held, *free) {
                queue.held += 1;
                *free -= 1;
                return Some(Permit { attempts: self.clone(), step });
            }
            let (turn, comes) = oneshot::channel();
            queue.waiting.push_back((*number, turn));
            *number += 1;
            *waiting += 1;
            comes
        };
        turn.await.ok()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Who is next: of the steps that may take more, the one that has least; of several, the one that has waited longest.
    fn next(&mut self) -> Option<(StepName, oneshot::Sender<Permit>)> {
        while self.waiting > 0 {
            let free = self.free;
            let turn = |queue: &Queue| {
                let (number, _) = queue.waiting.front()?;
                may_take(queue.held, free).then_some((queue.held, *number))
            };
            let waits = self.steps.iter_mut().filter_map(|(step, queue)| Some((turn(queue)?, step, queue)));
            let (_, step, queue) = waits.min_by_key(|(turn, ..)| *turn)?;
            let (_, turn) = queue.waiting.pop_front()?;
            self.waiting -= 1;
            // Who has gone takes nothing.
            if !turn.is_closed() {
                queue.held += 1;
                self.free -= 1;
                return Some((step.clone(), turn));
            }
        }
        None
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut held = self.attempts.held();
        held.free += 1;
        if let Some(queue) = held.steps.get_mut(&self.step) {
            queue.held -= 1;
        }
        loop {
            let Some((step, turn)) = held.next() else { return };
            drop(held);
            // Who has gone this very moment gives it back by dropping it.
            let _ = turn.send(Self { attempts: self.attempts.clone(), step });
            held = self.attempts.held();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn step(name: &'static str) -> StepName {
        ("order".into(), name.into())
    }

    #[tokio::test]
    async fn a_step_that_hangs_leaves_room_for_others_and_they_share_what_is_left() {
        let attempts = Arc::new(Attempts::new(64));
        let take = |name: &'static str| {
            let taken = std::iter::from_fn(|| attempts.room(step(name)).now_or_never());
            taken.take(64).collect::<Vec<_>>()
        };
        let hangs = take("hangs");
        assert_eq!(hangs.len(), 48);
        let hangs_too = take("hangs too");
        assert_eq!(hangs_too.len(), 12);
        assert_eq!(take("a third").len(), 3);
        drop(hangs_too);
        drop(hangs);
    }

    #[tokio::test]
    async fn what_gets_free_goes_to_the_step_that_has_least_and_to_nobody_who_has_gone() {
        let attempts = Arc::new(Attempts::new(2));
        let (one, other) = (attempts.room(step("a")).await, attempts.room(step("a")).await);
        let (mut gone, mut second) = (Box::pin(attempts.room(step("a"))), Box::pin(attempts.room(step("a"))));
        let mut third = Box::pin(attempts.room(step("b")));
        assert!((&mut gone).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        drop(gone);
        drop(one);
        assert!((&mut second).now_or_never().is_none(), "it has one already");
        let third = third.now_or_never().expect("it has none");
        drop(third);
        let second = second.now_or_never().expect("nobody else waits");
        drop((second, other));
        assert_eq!(attempts.held().free, 2);
    }

    #[tokio::test]
    async fn where_there_are_few_each_step_has_its_turn() {
        let attempts = Arc::new(Attempts::new(1));
        let mut turns = vec![];
        let mut busy = attempts.room(step("a")).await;
        let mut waiting: VecDeque<_> =
            ["b", "c", "a", "b", "c", "a"].map(|name| (name, Box::pin(attempts.room(step(name))))).into();
        for (_, room) in &mut waiting {
            assert!(room.now_or_never().is_none());
        }
        while !waiting.is_empty() {
            drop(busy.take());
            let next = waiting.iter_mut().position(|(_, room)| {
                busy = room.now_or_never().flatten();
                busy.is_some()
            });
            turns.push(waiting.remove(next.expect("somebody's turn")).map(|(name, _)| name));
        }
        assert_eq!(turns, ["b", "c", "a", "b", "c", "a"].map(Some));
    }

    #[tokio::test]
    async fn what_is_given_to_somebody_who_goes_comes_back() {
        let attempts = Arc::new(Attempts::new(1));
        let one = attempts.room(step("a")).await;
        let mut waits = Box::pin(attempts.room(step("a")));
        assert!((&mut waits).now_or_never().is_none());
        drop(one);
        drop(waits);
        assert!(attempts.room(step("a")).now_or_never().is_some());
    }
}
