//! What every case works with: topics and a group of its own, and a journal of what its receivers saw.

use super::{Broker, Kept};
use crate::{
    Encoded,
    message::Message,
    transport::{Consumer, Outgoing, Receiver, Subscription, Transport, Unavailable, Verdict},
};
use async_trait::async_trait;
use futures::future::BoxFuture;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

/// A pause is at least as long as this.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
/// How long a slow receiver takes.
const SLOW: Duration = Duration::from_millis(5);

/// What a case works with.
pub(super) struct World<'b> {
    pub(super) broker: &'b dyn Broker,
    pub(super) topic: String,
    pub(super) group: String,
}

impl World<'_> {
    pub(super) fn events(&self, key: &str, count: usize) -> Vec<Outgoing> {
        (0..count).map(|n| self.event(key, n)).collect()
    }

    pub(super) fn event(&self, key: &str, n: usize) -> Outgoing {
        let body = Encoded::of(&n).unwrap_or_else(|_| Encoded::null());
        Outgoing { topic: self.topic.clone(), message: Message::event("suite", "counted.v1", key, &body) }
    }

    pub(super) async fn publish(&self, batch: &[Outgoing]) -> Kept {
        publish(&*self.broker.node().await, batch).await
    }

    /// Publishes again what was not accepted, until everything is.
    pub(super) async fn publish_in_the_end(&self, batch: &[Outgoing]) -> Kept {
        let (node, mut left) = (self.broker.node().await, batch.to_vec());
        let again = timeout(self.broker.patience(), async {
            loop {
                let answers = node.publish(&left).await;
                let mut accepted = answers.iter().map(Result::is_ok);
                left.retain(|_| !accepted.next().unwrap_or(false));
                if left.is_empty() {
                    return;
                }
                sleep(SHORTEST_PAUSE).await;
            }
        });
        let never = |_| format!("a broker that is back accepts nothing within {:?}", self.broker.patience());
        Ok(again.await.map_err(never)?)
    }

    pub(super) async fn read(&self, journal: &Arc<Journal>, react: impl React) -> Result<Box<dyn Consumer>, String> {
        self.read_as(&self.group, &self.topic, 10, journal, react).await
    }

    pub(super) async fn read_as(
        &self,
        group: &str,
        topic: &str,
        batch: usize,
        journal: &Arc<Journal>,
        react: impl React,
    ) -> Result<Box<dyn Consumer>, String> {
        let subscription = Subscription { group: group.into(), topics: vec![topic.into()], batch };
        let receiver = Recorder { journal: journal.clone(), react: Box::new(react), calls: Mutex::default() };
        let consumer = self.broker.node().await.subscribe(subscription, Arc::new(receiver)).await;
        consumer.map_err(|error| format!("nobody could subscribe: {error}"))
    }

    /// Waits until the journal has something to show.
    pub(super) async fn until(&self, journal: &Journal, what: &str, seen: impl Fn(&[Entry]) -> bool) -> Kept {
        let mut changes = journal.changes.subscribe();
        let waited = timeout(self.broker.patience(), async {
            while !seen(&journal.entries.lock().unwrap()) {
                changes.changed().await.unwrap();
            }
        });
        let never = |_| format!("{what}: never within {:?}; {}", self.broker.patience(), journal.summary());
        Ok(waited.await.map_err(never)?)
    }

    pub(super) async fn until_handled(&self, journal: &Journal, sent: &[Outgoing]) -> Kept {
        self.until(journal, "every message is handled", |entries| {
            let handled: BTreeSet<&str> = done(entries).map(|message| message.id.as_str()).collect();
            sent.iter().all(|outgoing| handled.contains(outgoing.message.id.as_str()))
        })
        .await
    }
}

pub(super) async fn publish(node: &dyn Transport, batch: &[Outgoing]) -> Kept {
    let answers = node.publish(batch).await;
    promise!(answers.len() == batch.len(), "{} answers on {} messages", answers.len(), batch.len());
    match answers.into_iter().find_map(Result::err) {
        Some(error) => Err(format!("a message was not published: {error}").into()),
        None => Ok(()),
    }
}

/// What receivers saw, in the order of events.
#[derive(Default)]
pub(super) struct Journal {
    entries: Mutex<Vec<Entry>>,
    changes: watch::Sender<()>,
}

#[derive(Debug)]
pub(super) enum Entry {
    Began(Vec<Message>, Instant),
    /// It answered; with that, these are dealt with.
    Done(Vec<Message>),
    /// It did not.
    Failed(Vec<Message>),
}

pub(super) fn done(entries: &[Entry]) -> impl Iterator<Item = &Message> {
    entries.iter().filter_map(|entry| if let Entry::Done(batch) = entry { Some(batch) } else { None }).flatten()
}

pub(super) fn began(entries: &[Entry]) -> impl Iterator<Item = &Message> {
    entries.iter().filter_map(|entry| if let Entry::Began(batch, _) = entry { Some(batch) } else { None }).flatten()
}

impl Journal {
    pub(super) fn write(&self, entry: Entry) {
        self.entries.lock().unwrap().push(entry);
        self.changes.send_replace(());
    }

    pub(super) fn look<T>(&self, look: impl FnOnce(&[Entry]) -> T) -> T {
        look(&self.entries.lock().unwrap())
    }

    pub(super) fn handled(&self) -> Vec<Message> {
        self.look(|entries| done(entries).cloned().collect())
    }

    pub(super) fn summary(&self) -> String {
        self.look(|entries| {
            let count = |which: fn(&Entry) -> bool| entries.iter().filter(|entry| which(entry)).count();
            let (began, ended) = (count(|e| matches!(e, Entry::Began(..))), count(|e| matches!(e, Entry::Done(_))));
            format!("{began} batches were received, {ended} of them answered with {} messages", done(entries).count())
        })
    }
}

/// What a receiver answers, given the batch and the number of the call, from 0.
pub(super) trait React:
    Fn(Vec<Message>, usize) -> BoxFuture<'static, Result<Vec<Verdict>, Unavailable>> + Send + Sync + 'static
{
}

impl<F> React for F where
    F: Fn(Vec<Message>, usize) -> BoxFuture<'static, Result<Vec<Verdict>, Unavailable>> + Send + Sync + 'static
{
}

pub(super) fn at_once(
    verdicts: impl Fn(&[Message], usize) -> Result<Vec<Verdict>, Unavailable> + Send + Sync + 'static,
) -> impl React {
    let verdicts = Arc::new(verdicts);
    move |batch: Vec<Message>, call| {
        let verdicts = verdicts.clone();
        Box::pin(async move { verdicts(&batch, call) })
    }
}

pub(super) fn take() -> impl React {
    at_once(|batch, _| Ok(vec![Verdict::Done; batch.len()]))
}

/// Takes some time for each batch, so that whoever does not wait for its end is seen.
pub(super) fn take_slowly() -> impl React {
    |batch: Vec<Message>, _| -> BoxFuture<'static, Result<Vec<Verdict>, Unavailable>> {
        Box::pin(async move {
            sleep(SLOW).await;
            Ok(vec![Verdict::Done; batch.len()])
        })
    }
}

struct Recorder {
    journal: Arc<Journal>,
    react: Box<dyn React>,
    calls: Mutex<usize>,
}

#[async_trait]
impl Receiver for Recorder {
    async fn receive(&self, batch: &[Message]) -> Result<Vec<Verdict>, Unavailable> {
        let call = {
            let mut calls = self.calls.lock().unwrap();
            *calls += 1;
            *calls - 1
        };
        self.journal.write(Entry::Began(batch.to_vec(), Instant::now()));
        let ending = Ending { journal: &self.journal, batch };
        let answer = (self.react)(batch.to_vec(), call).await;
        std::mem::forget(ending);
        self.journal.write(match &answer {
            Ok(verdicts) if verdicts.len() == batch.len() => Entry::Done(batch.to_vec()),
            _ => Entry::Failed(batch.to_vec()),
        });
        answer
    }
}

/// A receiver that panics, or is dropped, has not answered.
struct Ending<'r> {
    journal: &'r Journal,
    batch: &'r [Message],
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.journal.write(Entry::Failed(self.batch.to_vec()));
    }
}

/// Lets through whoever comes once it is open.
#[derive(Clone)]
pub(super) struct Gate(watch::Sender<bool>);

impl Gate {
    pub(super) fn closed() -> Self {
        Self(watch::Sender::new(false))
    }

    pub(super) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(super) fn is_open(&self) -> bool {
        *self.0.borrow()
    }

    pub(super) async fn pass(&self) {
        let mut open = self.0.subscribe();
        let _ = open.wait_for(|open| *open).await;
    }
}

/// First occurrences of each key, in their order.
fn firsts(messages: &[Message]) -> BTreeMap<&str, Vec<&str>> {
    let (mut seen, mut order) = (BTreeSet::new(), BTreeMap::<&str, Vec<&str>>::new());
    for message in messages {
        if seen.insert(&message.id) {
            order.entry(&message.key).or_default().push(&message.id);
        }
    }
    order
}

pub(super) fn assert_in_order(sent: &[Outgoing], handled: &[Message]) -> Kept {
    let sent: Vec<Message> = sent.iter().map(|outgoing| outgoing.message.clone()).collect();
    let (sent, handled) = (firsts(&sent), firsts(handled));
    for (key, expected) in &sent {
        let found = handled.get(key).cloned().unwrap_or_default();
        promise!(found == *expected, "key `{key}` was sent {expected:?} and received {found:?}");
    }
    Ok(())
}

/// No key is in two batches that are under way at once.
pub(super) fn no_overlap(journal: &Journal) -> Kept {
    journal.look(|entries| {
        let mut under_way: BTreeMap<&str, usize> = BTreeMap::new();
        for entry in entries {
            let (batch, began) = match entry {
                Entry::Began(batch, _) => (batch, true),
                Entry::Done(batch) | Entry::Failed(batch) => (batch, false),
            };
            let keys: BTreeSet<&str> = batch.iter().map(|message| message.key.as_str()).collect();
            for key in keys {
                if began {
                    let twice = under_way.insert(key, 1).is_some();
                    promise!(!twice, "two batches with key `{key}` were under way at once");
                } else {
                    under_way.remove(key);
                }
            }
        }
        Ok(())
    })
}

/// What was not answered comes next, in the same order, and not at once.
pub(super) fn next_is_the_same(journal: &Journal) -> Kept {
    journal.look(|entries| {
        let (mut unanswered, mut last): (&[Message], Option<Instant>) = (&[], None);
        for entry in entries {
            match entry {
                Entry::Began(batch, began) => {
                    let same = batch.iter().zip(unanswered).all(|(found, expected)| found == expected);
                    promise!(same, "a batch was not answered, and something else came next");
                    let paused = unanswered.is_empty() || last.is_none_or(|last| *began - last >= SHORTEST_PAUSE);
                    promise!(paused, "a batch was not answered, and came again without a pause");
                    last = Some(*began);
                }
                Entry::Failed(batch) => unanswered = batch,
                Entry::Done(_) => unanswered = &[],
            }
        }
        Ok(())
    })
}

pub(super) async fn read_dead_letters(world: &World<'_>, journal: &Arc<Journal>) -> Result<Box<dyn Consumer>, String> {
    let topic = format!("{}.dlt", world.topic);
    world.broker.topic(&topic).await;
    world.read_as(&world.group, &topic, 10, journal, take()).await
}
