//! What a lane knows of its topics: which of them are left alone for a while, which of their keys are, and how much of
//! each travels at once.
//!
//! A topic begins with a few events a round, and with each answer that comes in time it may have twice as many. One
//! whose answer does not come in time is *slow*: it may have half as many, and rounds go on without waiting for it. One
//! that took nothing of several keys is *away*: it is left alone, asked with an event a shard after growing pauses, and
//! is back with the first that it takes. What it does not take of single keys, while it takes others, is theirs alone.

use super::plan::Key;
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};
use tokio::time::Instant;

/// So many events of a shard a topic may have in a round when nothing is known of it; a slow one has no less.
const FIRST: u32 = 10;
/// So many keys of which a topic took nothing, and nothing else meanwhile, show that it is away.
const AWAY: usize = 8;
/// For how long a key is left alone, and a topic at first.
const PAUSE: Duration = Duration::from_secs(1);
/// For how long a topic is left alone at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// So many keys of a topic may wait by themselves; with more of them the topic waits.
const MOST_KEYS: usize = 1_000;
/// So many topics are remembered with nothing to be said of them but how much they take.
const MOST_TOPICS: usize = 1_000;

pub(super) struct Topics {
    /// How many events of a shard a round takes at most.
    batch: u32,
    known: HashMap<String, Topic>,
    /// When it was last asked what is to be read.
    looked: Option<Instant>,
}

struct Topic {
    /// How many events of a shard it may have in a round.
    most: u32,
    /// A call has no answer yet: nothing else is sent meanwhile.
    under_way: bool,
    /// Its last call was not answered in time.
    slow: bool,
    /// Of how many keys it took nothing since it last took something.
    silent: usize,
    /// How often in a row it was found to be away.
    failures: u32,
    until: Option<Instant>,
    /// The keys that are left alone, and until when; and those that were until the last look, or until their topic was
    /// left alone.
    keys: HashMap<String, Instant>,
}

/// What is to be read now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// The topics that are left alone.
    pub(super) away: Vec<String>,
    /// The topics and the keys that are left alone,
    pub(super) keys: (Vec<String>, Vec<String>),
    /// and those that are asked for just now, or will be when their topic comes back: they may be left alone again.
    pub(super) others: (Vec<String>, Vec<String>),
    /// How much the others may have, if it is not the usual.
    pub(super) own: (Vec<String>, Vec<i64>),
    /// The usual.
    pub(super) usual: i64,
}

impl Topics {
    pub(super) fn new(batch: u32) -> Self {
        Self { batch, known: HashMap::new(), looked: None }
    }

    pub(super) fn now(&mut self) -> Limits {
        let (now, usual) = (Instant::now(), FIRST.min(self.batch));
        let mut limits = Limits { usual: usual.into(), ..Limits::default() };
        let is_much = self.known.len() > MOST_TOPICS;
        let before = self.looked.replace(now);
        self.known.retain(|_, topic| {
            topic.until = topic.until.filter(|until| *until > now);
            let is_away = topic.under_way || topic.until.is_some();
            topic.keys.retain(|_, until| is_away || before.is_none_or(|before| *until > before));
            let is_plain = topic.keys.is_empty() && topic.failures == 0 && !topic.slow;
            topic.under_way || topic.until.is_some() || !is_plain || !is_much
        });
        for (name, topic) in &self.known {
            let is_away = topic.under_way || topic.until.is_some();
            for (key, until) in &topic.keys {
                let is_left_alone = !is_away && *until > now;
                let (topics, keys) = if is_left_alone { &mut limits.keys } else { &mut limits.others };
                topics.push(name.clone());
                keys.push(key.clone());
            }
            if is_away {
                limits.away.push(name.clone());
                continue;
            }
            if topic.most != usual {
                limits.own.0.push(name.clone());
                limits.own.1.push(topic.most.into());
            }
        }
        limits
    }

    /// When there may be something to read that is left alone now.
    pub(super) fn next(&self) -> Option<Instant> {
        // What was left alone by the last look, even if its time has come meanwhile.
        let is_left_alone = |until: &&Instant| self.looked.is_none_or(|looked| **until > looked);
        let topics = self.known.values().filter(|topic| !topic.under_way);
        let next_key = |topic: &Topic| topic.keys.values().filter(is_left_alone).min().copied();
        topics.filter_map(|topic| topic.until.or_else(|| next_key(topic))).min()
    }

    /// Events of it are on their way.
    pub(super) fn called(&mut self, topic: &str) {
        self.of(topic).under_way = true;
    }

    /// A round goes on without its answer.
    pub(super) fn left_behind(&mut self, topic: &str) {
        self.of(topic).slow = true;
    }

    /// Whether a round waits for it.
    pub(super) fn is_waited_for(&self, topic: &str) -> bool {
        self.known.get(topic).is_none_or(|topic| !topic.slow && topic.failures == 0)
    }

    /// It was waited for for too long.
    pub(super) fn given_up(&mut self, topic: &str) {
        let topic = self.of(topic);
        topic.under_way = false;
        topic.is_away(Instant::now());
    }

    /// What it refused cannot be put aside now.
    pub(super) fn put_off(&mut self, topic: &str) {
        self.of(topic).until = Some(Instant::now() + PAUSE);
    }

    /// It has answered: whether it took anything, or refused it for good; the keys that it did not take now.
    pub(super) fn answered<'k>(
        &mut self,
        topic: &str,
        in_time: bool,
        took: bool,
        not_now: impl Iterator<Item = &'k Key>,
    ) {
        let (now, batch) = (Instant::now(), self.batch);
        let topic = self.of(topic);
        topic.under_way = false;
        if took {
            if topic.failures > 0 {
                topic.keys.clear();
            }
            (topic.silent, topic.failures) = (0, 0);
            topic.most = if in_time { topic.most * 2 } else { topic.most / 2 }.max(FIRST).min(batch);
            topic.slow = !in_time;
        }
        let keys: HashSet<&str> = not_now.map(|(_, key)| key.as_str()).collect();
        if !took {
            topic.silent += keys.len();
        }
        let mut until = now + PAUSE;
        if topic.silent >= AWAY {
            // When it is asked again, then with other keys: those may be what is wrong.
            until += topic.is_away(now);
        }
        for key in keys {
            if topic.keys.len() >= MOST_KEYS {
                topic.keys.retain(|_, until| *until > now);
            }
            if topic.keys.len() >= MOST_KEYS {
                topic.until = topic.until.or(Some(now + PAUSE));
                break;
            }
            topic.keys.insert(key.to_owned(), until);
        }
    }

    fn of(&mut self, topic: &str) -> &mut Topic {
        let most = FIRST.min(self.batch);
        self.known.entry(topic.to_owned()).or_insert_with(|| Topic {
            most,
            under_way: false,
            slow: false,
            silent: 0,
            failures: 0,
            until: None,
            keys: HashMap::new(),
        })
    }
}

impl Topic {
    /// Leaves it alone. Answers for how long.
    fn is_away(&mut self, now: Instant) -> Duration {
        let pause = (PAUSE * 2_u32.pow(self.failures.min(16))).min(LONGEST_PAUSE);
        self.failures += 1;
        self.most = 1;
        self.until = Some(now + pause);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    fn keys(count: usize) -> Vec<Key> {
        (0..count).map(|n| ("events".to_owned(), n.to_string())).collect()
    }

    fn refuse(topics: &mut Topics, count: usize) {
        topics.answered("events", true, false, keys(count).iter());
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_left_alone_for_a_while_and_its_topic_is_not() {
        let mut topics = Topics::new(200);
        topics.answered("events", true, true, keys(1).iter());
        let limits = topics.now();
        assert_eq!((limits.away, limits.keys), (vec![], (vec!["events".to_owned()], vec!["0".to_owned()])));
        let next = topics.next();
        assert_eq!(next, Some(Instant::now() + PAUSE));
        assert_eq!(limits.others, (vec![], vec![]));
        advance(PAUSE).await;
        // Its time has come during a look that left it alone.
        assert_eq!(topics.next(), next);
        let limits = topics.now();
        assert_eq!((limits.keys.1.len(), limits.others.1), (0, vec!["0".to_owned()]));
        assert_eq!(topics.next(), None);
        assert_eq!(topics.now().others, (vec![], vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn the_keys_of_a_topic_that_is_left_alone_are_remembered() {
        let mut topics = Topics::new(200);
        topics.answered("events", true, true, keys(1).iter());
        topics.called("events");
        let limits = topics.now();
        assert_eq!((limits.keys.1.len(), limits.others.1), (0, vec!["0".to_owned()]));
    }

    #[tokio::test(start_paused = true)]
    async fn keys_that_are_only_remembered_make_room() {
        let mut topics = Topics::new(200);
        for _ in 0..2 {
            topics.answered("events", true, true, keys(MOST_KEYS).iter());
            assert_eq!((topics.now().away, topics.now().keys.1.len()), (vec![], MOST_KEYS));
            advance(PAUSE).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_that_takes_nothing_of_several_keys_is_asked_after_growing_pauses_with_little() {
        let mut topics = Topics::new(200);
        topics.answered("others", true, true, [].iter());
        for pause in [1, 2, 4, 5, 5] {
            refuse(&mut topics, AWAY);
            assert_eq!(topics.now().away, ["events"]);
            assert_eq!(topics.next(), Some(Instant::now() + Duration::from_secs(pause)));
            advance(Duration::from_secs(pause)).await;
            let limits = topics.now();
            assert_eq!(limits.away, [""; 0]);
            assert!(limits.own.0.iter().zip(limits.own.1).any(|own| own == (&"events".to_owned(), 1)));
        }
        topics.answered("events", true, true, [].iter());
        assert_eq!((topics.now().away, topics.now().keys.1), (vec![], vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_taken_of_a_few_keys_says_nothing_of_their_topic() {
        let mut topics = Topics::new(200);
        refuse(&mut topics, AWAY - 1);
        assert_eq!((topics.now().away, topics.now().keys.1.len()), (vec![], AWAY - 1));
        topics.answered("events", true, true, [].iter());
        refuse(&mut topics, AWAY - 1);
        assert_eq!(topics.now().away, [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_answers_in_time_gets_more_and_what_does_not_gets_little_and_is_not_waited_for() {
        let mut topics = Topics::new(200);
        let most = |topics: &mut Topics| topics.now().own.1.first().copied();
        assert_eq!(topics.now().usual, 10);
        for expected in [20, 40, 80, 160, 200, 200] {
            topics.called("events");
            assert_eq!(topics.now().away, ["events"]);
            topics.answered("events", true, true, [].iter());
            assert_eq!(most(&mut topics), Some(expected));
        }
        topics.left_behind("events");
        assert!(!topics.is_waited_for("events"));
        for expected in [Some(100), Some(50), Some(25), Some(12), None, None] {
            topics.answered("events", false, true, [].iter());
            assert_eq!((most(&mut topics), topics.is_waited_for("events")), (expected, false));
        }
        topics.answered("events", true, true, [].iter());
        assert!(topics.is_waited_for("events"));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_remembered_than_a_bounded_number_of_keys_and_plain_topics() {
        let mut topics = Topics::new(200);
        topics.answered("events", true, true, keys(3 * MOST_KEYS).iter());
        assert_eq!(topics.known["events"].keys.len(), MOST_KEYS);
        assert_eq!(topics.now().away, ["events"]);
        (0..3 * MOST_TOPICS).for_each(|n| topics.answered(&n.to_string(), true, true, [].iter()));
        topics.now();
        assert_eq!(topics.known.len(), 1);
    }
}
