//! Replies on their way to the orchestrators. A reply topic that is away must not stop the commands of others for long.
//!
//! - *At once.* Each topic has a call of its own, and none waits for another's answer.
//! - *Patience.* A partition waits while one of its replies cannot be published, for [`PATIENCE`]. Then the command is
//!   a dead letter, and the partition goes on. Nothing is lost by that: the answer stands in the inbox, and the
//!   orchestrator, which gets no reply in time, sends the command again and is answered then.
//! - *The broker itself.* Where nothing can be published, it is the broker that is away. Then no topic is given up, and
//!   the partition waits for as long as it takes: a dead letter would wait too, and be there when the broker is back.
//!   That the broker works is seen from what was published a moment ago; else the transport is asked whether it
//!   [takes dead letters](Transport::takes_dead_letters).
//! - *A part of a topic.* A partition without a leader takes only its own keys with it. So a topic that was away is
//!   published to key by key, and it has its patience back when nothing has failed for as long.

use crate::transport::{Outgoing, PublishError, Transport};
use futures::future::join_all;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, timeout},
};

/// How long a reply topic may hold up others: the election of a leader, and a broker's restart, are over by then.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one call may take, and how long to a topic that is given up.
const CALL: Duration = Duration::from_secs(10);
const SHORT_CALL: Duration = Duration::from_secs(1);
/// How long ago the broker may have been seen to work. More than a call and the pause before the next.
const RECENT: Duration = Duration::from_secs(20);
/// So many topics that are away are remembered: their names come with the commands.
const MOST_TOPICS: usize = 1_000;

/// The way of a participant's replies.
pub(super) struct Replies {
    transport: Arc<dyn Transport>,
    /// The topics that the commands come from.
    commands: Vec<&'static str>,
    known: Mutex<Known>,
    /// What the transport said about dead letters, and when. Who holds the lock asks.
    asked: AsyncMutex<Option<(Instant, bool)>>,
}

/// Why a reply was not published.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum NotPublished {
    /// Nothing is known: its command comes again.
    #[error("{0}")]
    Unavailable(String),
    /// Its command is a dead letter.
    #[error("{0}")]
    DeadLetter(String),
}

/// Replies to one topic that are published together.
#[derive(Default)]
struct Call {
    topic: String,
    /// Where each is in the batch.
    places: Vec<usize>,
    replies: Vec<Outgoing>,
}

type Answers = Vec<Result<(), PublishError>>;

impl Replies {
    pub(super) fn new(transport: Arc<dyn Transport>, commands: Vec<&'static str>) -> Self {
        Self { transport, commands, known: Mutex::default(), asked: AsyncMutex::default() }
    }

    /// Publishes replies. Answers one by one, in their order.
    pub(super) async fn publish(&self, replies: Vec<Outgoing>) -> Vec<Result<(), NotPublished>> {
        let mut published = vec![Ok(()); replies.len()];
        let calls = self.calls(replies);
        let answers: Vec<Answers> = join_all(calls.iter().map(|call| self.call(call))).await;
        let failed: BTreeSet<&str> = calls
            .iter()
            .zip(&answers)
            .filter(|(_, answers)| any_failed(answers))
            .map(|(call, _)| &*call.topic)
            .collect();
        let broker_works = failed.is_empty() || self.broker_works().await;
        let mut known = self.known();
        for call in calls.iter().filter(|call| !failed.contains(&*call.topic)) {
            known.works(&call.topic);
        }
        let mut away: HashMap<&str, Duration> = HashMap::new();
        if broker_works {
            away.extend(failed.iter().map(|topic| (*topic, known.fails(topic))));
        }
        for (call, answers) in calls.iter().zip(answers) {
            let away = away.get(&*call.topic).copied().unwrap_or_default();
            for (place, answer) in call.places.iter().zip(answers) {
                published[*place] = answer.map_err(|error| NotPublished::of(error, &call.topic, away));
            }
        }
        published
    }

    /// A call for each topic; for each key, where a part of the topic may be away. The order in a call is the batch's.
    fn calls(&self, replies: Vec<Outgoing>) -> Vec<Call> {
        let known = self.known();
        let mut calls = BTreeMap::<(String, Option<String>), Call>::new();
        for (place, reply) in replies.into_iter().enumerate() {
            let topic = reply.topic.clone();
            let key = known.away.contains_key(&topic).then(|| reply.message.key.clone());
            let call = calls.entry((topic.clone(), key)).or_insert_with(|| Call { topic, ..Call::default() });
            call.places.push(place);
            call.replies.push(reply);
        }
        calls.into_values().collect()
    }

    /// While the broker as a whole is away, a call goes on: to make it anew would fill the client with repeats.
    async fn call(&self, call: &Call) -> Answers {
        let mut publishing = self.transport.publish(&call.replies);
        let mut allowed = if self.known().is_given_up(&call.topic) { SHORT_CALL } else { CALL };
        let mut answers = loop {
            if let Ok(answers) = timeout(allowed, &mut publishing).await {
                break answers;
            }
            if self.broker_works().await {
                break vec![];
            }
            allowed = CALL;
        };
        if answers.iter().any(Result::is_ok) {
            self.known().published = Some(Instant::now());
        }
        let unanswered = PublishError::Unavailable("there was no answer in time".into());
        answers.resize(call.replies.len(), Err(unanswered));
        answers
    }

    /// Whether the broker as a whole works. If it does not, no topic counts as away: each has its patience anew.
    async fn broker_works(&self) -> bool {
        let mut asked = self.asked.lock().await;
        if self.known().published.is_some_and(is_recent) {
            return true;
        }
        let works = match asked.filter(|(at, _)| is_recent(*at)) {
            Some((_, works)) => works,
            None => {
                let topics = self.commands.iter().map(|topic| self.transport.takes_dead_letters(topic));
                let works = join_all(topics).await.into_iter().all(|takes| takes);
                *asked = Some((Instant::now(), works));
                works
            }
        };
        if !works {
            self.known().away.clear();
        }
        works
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NotPublished {
    /// What an error means for a reply to a topic that has been away for so long.
    fn of(error: PublishError, topic: &str, away: Duration) -> Self {
        match error {
            PublishError::Refused(error) => Self::DeadLetter(format!("its reply was refused: {error}")),
            PublishError::Unavailable(error) if away >= PATIENCE => {
                let seconds = away.as_secs();
                Self::DeadLetter(format!("its reply topic `{topic}` has been away for {seconds} s: {error}"))
            }
            PublishError::Unavailable(error) => Self::Unavailable(error),
        }
    }
}

fn any_failed(answers: &[Result<(), PublishError>]) -> bool {
    answers.iter().any(|answer| matches!(answer, Err(PublishError::Unavailable(_))))
}

fn is_recent(at: Instant) -> bool {
    at.elapsed() < RECENT
}

/// What is known of the broker and the reply topics.
#[derive(Default)]
struct Known {
    /// When a reply was published last.
    published: Option<Instant>,
    away: HashMap<String, Away>,
}

/// A topic to which something could not be published while the broker worked.
struct Away {
    since: Instant,
    /// Since when nothing has failed.
    works: Option<Instant>,
}

impl Known {
    /// Nothing that was just to be published to this topic failed.
    fn works(&mut self, topic: &str) {
        let works = self.away.get_mut(topic).map(|away| *away.works.get_or_insert_with(Instant::now));
        if works.is_some_and(|since| since.elapsed() >= PATIENCE) {
            self.away.remove(topic);
        }
    }

    /// Something did. For how long the topic has been away by now.
    fn fails(&mut self, topic: &str) -> Duration {
        if self.away.len() >= MOST_TOPICS && !self.away.contains_key(topic) {
            self.away.clear();
        }
        let away = self.away.entry(topic.into()).or_insert_with(|| Away { since: Instant::now(), works: None });
        if away.works.take().is_some_and(|since| since.elapsed() >= PATIENCE) {
            away.since = Instant::now();
        }
        away.since.elapsed()
    }

    /// Whether a topic's patience is used up.
    fn is_given_up(&self, topic: &str) -> bool {
        self.away.get(topic).is_some_and(|away| away.since.elapsed() >= PATIENCE)
    }
}
