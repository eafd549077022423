//! Room in the client's queue. A topic that is away may fill a quarter of it: the others need it too.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// Of the queue, a topic may have one part of so many.
const PARTS: u32 = 4;
/// How long room is waited for: whoever has other topics to publish to as well does not wait for ever.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many topics are remembered that have nothing in the queue.
const MOST_TOPICS: usize = 1_000;

pub(crate) struct Room {
    /// In kibibytes: what a topic may have, and as how much each record counts at least.
    most: u32,
    least: u32,
    topics: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// A record's, until the client has done with it.
pub(crate) type Place = OwnedSemaphorePermit;

impl Room {
    /// In a queue of so many records and kibibytes.
    pub(crate) fn of(records: u32, kibibytes: u32) -> Self {
        let most = (kibibytes / PARTS).max(1);
        Self { most, least: kibibytes.div_ceil(records.max(1)).clamp(1, most), topics: Mutex::default() }
    }

    /// Waits a while for room for a record of so many bytes.
    pub(crate) async fn place(&self, topic: &str, bytes: usize) -> Option<Place> {
        let needed = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).clamp(self.least, self.most);
        let of_topic = self.of_topic(topic);
        // The semaphore is never closed.
        timeout(PATIENCE, of_topic.acquire_many_owned(needed)).await.ok()?.ok()
    }

    fn of_topic(&self, topic: &str) -> Arc<Semaphore> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = topics.get(topic) {
            return found.clone();
        }
        if topics.len() >= MOST_TOPICS {
            topics.retain(|_, room| Arc::strong_count(room) > 1);
        }
        let new = Arc::new(Semaphore::new(self.most as usize));
        topics.insert(topic.to_owned(), new.clone());
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test(start_paused = true)]
    async fn a_topic_may_have_a_part_of_the_queue_and_another_one_another() {
        let room = Room::of(20_000, 65_536);
        let whole = room.place("away", 100 << 20).await;
        assert!(whole.is_some(), "one record may be larger");
        assert!(room.place("away", 1).await.is_none());
        assert!(room.place("other", 1).await.is_some());
        let waits = room.place("away", 1);
        drop(whole);
        assert!(waits.await.is_some());
    }

    #[tokio::test]
    async fn many_small_records_fill_it_as_well_as_some_large_ones() {
        let room = Room::of(400, 65_536);
        let places = || room.place("away", 1).now_or_never().flatten();
        let held: Vec<Place> = std::iter::from_fn(places).collect();
        assert_eq!(held.len(), 99);
    }

    #[tokio::test]
    async fn topics_that_have_nothing_in_the_queue_are_forgotten() {
        let room = Room::of(20_000, 65_536);
        let held = room.place("away", 1).await;
        for n in 0..3 * MOST_TOPICS {
            assert!(room.place(&n.to_string(), 1).await.is_some());
        }
        let topics = room.topics.lock().unwrap();
        assert!(topics.len() <= MOST_TOPICS && topics.contains_key("away"), "{}", topics.len());
        drop(held);
    }
}
