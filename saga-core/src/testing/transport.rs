//! A conformance suite for implementers of [`Transport`].
//!
//! Each [`Case`] is one promise of [the contract](crate::transport), named as a sentence, and is tried on topics of its own. [`conformance`] tries them all and panics with a report of every
//! promise that was broken:
//!
//! ```
//! use async_trait::async_trait;
//! use saga_core::{testing::transport, transport::{LocalTransport, Transport}};
//! use std::sync::Arc;
//!
//! struct Local(LocalTransport);
//!
//! #[async_trait]
//! impl transport::Broker for Local {
//!     async fn node(&self) -> Arc<dyn Transport> {
//!         Arc::new(self.0.clone())
//!     }
//!     async fn topic(&self, _name: &str) {} // they come into being by themselves
//! }
//!
//! # #[tokio::main]
//! # async fn main() {
//! transport::conformance(&Local(LocalTransport::default())).await;
//! # }
//! ```
//!
//! # What the suite expects of its surroundings
//!
//! - A tokio runtime; one with several threads finds more.
//! - All cases share a broker, each with topics of its own. [Six](AT_ONCE) are under way at a time.
//! - What is promised to happen is waited for, for as long as [`Broker::patience`] says. That something does *not* happen is only concluded from something behind it that does.
//!
//! # What it does not show
//!
//! That messages survive the death of the broker: kill yours for that.

use crate::{
    Encoded,
    message::Message,
    transport::{Consumer, Outgoing, PublishError, Receiver, Subscription, Transport, Unavailable, Verdict},
};
use async_trait::async_trait;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet, time::timeout};

/// How many cases [`conformance`] has under way at a time.
pub const AT_ONCE: usize = 6;

/// The broker that the suite works on.
#[async_trait]
pub trait Broker: Send + Sync {
    /// The transport of a node. Each call is for another one.
    async fn node(&self) -> Arc<dyn Transport>;

    /// Makes a topic of several partitions, together with `<name>.dlt` for its dead letters.
    async fn topic(&self, name: &str);

    /// Writes a record to a topic that is no message, and says whether it could.
    async fn rubbish(&self, _topic: &str) -> bool {
        false
    }

    /// How long to wait for what is promised. Defaults to a minute.
    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// One promise.
#[derive(Clone, Copy)]
pub struct Case {
    name: &'static str,
    check: for<'w> fn(&'w World<'w>) -> BoxFuture<'w, Kept>,
}

/// Whether a promise was kept; if not, what was seen.
type Kept = Result<(), String>;

impl Case {
    /// The promise, as a sentence.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Tries it.
    ///
    /// # Errors
    /// What was seen instead.
    pub async fn try_on(&self, broker: &dyn Broker) -> Result<(), String> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let world = World { broker, topic: format!("t-{id}"), group: format!("g-{id}") };
        broker.topic(&world.topic).await;
        let tried = AssertUnwindSafe((self.check)(&world)).catch_unwind();
        match timeout(broker.patience() * 3, tried).await {
            Ok(Ok(kept)) => kept,
            Ok(Err(panic)) => Err(format!("it panicked: {}", crate::error::panic_message(&*panic))),
            Err(_) => Err("it did not come to an end".into()),
        }
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Tries every case.
///
/// # Panics
/// When a promise is broken, with a report of all that were.
pub async fn conformance(broker: &dyn Broker) {
    let tried: Vec<(Case, Kept)> = stream::iter(cases())
        .map(|case| async move { (case, case.try_on(broker).await) })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let broken: Vec<String> = tried
        .iter()
        .filter_map(|(case, kept)| kept.as_ref().err().map(|seen| format!("- {case:?}\n    {seen}")))
        .collect();
    assert!(
        broken.is_empty(),
        "the transport broke {} of {} promises:\n{}",
        broken.len(),
        tried.len(),
        broken.join("\n")
    );
}

/// The case of that name.
pub fn case(name: &str) -> Option<Case> {
    cases().into_iter().find(|case| case.name == name)
}

macro_rules! cases {
    ($($name:ident)*) => {
        /// All cases.
        pub fn cases() -> Vec<Case> {
            vec![$(Case { name: stringify!($name), check: |world| Box::pin($name(world)) }),*]
        }
    };
}

cases! {
    what_is_accepted_is_delivered
    a_message_arrives_as_it_was_sent
    messages_of_a_key_keep_their_order_within_a_call
    messages_of_a_key_keep_their_order_from_call_to_call
    calls_at_once_keep_the_order_of_each
    what_is_too_large_is_refused_and_its_neighbours_are_not
    what_was_published_before_the_first_consumer_came_is_delivered
    each_group_gets_everything
    a_batch_is_bounded_and_comes_after_the_one_before
    a_partition_that_stands_still_holds_up_no_other
    an_unavailable_receiver_gets_the_same_messages_again
    a_receiver_that_panics_gets_the_same_messages_again
    the_message_that_a_receiver_always_panics_on_is_a_dead_letter
    a_wrong_number_of_verdicts_loses_nothing
    a_rejected_message_is_found_among_the_dead_letters
    a_record_that_is_no_message_holds_up_nothing
    a_consumer_that_stops_ends_its_batch_and_keeps_its_progress
    a_consumer_that_dies_in_a_batch_loses_nothing
    consumers_that_come_and_go_share_without_loss_or_overlap
}

macro_rules! promise {
    ($holds:expr, $($seen:tt)+) => {
        if !$holds {
            return Err(format!($($seen)+));
        }
    };
}

/// What a case works with.
struct World<'b> {
    broker: &'b dyn Broker,
    topic: String,
    group: String,
}

impl World<'_> {
    fn events(&self, key: &str, count: usize) -> Vec<Outgoing> {
        (0..count).map(|n| self.event(key, n)).collect()
    }

    fn event(&self, key: &str, n: usize) -> Outgoing {
        let body = Encoded::of(&n).unwrap_or_else(|_| Encoded::null());
        Outgoing { topic: self.topic.clone(), message: Message::event("suite", "counted.v1", key, &body) }
    }

    async fn publish(&self, batch: &[Outgoing]) -> Kept {
        publish(&*self.broker.node().await, batch).await
    }

    async fn read(&self, journal: &Arc<Journal>, react: impl React) -> Result<Box<dyn Consumer>, String> {
        self.read_as(&self.group, &self.topic, 10, journal, react).await
    }

    async fn read_as(
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
    async fn until(&self, journal: &Journal, what: &str, seen: impl Fn(&[Entry]) -> bool) -> Kept {
        let mut changes = journal.changes.subscribe();
        let waited = timeout(self.broker.patience(), async {
            while !seen(&journal.entries.lock().unwrap()) {
                changes.changed().await.unwrap();
            }
        });
        waited.await.map_err(|_| format!("{what}: never within {:?}; {}", self.broker.patience(), journal.summary()))
    }

    async fn until_handled(&self, journal: &Journal, sent: &[Outgoing]) -> Kept {
        self.until(journal, "every message is handled", |entries| {
            let handled: BTreeSet<&str> = done(entries).map(|message| message.id.as_str()).collect();
            sent.iter().all(|outgoing| handled.contains(outgoing.message.id.as_str()))
        })
        .await
    }
}

async fn publish(node: &dyn Transport, batch: &[Outgoing]) -> Kept {
    let answers = node.publish(batch).await;
    promise!(answers.len() == batch.len(), "{} answers on {} messages", answers.len(), batch.len());
    match answers.into_iter().find_map(Result::err) {
        Some(error) => Err(format!("a message was not published: {error}")),
        None => Ok(()),
    }
}

/// What receivers saw, in the order of events.
#[derive(Default)]
struct Journal {
    entries: Mutex<Vec<Entry>>,
    changes: watch::Sender<()>,
}

#[derive(Debug)]
enum Entry {
    Began(Vec<Message>),
    /// It answered; with that, these are dealt with.
    Done(Vec<Message>),
    /// It did not.
    Failed(Vec<Message>),
}

fn done(entries: &[Entry]) -> impl Iterator<Item = &Message> {
    entries.iter().filter_map(|entry| if let Entry::Done(batch) = entry { Some(batch) } else { None }).flatten()
}

impl Journal {
    fn write(&self, entry: Entry) {
        self.entries.lock().unwrap().push(entry);
        self.changes.send_replace(());
    }

    fn look<T>(&self, look: impl FnOnce(&[Entry]) -> T) -> T {
        look(&self.entries.lock().unwrap())
    }

    fn handled(&self) -> Vec<Message> {
        self.look(|entries| done(entries).cloned().collect())
    }

    fn summary(&self) -> String {
        self.look(|entries| {
            let count = |which: fn(&Entry) -> bool| entries.iter().filter(|entry| which(entry)).count();
            let (began, ended) = (count(|e| matches!(e, Entry::Began(_))), count(|e| matches!(e, Entry::Done(_))));
            format!("{began} batches were received, {ended} of them answered with {} messages", done(entries).count())
        })
    }
}

/// What a receiver answers, given the batch and the number of the call, from 0.
trait React:
    Fn(Vec<Message>, usize) -> BoxFuture<'static, Result<Vec<Verdict>, Unavailable>> + Send + Sync + 'static
{
}

impl<F> React for F where
    F: Fn(Vec<Message>, usize) -> BoxFuture<'static, Result<Vec<Verdict>, Unavailable>> + Send + Sync + 'static
{
}

fn at_once(
    verdicts: impl Fn(&[Message], usize) -> Result<Vec<Verdict>, Unavailable> + Send + Sync + 'static,
) -> impl React {
    let verdicts = Arc::new(verdicts);
    move |batch: Vec<Message>, call| {
        let verdicts = verdicts.clone();
        Box::pin(async move { verdicts(&batch, call) })
    }
}

fn take() -> impl React {
    at_once(|batch, _| Ok(vec![Verdict::Done; batch.len()]))
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
        self.journal.write(Entry::Began(batch.to_vec()));
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
struct Gate(watch::Sender<bool>);

impl Gate {
    fn closed() -> Self {
        Self(watch::Sender::new(false))
    }

    fn open(&self) {
        self.0.send_replace(true);
    }

    async fn pass(&self) {
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

fn assert_in_order(sent: &[Outgoing], handled: &[Message]) -> Kept {
    let sent: Vec<Message> = sent.iter().map(|outgoing| outgoing.message.clone()).collect();
    let (sent, handled) = (firsts(&sent), firsts(handled));
    for (key, expected) in &sent {
        let found = handled.get(key).cloned().unwrap_or_default();
        promise!(found == *expected, "key `{key}` was sent {expected:?} and received {found:?}");
    }
    Ok(())
}

async fn what_is_accepted_is_delivered(world: &World<'_>) -> Kept {
    let (journal, sent) = (Arc::new(Journal::default()), world.events("k", 100));
    let _consumer = world.read(&journal, take()).await?;
    world.publish(&sent).await?;
    world.until_handled(&journal, &sent).await
}

async fn a_message_arrives_as_it_was_sent(world: &World<'_>) -> Kept {
    let mut sent = vec![world.event("key with \"spaces\" and ü", 0), world.event("k", 1), world.event("k", 2)];
    let exotic = &mut sent[0].message;
    exotic.extensions.insert("sagaid".into(), "0".into());
    exotic.extensions.insert("replyto".into(), "ä topic".into());
    exotic.headers.insert("traceparent".into(), "00-1-2-01".into());
    exotic.headers.insert("baggage".into(), "a=1,b=ß".into());
    exotic.content_type = "application/octet-stream".into();
    exotic.data = (0..=255).collect();
    sent[1].message.data = vec![];
    sent[1].message.subject = None;
    let journal = Arc::new(Journal::default());
    let _consumer = world.read(&journal, take()).await?;
    world.publish(&sent).await?;
    world.until_handled(&journal, &sent).await?;
    let handled: HashMap<String, Message> =
        journal.handled().into_iter().map(|message| (message.id.clone(), message)).collect();
    for Outgoing { message, .. } in &sent {
        let received = &handled[&message.id];
        promise!(received == message, "sent: {message:?}\n    received: {received:?}");
    }
    Ok(())
}

async fn messages_of_a_key_keep_their_order_within_a_call(world: &World<'_>) -> Kept {
    let (journal, sent) = (Arc::new(Journal::default()), (0..300).map(|n| world.event(&format!("k{}", n % 5), n)));
    let sent: Vec<Outgoing> = sent.collect();
    let _consumer = world.read(&journal, take()).await?;
    world.publish(&sent).await?;
    world.until_handled(&journal, &sent).await?;
    assert_in_order(&sent, &journal.handled())
}

async fn messages_of_a_key_keep_their_order_from_call_to_call(world: &World<'_>) -> Kept {
    let (journal, sent) = (Arc::new(Journal::default()), world.events("k", 100));
    let _consumer = world.read(&journal, take()).await?;
    for part in sent.chunks(3) {
        world.publish(part).await?;
    }
    world.until_handled(&journal, &sent).await?;
    assert_in_order(&sent, &journal.handled())
}

async fn calls_at_once_keep_the_order_of_each(world: &World<'_>) -> Kept {
    let journal = Arc::new(Journal::default());
    let _consumer = world.read(&journal, take()).await?;
    let node = world.broker.node().await;
    let (mut calls, mut sent) = (JoinSet::new(), vec![]);
    for caller in 0..8 {
        let events = world.events(&format!("k{caller}"), 40);
        let (node, part) = (node.clone(), events.clone());
        calls.spawn(async move { publish(&*node, &part).await });
        sent.extend(events);
    }
    while let Some(called) = calls.join_next().await {
        called.map_err(|error| error.to_string())??;
    }
    world.until_handled(&journal, &sent).await?;
    assert_in_order(&sent, &journal.handled())
}

async fn what_is_too_large_is_refused_and_its_neighbours_are_not(world: &World<'_>) -> Kept {
    let (journal, mut sent) = (Arc::new(Journal::default()), world.events("k", 3));
    let _consumer = world.read(&journal, take()).await?;
    let node = world.broker.node().await;
    sent[1].message.data = vec![b'1'; node.max_message_bytes() + 1];
    let answers = node.publish(&sent).await;
    promise!(
        matches!(answers.as_slice(), [Ok(()), Err(PublishError::Refused(_)), Ok(())]),
        "the answers were {answers:?}"
    );
    let [first, _, last] = sent.try_into().map_err(|_| "three were sent")?;
    world.until_handled(&journal, &[first, last]).await?;
    promise!(journal.handled().len() == 2, "the refused one was delivered");
    Ok(())
}

async fn what_was_published_before_the_first_consumer_came_is_delivered(world: &World<'_>) -> Kept {
    let (journal, sent) = (Arc::new(Journal::default()), world.events("k", 10));
    world.publish(&sent).await?;
    let _consumer = world.read(&journal, take()).await?;
    world.until_handled(&journal, &sent).await
}

async fn each_group_gets_everything(world: &World<'_>) -> Kept {
    let (one, other) = (Arc::new(Journal::default()), Arc::new(Journal::default()));
    let sent: Vec<Outgoing> = (0..20).map(|n| world.event(&format!("k{n}"), n)).collect();
    let _consumer = world.read(&one, take()).await?;
    let another = format!("{}-2", world.group);
    let _another = world.read_as(&another, &world.topic, 10, &other, take()).await?;
    world.publish(&sent).await?;
    world.until_handled(&one, &sent).await?;
    world.until_handled(&other, &sent).await
}

async fn a_batch_is_bounded_and_comes_after_the_one_before(world: &World<'_>) -> Kept {
    let (journal, sent) = (Arc::new(Journal::default()), world.events("k", 100));
    let yielding = |batch: Vec<Message>, _: usize| -> BoxFuture<'static, Result<Vec<Verdict>, Unavailable>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            Ok(vec![Verdict::Done; batch.len()])
        })
    };
    world.publish(&sent).await?;
    let _consumer = world.read_as(&world.group, &world.topic, 7, &journal, yielding).await?;
    world.until_handled(&journal, &sent).await?;
    no_overlap(&journal)?;
    journal.look(|entries| {
        for entry in entries {
            if let Entry::Began(batch) = entry {
                promise!(batch.len() <= 7, "a batch had {} messages instead of 7", batch.len());
            }
        }
        Ok(())
    })
}

/// No key is in two batches that are under way at once.
fn no_overlap(journal: &Journal) -> Kept {
    journal.look(|entries| {
        let mut under_way: BTreeMap<&str, usize> = BTreeMap::new();
        for entry in entries {
            let (batch, began) = match entry {
                Entry::Began(batch) => (batch, true),
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

async fn a_partition_that_stands_still_holds_up_no_other(world: &World<'_>) -> Kept {
    let (journal, gate) = (Arc::new(Journal::default()), Gate::closed());
    let held = gate.clone();
    let hold_the_first =
        move |batch: Vec<Message>, call: usize| -> BoxFuture<'static, Result<Vec<Verdict>, Unavailable>> {
            let gate = held.clone();
            Box::pin(async move {
                if call == 0 {
                    gate.pass().await;
                }
                Ok(vec![Verdict::Done; batch.len()])
            })
        };
    let _consumer = world.read(&journal, hold_the_first).await?;
    let sent: Vec<Outgoing> = (0..50).map(|n| world.event(&format!("k{n}"), n)).collect();
    world.publish(&sent).await?;
    world.until(&journal, "other partitions go on", |entries| done(entries).count() > 0).await?;
    gate.open();
    world.until_handled(&journal, &sent).await
}

async fn an_unavailable_receiver_gets_the_same_messages_again(world: &World<'_>) -> Kept {
    let (journal, sent) = (Arc::new(Journal::default()), world.events("k", 30));
    let now_and_then = at_once(|batch, call| match call % 3 {
        0 | 1 if call < 6 => Err(Unavailable("not now".into())),
        _ => Ok(vec![Verdict::Done; batch.len()]),
    });
    world.publish(&sent).await?;
    let _consumer = world.read(&journal, now_and_then).await?;
    world.until_handled(&journal, &sent).await?;
    assert_in_order(&sent, &journal.handled())?;
    next_is_the_same(&journal)
}

/// What was not answered comes next.
fn next_is_the_same(journal: &Journal) -> Kept {
    journal.look(|entries| {
        let mut unanswered: Option<&Message> = None;
        for entry in entries {
            match entry {
                Entry::Began(batch) => {
                    let same = unanswered.is_none_or(|first| batch.first() == Some(first));
                    promise!(same, "a batch was not answered, and something else came next");
                }
                Entry::Failed(batch) => unanswered = batch.first(),
                Entry::Done(_) => unanswered = None,
            }
        }
        Ok(())
    })
}

async fn a_receiver_that_panics_gets_the_same_messages_again(world: &World<'_>) -> Kept {
    let (journal, sent) = (Arc::new(Journal::default()), world.events("k", 30));
    let once =
        at_once(
            |batch, call| {
                if call == 0 { panic!("by the suite, on purpose") } else { Ok(vec![Verdict::Done; batch.len()]) }
            },
        );
    world.publish(&sent).await?;
    let _consumer = world.read(&journal, once).await?;
    world.until_handled(&journal, &sent).await?;
    assert_in_order(&sent, &journal.handled())?;
    next_is_the_same(&journal)
}

async fn the_message_that_a_receiver_always_panics_on_is_a_dead_letter(world: &World<'_>) -> Kept {
    let (journal, dead, sent) = (Arc::new(Journal::default()), Arc::new(Journal::default()), world.events("k", 9));
    let culprit = sent[4].message.id.clone();
    let always = at_once(move |batch, _| {
        assert!(batch.iter().all(|message| message.id != culprit), "by the suite, on purpose");
        Ok(vec![Verdict::Done; batch.len()])
    });
    world.publish(&sent).await?;
    let _consumer = world.read(&journal, always).await?;
    let others: Vec<Outgoing> =
        sent.iter().enumerate().filter(|(n, _)| *n != 4).map(|(_, each)| each.clone()).collect();
    world.until_handled(&journal, &others).await?;
    assert_in_order(&others, &journal.handled())?;
    let _burier = read_dead_letters(world, &dead).await?;
    world.until_handled(&dead, &sent[4..5]).await?;
    promise!(dead.handled().iter().all(|message| message.id == sent[4].message.id), "a neighbour is a dead letter too");
    Ok(())
}

async fn read_dead_letters(world: &World<'_>, journal: &Arc<Journal>) -> Result<Box<dyn Consumer>, String> {
    let topic = format!("{}.dlt", world.topic);
    world.broker.topic(&topic).await;
    world.read_as(&world.group, &topic, 10, journal, take()).await
}

async fn a_wrong_number_of_verdicts_loses_nothing(world: &World<'_>) -> Kept {
    let (journal, sent) = (Arc::new(Journal::default()), world.events("k", 10));
    let wrong = at_once(|batch, call| Ok(vec![Verdict::Done; if call == 0 { batch.len() + 1 } else { batch.len() }]));
    world.publish(&sent).await?;
    let _consumer = world.read(&journal, wrong).await?;
    world.until_handled(&journal, &sent).await
}

async fn a_rejected_message_is_found_among_the_dead_letters(world: &World<'_>) -> Kept {
    let (journal, dead) = (Arc::new(Journal::default()), Arc::new(Journal::default()));
    let mut sent = world.events("k", 5);
    sent[2].message.headers.insert("traceparent".into(), "00-1-2-01".into());
    let bad = sent[2].message.id.clone();
    let reject = at_once(move |batch, _| {
        let verdict = |message: &Message| {
            if message.id == bad { Verdict::DeadLetter("it is bad".into()) } else { Verdict::Done }
        };
        Ok(batch.iter().map(verdict).collect())
    });
    world.publish(&sent).await?;
    let _consumer = world.read(&journal, reject).await?;
    world.until_handled(&journal, &sent).await?;
    let _burier = read_dead_letters(world, &dead).await?;
    world.until_handled(&dead, &sent[2..3]).await?;
    let found = dead.handled().remove(0);
    let expected = &sent[2].message;
    promise!(
        (&found.key, &found.data, &found.kind) == (&expected.key, &expected.data, &expected.kind),
        "sent: {expected:?}\n    found: {found:?}"
    );
    let header = |name: &str| found.headers.get(name).map(String::as_str);
    promise!(header("traceparent") == Some("00-1-2-01"), "its headers were lost: {:?}", found.headers);
    promise!(
        header("saga-dead-letter-reason") == Some("it is bad"),
        "the reason was {:?}",
        header("saga-dead-letter-reason")
    );
    promise!(
        header("saga-dead-letter-topic") == Some(&world.topic),
        "the topic was {:?}",
        header("saga-dead-letter-topic")
    );
    for name in ["partition", "offset", "time"] {
        promise!(header(&format!("saga-dead-letter-{name}")).is_some(), "there is no header `saga-dead-letter-{name}`");
    }
    Ok(())
}

async fn a_record_that_is_no_message_holds_up_nothing(world: &World<'_>) -> Kept {
    let journal = Arc::new(Journal::default());
    if !world.broker.rubbish(&world.topic).await {
        return Ok(());
    }
    let sent: Vec<Outgoing> = (0..50).map(|n| world.event(&format!("k{n}"), n)).collect();
    world.publish(&sent).await?;
    world.broker.rubbish(&world.topic).await;
    let _consumer = world.read(&journal, take()).await?;
    world.until_handled(&journal, &sent).await
}

async fn a_consumer_that_stops_ends_its_batch_and_keeps_its_progress(world: &World<'_>) -> Kept {
    let (journal, gate, sent) = (Arc::new(Journal::default()), Gate::closed(), world.events("k", 40));
    let held = gate.clone();
    let slow = move |batch: Vec<Message>, _: usize| -> BoxFuture<'static, Result<Vec<Verdict>, Unavailable>> {
        let gate = held.clone();
        Box::pin(async move {
            gate.pass().await;
            Ok(vec![Verdict::Done; batch.len()])
        })
    };
    world.publish(&sent).await?;
    let consumer = world.read(&journal, slow).await?;
    world.until(&journal, "a batch begins", |entries| !entries.is_empty()).await?;
    let mut stopping = tokio::spawn(async move { consumer.stop().await });
    promise!(timeout(Duration::from_millis(200), &mut stopping).await.is_err(), "it stopped in the middle of a batch");
    gate.open();
    stopping.await.map_err(|error| error.to_string())?;
    let before = journal.handled();
    promise!(!before.is_empty(), "the batch under way was broken off");
    let after = Arc::new(Journal::default());
    let _consumer = world.read(&after, take()).await?;
    world.until_handled(&after, &sent[before.len()..]).await?;
    let again: Vec<Message> = after.handled().into_iter().filter(|message| before.contains(message)).collect();
    promise!(again.is_empty(), "{} of {} messages that were dealt with came again", again.len(), before.len());
    promise!(journal.handled().len() == before.len(), "it went on after it had stopped");
    Ok(())
}

async fn a_consumer_that_dies_in_a_batch_loses_nothing(world: &World<'_>) -> Kept {
    let (journal, sent) = (Arc::new(Journal::default()), world.events("k", 20));
    let for_ever = |_: Vec<Message>, _: usize| -> BoxFuture<'static, Result<Vec<Verdict>, Unavailable>> {
        Box::pin(std::future::pending())
    };
    world.publish(&sent).await?;
    let consumer = world.read(&journal, for_ever).await?;
    world.until(&journal, "a batch begins", |entries| !entries.is_empty()).await?;
    drop(consumer);
    let after = Arc::new(Journal::default());
    let _consumer = world.read(&after, take()).await?;
    world.until_handled(&after, &sent).await?;
    assert_in_order(&sent, &after.handled())
}

async fn consumers_that_come_and_go_share_without_loss_or_overlap(world: &World<'_>) -> Kept {
    let journal = Arc::new(Journal::default());
    let mut sent = vec![];
    let mut consumers = vec![world.read(&journal, take()).await?];
    for round in 0..3 {
        let part: Vec<Outgoing> = (0..60).map(|n| world.event(&format!("k{}", n % 12), round * 100 + n)).collect();
        consumers.push(world.read(&journal, take()).await?);
        world.publish(&part).await?;
        sent.extend(part);
        if round > 0 {
            consumers.remove(0).stop().await;
        }
        world.until_handled(&journal, &sent).await?;
    }
    assert_in_order(&sent, &journal.handled())?;
    no_overlap(&journal)
}
