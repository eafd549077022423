//! Interleavings around the driver, the worker's loops and the handles: late answers, lost requests, what cannot be read.

use async_trait::async_trait;
use futures::{FutureExt, future::BoxFuture};
use saga_core::{
    CompensationCx, Cx, Encoded, Engine, EngineBuilder, Error, MemoryStore, Out, Outcome, Retry, Saga, SagaBuilder,
    SagaId, StepError, WorkerId,
    machine::{Event, Status},
    message::{Answer, CommandAttributes, CommandId, Message, Op},
    participant::Command,
    store::{
        Append, Appended, Census, DefinitionId, Hint, Mail, Posted, Record, Ripe, Room, SnapshotChange, Start, Started,
        Store, StoreError, Then,
    },
    testing::World,
    transport::{
        Consumer, LocalTransport, Outgoing, PublishError, Receiver, Subscription, Transport, TransportError,
        Unavailable, Verdict,
    },
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    sync::broadcast,
    time::{Instant, sleep, sleep_until, timeout},
};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

/// What happens around a call to the store.
#[async_trait]
trait Rig: Send + Sync + 'static {
    /// An error is what the caller gets, and nothing is done.
    async fn before(&self, _call: &str, _store: &MemoryStore, _appends: &[Append]) -> Result<(), StoreError> {
        Ok(())
    }
    /// Whether another transaction holds the row of this saga.
    fn is_held(&self, _append: &Append) -> bool {
        false
    }
    /// An error is what the caller gets, although it was done.
    async fn after(&self, _call: &str, _appends: &[Append]) -> Result<(), StoreError> {
        Ok(())
    }
}

struct Rigged<R> {
    store: MemoryStore,
    rig: R,
}

macro_rules! rigged {
    ($($name:ident($($arg:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl<R: Rig> Store for Rigged<R> {
            async fn append(&self, worker: WorkerId, batch: &[Append]) -> Result<Vec<Appended>, StoreError> {
                self.rig.before("append", &self.store, batch).await?;
                let held: Vec<bool> = batch.iter().map(|append| self.rig.is_held(append)).collect();
                let free = batch.iter().zip(&held).filter(|(_, held)| !**held).map(|(append, _)| append.clone());
                let mut answers = self.store.append(worker, &free.collect::<Vec<_>>()).await?.into_iter();
                self.rig.after("append", batch).await?;
                Ok(held.iter().map(|held| if *held { Appended::Busy } else { answers.next().unwrap() }).collect())
            }
            async fn disown(&self, worker: WorkerId, sagas: &[(SagaId, i64)]) -> Result<(), StoreError> {
                if let Err(error) = self.rig.before("disown", &self.store, &[]).await {
                    // The request is not lost, it is on its way for long.
                    let (store, sagas) = (self.store.clone(), sagas.to_vec());
                    tokio::spawn(async move {
                        sleep(12 * SECOND).await;
                        store.disown(worker, &sagas).await
                    });
                    return Err(error);
                }
                self.store.disown(worker, sagas).await
            }
            $(async fn $name(&self, $($arg: $type),*) -> Result<$answer, StoreError> {
                self.rig.before(stringify!($name), &self.store, &[]).await?;
                let answer = self.store.$name($($arg),*).await?;
                self.rig.after(stringify!($name), &[]).await?;
                Ok(answer)
            })*
            fn hint(&self, hint: Hint) {
                self.store.hint(hint);
            }
            fn hints(&self) -> broadcast::Receiver<Hint> {
                self.store.hints()
            }
        }
    };
}

rigged! {
    register(definition: &DefinitionId, fingerprint: &str) -> String;
    join(worker: WorkerId, lease: Duration, definitions: &[DefinitionId]) -> ();
    beat(worker: WorkerId, lease: Duration) -> bool;
    leave(worker: WorkerId) -> ();
    returned(worker: WorkerId) -> ();
    sweep(limit: usize) -> usize;
    start(batch: &[Start]) -> Vec<Started>;
    claim(worker: WorkerId, definitions: &[DefinitionId], ripe: Ripe, room: Room) -> Vec<Record>;
    owned(worker: WorkerId) -> Vec<(SagaId, i64)>;
    post(batch: &[Mail]) -> Vec<Posted>;
    mail(worker: WorkerId, definitions: &[DefinitionId], limit: usize) -> Vec<Mail>;
    find(name: &str, key: &str) -> Option<SagaId>;
    statuses(sagas: &[SagaId]) -> Vec<Option<Status>>;
    read(saga: SagaId) -> Option<Record>;
    census(names: &[String]) -> Vec<Census>;
    unclaimable() -> Vec<DefinitionId>;
}

/// Does something once.
#[derive(Default)]
struct Times(AtomicUsize);

impl Times {
    fn is_the(&self, nth: usize) -> bool {
        self.0.fetch_add(1, SeqCst) + 1 == nth
    }
    fn so_far(&self) -> usize {
        self.0.load(SeqCst)
    }
}

fn lost<T>() -> Result<T, StoreError> {
    Err(StoreError::Unavailable("the answer was lost".into()))
}

/// The world of [`Trip`]: one flight to book.
struct Airline {
    ledger: World,
    /// What an attempt does before and after it has its effect.
    booking: fn(u32) -> BoxFuture<'static, Result<(), StepError>>,
    paying: fn(u32) -> BoxFuture<'static, Result<(), StepError>>,
    log: Mutex<Vec<String>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

impl Airline {
    fn new(booking: fn(u32) -> BoxFuture<'static, Result<(), StepError>>) -> Arc<Self> {
        Self::with(booking, |_| Box::pin(async { Ok(()) }))
    }

    fn with(
        booking: fn(u32) -> BoxFuture<'static, Result<(), StepError>>,
        paying: fn(u32) -> BoxFuture<'static, Result<(), StepError>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            ledger: World::default(),
            booking,
            paying,
            log: Mutex::default(),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
        })
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    fn note(&self, what: &str) {
        self.log.lock().unwrap().push(what.into());
    }
}

struct Trip;

impl Saga for Trip {
    const NAME: &'static str = "trip";
    const VERSION: u32 = 1;
    type Input = u32;
    type Output = ();
    type Deps = Airline;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        let minute = Duration::from_secs(3600);
        saga.compensatable("book").retry(Retry::fixed(4 * SECOND)).timeout(minute).run(book).compensate(unbook);
        saga.pivot("pay").retry(Retry::fixed(SECOND)).run(pay)
    }
}

struct Leaving<'a>(&'a AtomicUsize);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

async fn book(airline: Cx<Airline>, input: u32) -> Result<(), StepError> {
    airline.note(&format!("book {input}"));
    let now = airline.at_once.fetch_add(1, SeqCst) + 1;
    let _leaving = Leaving(&airline.at_once);
    airline.most_at_once.fetch_max(now, SeqCst);
    if input == 0 {
        return std::future::pending().await;
    }
    if airline.attempt() == 1 && input == 2 {
        return Err(StepError::retry("busy"));
    }
    airline.ledger.apply(airline.idempotency_key())?;
    (airline.booking)(airline.attempt()).await
}

async fn unbook(airline: CompensationCx<Airline>, _: u32, _: Option<()>) -> Result<(), StepError> {
    airline.note("unbook");
    airline.ledger.revert(airline.forward_key())
}

async fn pay(airline: Cx<Airline>, _: u32) -> Result<(), StepError> {
    airline.note("pay");
    (airline.paying)(airline.attempt()).await
}

fn engine(store: &MemoryStore, airline: &Arc<Airline>, rig: impl Rig) -> EngineBuilder {
    Engine::builder(Rigged { store: store.clone(), rig }).register::<Trip>(airline.clone()).unwrap()
}

async fn until(what: &str, so: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if so() {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

struct Nothing;
impl Rig for Nothing {}

// ---------------------------------------------------------------------------------------------------------------

/// The release is committed, its answer comes late.
#[derive(Default)]
struct LateRelease(Times);

#[async_trait]
impl Rig for LateRelease {
    async fn after(&self, call: &str, appends: &[Append]) -> Result<(), StoreError> {
        let waits = |append: &Append| matches!(append.then, Then::Release { due_in: Some(_) });
        if call == "append" && appends.iter().any(waits) && self.0.is_the(1) {
            sleep(6 * SECOND).await;
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_came_back_before_its_release_was_answered_stays_in_memory() {
    let airline = Airline::new(|_| Box::pin(sleep(30 * SECOND).map(Ok)));
    let store = MemoryStore::default();
    let began = Instant::now();
    let engine = engine(&store, &airline, LateRelease::default()).start().await.unwrap();
    // The first attempt fails, the saga is released for two to four seconds, and the release is answered after six.
    let trip = engine.sagas::<Trip>().submit("k", 2).await.unwrap();
    until("the second attempt", || airline.log().len() == 2).await;
    sleep_until(began + Duration::from_millis(6500)).await;
    engine.sagas::<Trip>().cancel(trip.id(), "changed my mind").await.unwrap();
    assert!(matches!(trip.outcome().await.unwrap(), Outcome::RolledBack(_)));
    sleep(60 * SECOND).await;
    let told = trip.history().await.unwrap().to_string();
    assert_eq!(airline.ledger.effects(), [""; 0], "left behind by a saga that was rolled back:\n{told}");
}

#[derive(Serialize, Deserialize)]
struct Post(u32);

impl Command for Post {
    const TYPE: &'static str = "post.parcel.v1";
    const TOPIC: &'static str = "post.commands";
    type Reply = u32;
}

struct Parcel;

impl Saga for Parcel {
    const NAME: &'static str = "parcel";
    const VERSION: u32 = 1;
    type Input = u32;
    type Output = u32;
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, u32> {
        saga.pivot("post").command(Post)
    }
}

/// Takes what comes, and lets the test answer.
#[derive(Default)]
struct Counter(Mutex<Vec<Message>>);

#[async_trait]
impl Receiver for Counter {
    async fn receive(&self, batch: &[Message]) -> Result<Vec<Verdict>, Unavailable> {
        self.0.lock().unwrap().extend_from_slice(batch);
        Ok(vec![Verdict::Done; batch.len()])
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_comes_before_a_release_is_answered_is_not_left_until_the_next_poll() {
    let (wire, counter) = (Arc::new(LocalTransport::default()), Arc::new(Counter::default()));
    let subscription = Subscription { group: "post".into(), topics: vec![Post::TOPIC.into()], batch: 1 };
    let _open = wire.subscribe(subscription, counter.clone()).await.unwrap();
    let store = Rigged { store: MemoryStore::default(), rig: LateRelease::default() };
    let builder = Engine::builder(store).transport("shop", wire.clone()).register::<Parcel>(()).unwrap();
    let engine = builder.configure(|config| config.poll = 60 * SECOND).start().await.unwrap();
    let parcel = engine.sagas::<Parcel>().submit("k", 7).await.unwrap();
    // It is released when it has waited for a second, and that is answered after six more.
    sleep(3 * SECOND).await;
    let command = counter.0.lock().unwrap()[0].clone();
    let answer = Answer::Success(Encoded::of(&7).unwrap());
    let message = CommandAttributes::of(&command).unwrap().reply("post", &command, &answer);
    wire.publish(&[Outgoing { topic: "shop.replies".into(), message }]).await;
    let replied = Instant::now();
    let outcome = timeout(10 * SECOND, parcel.outcome()).await.expect("the reply is heard at the next poll only");
    assert_eq!(outcome.unwrap(), Outcome::Completed(7));
    assert!(replied.elapsed() > 3 * SECOND, "it was in memory still");
}

/// Takes replies for nobody, from many partitions at once.
#[derive(Default)]
struct Partitions(Mutex<Option<Arc<dyn Receiver>>>);

struct Subscribed;

#[async_trait]
impl Consumer for Subscribed {
    async fn stop(self: Box<Self>) {}
}

#[async_trait]
impl Transport for Partitions {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        vec![Ok(()); batch.len()]
    }
    async fn subscribe(
        &self,
        _: Subscription,
        receiver: Arc<dyn Receiver>,
    ) -> Result<Box<dyn Consumer>, TransportError> {
        *self.0.lock().unwrap() = Some(receiver);
        Ok(Box::new(Subscribed))
    }
    fn system(&self) -> &'static str {
        "local"
    }
    fn max_message_bytes(&self) -> usize {
        1 << 20
    }
}

/// Each post takes a second.
#[derive(Default)]
struct SlowPost {
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

#[async_trait]
impl Rig for Arc<SlowPost> {
    async fn before(&self, call: &str, _: &MemoryStore, _: &[Append]) -> Result<(), StoreError> {
        if call == "post" {
            self.most_at_once.fetch_max(self.at_once.fetch_add(1, SeqCst) + 1, SeqCst);
            sleep(SECOND).await;
            self.at_once.fetch_sub(1, SeqCst);
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn replies_of_many_partitions_leave_connections_to_the_rest() {
    let (wire, rig) = (Arc::new(Partitions::default()), Arc::new(SlowPost::default()));
    let store = Rigged { store: MemoryStore::default(), rig: rig.clone() };
    let builder = Engine::builder(store).transport("shop", wire.clone()).register::<Parcel>(()).unwrap();
    let _engine = builder.start().await.unwrap();
    let receiver = wire.0.lock().unwrap().clone().unwrap();
    let reply = |n: usize| {
        let id = CommandId { saga: SagaId::generate(), step: "post".into(), generation: 0 };
        let attributes = CommandAttributes { id, op: Op::Do, attempt: 1, reply_to: "shop.replies".into() };
        let command = attributes.message("shop", Post::TYPE, &Encoded::of(&n).unwrap());
        attributes.reply("post", &command, &Answer::Success(Encoded::of(&7).unwrap()))
    };
    let began = Instant::now();
    let partitions = (0..40).map(|n| {
        let (receiver, reply) = (receiver.clone(), reply(n));
        async move { receiver.receive(&[reply]).await.unwrap().remove(0) }
    });
    for verdict in futures::future::join_all(partitions).await {
        assert!(matches!(verdict, Verdict::DeadLetter(reason) if reason.contains("there is no saga")));
    }
    assert_eq!((rig.most_at_once.load(SeqCst), began.elapsed().as_secs()), (4, 10));
}

/// What becomes of the appends but the first one, until they are let through. Letters are counted.
#[derive(Default)]
struct Clerk {
    appends: Times,
    /// By their numbers; those that are not said get no answer.
    fates: Mutex<HashMap<usize, Fate>>,
    lets_through: AtomicBool,
    posts: Times,
}

#[derive(Clone, Copy)]
enum Fate {
    Late,
    Refused,
}

#[async_trait]
impl Rig for Arc<Clerk> {
    async fn before(&self, call: &str, _: &MemoryStore, _: &[Append]) -> Result<(), StoreError> {
        if call == "post" {
            self.posts.is_the(1);
        }
        if call != "append" || self.appends.is_the(1) || self.lets_through.load(SeqCst) {
            return Ok(());
        }
        let fate = self.fates.lock().unwrap().get(&self.appends.so_far()).copied();
        match fate {
            Some(Fate::Late) => sleep(200 * MILLISECOND).await,
            Some(Fate::Refused) => return Err(StoreError::Rejected("no".into())),
            None => return lost(),
        }
        Ok(())
    }
}

/// Where parcels are posted: commands come there, and the test answers them.
struct Office {
    store: MemoryStore,
    clerk: Arc<Clerk>,
    wire: Arc<LocalTransport>,
    counter: Arc<Counter>,
    _open: Box<dyn Consumer>,
}

impl Office {
    async fn new() -> Self {
        let (wire, counter) = (Arc::new(LocalTransport::default()), Arc::new(Counter::default()));
        let subscription = Subscription { group: "post".into(), topics: vec![Post::TOPIC.into()], batch: 1 };
        let _open = wire.subscribe(subscription, counter.clone()).await.unwrap();
        Self { store: MemoryStore::default(), clerk: Arc::default(), wire, counter, _open }
    }

    /// Whose append of this number has another fate than to get no answer.
    async fn with(append: usize, fate: Fate) -> Self {
        let office = Self::new().await;
        office.clerk.fates.lock().unwrap().insert(append, fate);
        office
    }

    async fn engine(&self) -> Engine {
        let store = Rigged { store: self.store.clone(), rig: self.clerk.clone() };
        let builder = Engine::builder(store).transport("shop", self.wire.clone()).register::<Parcel>(()).unwrap();
        builder.start().await.unwrap()
    }

    fn let_through(&self) {
        self.clerk.lets_through.store(true, SeqCst);
    }

    fn posts(&self) -> usize {
        self.clerk.posts.so_far()
    }

    /// The command of this attempt.
    async fn command(&self, attempt: usize) -> Message {
        until("the command", || self.counter.0.lock().unwrap().len() >= attempt).await;
        self.counter.0.lock().unwrap()[attempt - 1].clone()
    }

    async fn answer(&self, attempt: usize, answer: Answer) {
        let command = self.command(attempt).await;
        self.send(CommandAttributes::of(&command).unwrap().reply("post", &command, &answer)).await;
    }

    async fn send(&self, message: Message) {
        self.wire.publish(&[Outgoing { topic: "shop.replies".into(), message }]).await;
    }
}

fn seven() -> Answer {
    Answer::Success(Encoded::of(&7).unwrap())
}

async fn arrives(parcel: &saga_core::Started<Parcel>) {
    let outcome = timeout(600 * SECOND, parcel.outcome()).await.expect("its reply was lost");
    assert_eq!(outcome.unwrap(), Outcome::Completed(7));
}

#[tokio::test(start_paused = true)]
async fn a_reply_to_a_saga_in_memory_goes_past_the_mailbox() {
    let office = Office::new().await;
    office.let_through();
    let engine = office.engine().await;
    let parcel = engine.sagas::<Parcel>().submit("k", 7).await.unwrap();
    office.answer(1, seven()).await;
    arrives(&parcel).await;
    assert_eq!(office.posts(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_was_heard_and_not_written_is_found_by_the_next_worker() {
    let office = Office::new().await;
    let first = office.engine().await;
    let parcel = first.sagas::<Parcel>().submit("k", 7).await.unwrap().id();
    office.answer(1, seven()).await;
    sleep(SECOND).await;
    assert_eq!(office.posts(), 1, "it counts as received when it is in the mailbox");
    first.kill().await;
    office.let_through();
    let second = office.engine().await;
    arrives(&second.sagas::<Parcel>().get(parcel)).await;
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_comes_both_ways_counts_once_and_is_read() {
    let office = Office::new().await;
    let engine = office.engine().await;
    let parcel = engine.sagas::<Parcel>().submit("k", 7).await.unwrap();
    office.answer(1, Answer::Retry("busy".into())).await;
    sleep(SECOND).await;
    assert_eq!(office.posts(), 1);
    office.let_through();
    office.command(2).await;
    let mail = office.store.read(parcel.id()).await.unwrap().unwrap().mail;
    assert!(mail.is_empty(), "it was heard, and stays unread: {mail:?}");
    office.answer(2, seven()).await;
    arrives(&parcel).await;
    let told = parcel.history().await.unwrap();
    let retries = told.events().iter().filter(|event| matches!(event, Event::Retrying { .. })).count();
    assert_eq!(retries, 1, "{told}");
}

/// It may have been handed to one that owns the saga no longer: to the one that does it may be news.
#[tokio::test(start_paused = true)]
async fn a_reply_that_changes_nothing_where_it_came_goes_into_the_mailbox() {
    let office = Office::new().await;
    office.let_through();
    let engine = office.engine().await;
    let parcel = engine.sagas::<Parcel>().submit("k", 7).await.unwrap();
    let command = office.command(1).await;
    let mut strayed = CommandAttributes::of(&command).unwrap().reply("post", &command, &seven());
    strayed.extensions.insert("sagagen".into(), "1".into());
    office.send(strayed).await;
    // Not because that took long.
    sleep(100 * MILLISECOND).await;
    assert_eq!(office.posts(), 1);
    office.answer(1, seven()).await;
    arrives(&parcel).await;
    assert_eq!(office.posts(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_reply_is_not_answered_by_an_append_that_was_under_way_when_it_came() {
    let office = Office::with(2, Fate::Late).await;
    let engine = office.engine().await;
    let parcel = engine.sagas::<Parcel>().submit("k", 7).await.unwrap();
    office.command(1).await;
    // It is pending for the pivot's sake, and the second append says so.
    engine.sagas::<Parcel>().cancel(parcel.id(), "too late?").await.unwrap();
    sleep(50 * MILLISECOND).await;
    office.answer(1, seven()).await;
    sleep(SECOND).await;
    assert_eq!(office.posts(), 2, "the cancel, and the reply");
    engine.kill().await;
    office.let_through();
    let second = office.engine().await;
    arrives(&second.sagas::<Parcel>().get(parcel.id())).await;
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_the_journal_does_not_take_goes_into_the_mailbox() {
    let office = Office::with(2, Fate::Refused).await;
    let engine = office.engine().await;
    let parcel = engine.sagas::<Parcel>().submit("k", 7).await.unwrap();
    office.command(1).await;
    // That the saga is parked is written in time, and says nothing of the reply.
    office.clerk.fates.lock().unwrap().insert(3, Fate::Late);
    office.answer(1, seven()).await;
    until("the reply is in the mailbox", || office.posts() == 1).await;
    assert!(matches!(timeout(600 * SECOND, parcel.outcome()).await.unwrap().unwrap(), Outcome::Parked(_)));
}

/// The answer to the first claim is lost; the request to give back what it took is on its way for long.
#[derive(Default)]
struct LateDisown(Times, Times);

#[async_trait]
impl Rig for LateDisown {
    async fn before(&self, call: &str, _: &MemoryStore, _: &[Append]) -> Result<(), StoreError> {
        if call == "disown" && self.0.is_the(1) { lost() } else { Ok(()) }
    }
    async fn after(&self, call: &str, _: &[Append]) -> Result<(), StoreError> {
        if call == "claim" && self.1.is_the(1) { lost() } else { Ok(()) }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_to_give_back_that_comes_late_takes_no_saga_from_its_owner() {
    let airline = Airline::new(|_| Box::pin(sleep(30 * SECOND).map(Ok)));
    let store = MemoryStore::default();
    let client = Engine::builder(store.clone()).start().await.unwrap();
    let trip = client.sagas::<Trip>().submit("k", 1).await.unwrap();
    let _engine = engine(&store, &airline, LateDisown::default()).start().await.unwrap();
    assert_eq!(trip.outcome().await.unwrap(), Outcome::Completed(()));
    assert_eq!(airline.most_at_once.load(SeqCst), 1, "{:?}", airline.log());
}

// ---------------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_saga_whose_journal_cannot_be_read_does_not_begin_anew_whatever_an_operator_says() {
    let airline = Airline::new(|_| Box::pin(async { Ok(()) }));
    let store = MemoryStore::default();
    let client = Engine::builder(store.clone()).start().await.unwrap();
    let trip = client.sagas::<Trip>().submit("k", 1).await.unwrap();
    // A newer version of the library ran the saga: it booked.
    let (newer, definition) = (WorkerId::generate(), DefinitionId { name: "trip".into(), version: 1 });
    store.join(newer, 60 * SECOND, std::slice::from_ref(&definition)).await.unwrap();
    let record = store.claim(newer, &[definition], Ripe::Due, Room::of(1)).await.unwrap().pop().unwrap();
    let entry = br#"[{"succeeded":{"step":0,"output":null}},{"signalled":{"name":"boarding"}}]"#;
    let append = Append {
        saga: trip.id(),
        epoch: record.epoch,
        seq: 1,
        entry: Some(entry.to_vec()),
        read: vec![],
        status: None,
        then: Then::Release { due_in: Some(Duration::ZERO) },
        age: Duration::ZERO,
        snapshot: SnapshotChange::None,
    };
    store.append(newer, &[append]).await.unwrap();

    let engine = engine(&store, &airline, Nothing).start().await.unwrap();
    sleep(60 * SECOND).await;
    assert_eq!(trip.status().await.unwrap(), Status::Running, "somebody may come who can read it");
    sleep(600 * SECOND).await;
    assert_eq!(trip.status().await.unwrap(), Status::Parked);
    engine.sagas::<Trip>().resume(trip.id(), "an operator").await.unwrap();
    sleep(600 * SECOND).await;
    assert_eq!(airline.log(), [""; 0], "it began anew");
    assert_eq!(trip.status().await.unwrap(), Status::Parked);
    engine.sagas::<Trip>().cancel(trip.id(), "a customer").await.unwrap();
    engine.sagas::<Trip>().resume(trip.id(), "an operator").await.unwrap();
    sleep(600 * SECOND).await;
    assert_eq!(trip.status().await.unwrap(), Status::Parked, "it must not count as rolled back: it booked");
}

// ---------------------------------------------------------------------------------------------------------------

/// Its steps run beside each other, and each has much to say.
struct Wide;

const LANES: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
const MIB: usize = 1 << 20;

impl Saga for Wide {
    const NAME: &'static str = "wide";
    const VERSION: u32 = 1;
    type Input = ();
    type Output = ();
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        saga.parallel(|saga| {
            for lane in LANES {
                saga.effect_free(lane).run(async |_: Cx<()>, ()| Ok("x".repeat(MIB - 2)));
            }
        });
        saga.pivot("end").run(async |_: Cx<()>, ()| Ok(()))
    }
}

/// Appends take long; how large the largest entry was.
struct SlowAndWeighed(Arc<AtomicUsize>);

#[async_trait]
impl Rig for SlowAndWeighed {
    async fn before(&self, call: &str, _: &MemoryStore, appends: &[Append]) -> Result<(), StoreError> {
        if call == "append" {
            let largest = appends.iter().filter_map(|append| append.entry.as_ref()).map(Vec::len).max();
            self.0.fetch_max(largest.unwrap_or_default(), SeqCst);
            sleep(SECOND).await;
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn what_many_steps_of_a_saga_say_at_once_is_written_in_several_entries() {
    let largest = Arc::new(AtomicUsize::new(0));
    let store = Rigged { store: MemoryStore::default(), rig: SlowAndWeighed(largest.clone()) };
    let engine = Engine::builder(store).register::<Wide>(()).unwrap().start().await.unwrap();
    let wide = engine.sagas::<Wide>().submit("k", ()).await.unwrap();
    let outcome = timeout(600 * SECOND, wide.outcome()).await.expect("it does not end").unwrap();
    assert_eq!(outcome, Outcome::Completed(()));
    let largest = largest.load(SeqCst);
    assert!((2 * MIB..6 * MIB).contains(&largest), "{largest}");
}

// ---------------------------------------------------------------------------------------------------------------

/// What is heavy takes for ever.
struct HeavyHangs;

#[async_trait]
impl Rig for HeavyHangs {
    async fn before(&self, call: &str, _: &MemoryStore, appends: &[Append]) -> Result<(), StoreError> {
        let is_heavy = |append: &Append| append.entry.as_ref().is_some_and(|entry| entry.len() > MIB / 2);
        match call == "append" && appends.iter().any(is_heavy) {
            true => std::future::pending().await,
            false => Ok(()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_light_is_written_in_no_statement_with_what_is_heavy() {
    let builder = Engine::builder(Rigged { store: MemoryStore::default(), rig: HeavyHangs });
    let builder = builder.register::<Wide>(()).unwrap().register::<Basket>(()).unwrap();
    let engine = builder.start().await.unwrap();
    for n in 0..10 {
        engine.sagas::<Wide>().submit(n.to_string(), ()).await.unwrap();
    }
    sleep(SECOND).await;
    for n in 0..20 {
        let basket = engine.sagas::<Basket>().submit(n.to_string(), HashMap::new()).await.unwrap();
        let outcome = timeout(SECOND, basket.outcome()).await.expect("it waits for what is heavy");
        assert_eq!(outcome.unwrap(), Outcome::Completed(()));
    }
}

/// How many statements are under way at once. Each takes its time; some get no answer, or find rows held.
#[derive(Default)]
struct Writers {
    takes: Duration,
    appends: Times,
    hangs: bool,
    panics: bool,
    held: Mutex<Vec<SagaId>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

#[async_trait]
impl Rig for Arc<Writers> {
    async fn before(&self, call: &str, _: &MemoryStore, _: &[Append]) -> Result<(), StoreError> {
        if call != "append" {
            return Ok(());
        }
        match self.appends.is_the(1) {
            true if self.hangs => std::future::pending().await,
            true if self.panics => panic!("it is broken"),
            _ => {}
        }
        self.most_at_once.fetch_max(self.at_once.fetch_add(1, SeqCst) + 1, SeqCst);
        sleep(self.takes).await;
        self.at_once.fetch_sub(1, SeqCst);
        Ok(())
    }
    fn is_held(&self, append: &Append) -> bool {
        self.held.lock().unwrap().contains(&append.saga)
    }
}

/// So many sagas at once that write.
async fn baskets(engine: &Engine, count: usize) {
    let basket = |n: usize| async move {
        let basket = engine.sagas::<Basket>().submit(n.to_string(), HashMap::new()).await.unwrap();
        assert_eq!(basket.outcome().await.unwrap(), Outcome::Completed(()));
    };
    timeout(SECOND, futures::future::join_all((0..count).map(basket))).await.expect("they wait");
}

async fn writing(rig: &Arc<Writers>, configure: fn(&mut saga_core::Config)) -> Engine {
    let builder = Engine::builder(Rigged { store: MemoryStore::default(), rig: rig.clone() });
    builder.register::<Basket>(()).unwrap().configure(configure).start().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_waits_shares_one_statement_and_much_goes_in_several() {
    for (count, most) in [(60, 1), (400, 3)] {
        let rig = Arc::new(Writers { takes: 10 * MILLISECOND, ..Writers::default() });
        baskets(&writing(&rig, |config| config.batch = 100).await, count).await;
        assert_eq!(rig.most_at_once.load(SeqCst), most, "{count}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_statement_that_gets_no_answer_holds_up_no_others() {
    let rig = Arc::new(Writers { hangs: true, takes: MILLISECOND, ..Writers::default() });
    let engine = writing(&rig, |_| {}).await;
    let hangs = engine.sagas::<Basket>().submit("hangs", HashMap::new()).await.unwrap();
    sleep(SECOND).await;
    // One after the other: each of them would wait for a moment.
    let began = Instant::now();
    for n in 0..20 {
        let basket = engine.sagas::<Basket>().submit(format!("after {n}"), HashMap::new()).await.unwrap();
        timeout(SECOND, basket.outcome()).await.expect("it waits for what hangs").unwrap();
    }
    assert!(began.elapsed() < 20 * 5 * MILLISECOND, "{:?}", began.elapsed());
    assert_eq!(hangs.status().await.unwrap(), Status::Running);
}

#[tokio::test(start_paused = true)]
async fn rows_that_are_held_hold_up_no_others_however_many_they_are() {
    let rig = Arc::new(Writers { takes: 15 * MILLISECOND, ..Writers::default() });
    let engine = writing(&rig, |config| (config.committers, config.batch) = (1, 2)).await;
    let mut held = vec![];
    for n in 0..6 {
        // Its first append is under way, or waits, when its row comes to be held.
        let basket = engine.sagas::<Basket>().submit(format!("held {n}"), HashMap::new()).await.unwrap();
        rig.held.lock().unwrap().push(basket.id());
        held.push(basket);
    }
    sleep(SECOND).await;
    baskets(&engine, 1).await;
    rig.held.lock().unwrap().clear();
    for basket in held {
        assert_eq!(timeout(SECOND, basket.outcome()).await.unwrap().unwrap(), Outcome::Completed(()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_once_stops_nothing() {
    let rig = Arc::new(Writers { panics: true, takes: MILLISECOND, ..Writers::default() });
    let engine = writing(&rig, |_| {}).await;
    let first = engine.sagas::<Basket>().submit("first", HashMap::new()).await.unwrap();
    baskets(&engine, 3).await;
    let outcome = timeout(60 * SECOND, first.outcome()).await.expect("it was forgotten").unwrap();
    assert_eq!(outcome, Outcome::Completed(()));
}

// ---------------------------------------------------------------------------------------------------------------

struct Basket;

impl Saga for Basket {
    const NAME: &'static str = "basket";
    const VERSION: u32 = 1;
    type Input = HashMap<String, u32>;
    type Output = ();
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        saga.effect_free("count").run(async |_: Cx<()>, _: HashMap<String, u32>| Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_map_is_the_same_input_in_whatever_order_it_is_written() {
    let client = Engine::builder(MemoryStore::default()).start().await.unwrap();
    let baskets = client.sagas::<Basket>();
    let basket = || (0..20).map(|n| (format!("article {n}"), n)).collect::<HashMap<_, _>>();
    let first = baskets.submit("k", basket()).await.unwrap();
    for _ in 0..10 {
        assert_eq!(baskets.submit("k", basket()).await.unwrap().id(), first.id());
    }
    let other = basket().into_iter().map(|(article, n)| (article, n + 1)).collect();
    assert!(baskets.submit("k", other).await.is_err());
}

macro_rules! saga_over {
    ($name:ident, $text:literal, $input:ty) => {
        struct $name;
        impl Saga for $name {
            const NAME: &'static str = $text;
            const VERSION: u32 = 1;
            type Input = $input;
            type Output = ();
            type Deps = ();
            fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
                saga.effect_free("look").run(async |_: Cx<()>, _: $input| Ok(()))
            }
        }
    };
}

saga_over!(Payment, "payment", u128);
saga_over!(Tree, "tree", Nested);

#[derive(serde::Serialize, serde::Deserialize)]
struct Nested(u32, Option<Box<Nested>>);

fn nested(depth: u32, leaf: u32) -> Nested {
    if depth == 0 { Nested(leaf, None) } else { Nested(0, Some(Box::new(nested(depth - 1, leaf)))) }
}

#[tokio::test(start_paused = true)]
async fn inputs_that_differ_only_where_a_common_parser_does_not_look_are_different() {
    let client = Engine::builder(MemoryStore::default()).start().await.unwrap();
    let payments = client.sagas::<Payment>();
    payments.submit("k", u128::MAX).await.unwrap();
    let error = payments.submit("k", u128::MAX - 1).await.expect_err("these are two numbers");
    assert!(matches!(error, Error::KeyTaken { .. }), "{error}");
    let trees = client.sagas::<Tree>();
    let Ok(_) = trees.submit("k", nested(200, 1)).await else { return };
    let error = trees.submit("k", nested(200, 2)).await.expect_err("these are two trees");
    assert!(matches!(error, Error::KeyTaken { .. }), "{error}");
}

// ---------------------------------------------------------------------------------------------------------------

/// One heartbeat gets no answer at all: its connection is dead.
#[derive(Default)]
struct SilentBeat(Times);

#[async_trait]
impl Rig for SilentBeat {
    async fn before(&self, call: &str, _: &MemoryStore, _: &[Append]) -> Result<(), StoreError> {
        if call == "beat" && self.0.is_the(1) {
            return std::future::pending().await;
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn one_heartbeat_without_an_answer_does_not_cost_the_lease() {
    let airline = Airline::new(|_| Box::pin(sleep(30 * SECOND).map(Ok)));
    let store = MemoryStore::default();
    let engine = engine(&store, &airline, SilentBeat::default()).start().await.unwrap();
    let trip = engine.sagas::<Trip>().submit("k", 1).await.unwrap();
    assert_eq!(trip.outcome().await.unwrap(), Outcome::Completed(()));
    let told = trip.history().await.unwrap().to_string();
    assert!(!told.contains("worker was lost"), "{told}");
}

// ---------------------------------------------------------------------------------------------------------------

/// The store hears no heartbeat for a minute, and never that a worker was only silent.
struct NotHeard(Instant);

#[async_trait]
impl Rig for NotHeard {
    async fn before(&self, call: &str, _: &MemoryStore, _: &[Append]) -> Result<(), StoreError> {
        match call {
            "beat" if self.0.elapsed() < 60 * SECOND => lost(),
            "returned" => lost(),
            _ => Ok(()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_cannot_say_that_it_lives_works_again_all_the_same() {
    let airline = Airline::new(|_| Box::pin(async { Ok(()) }));
    let store = MemoryStore::default();
    let _engine = engine(&store, &airline, NotHeard(Instant::now())).start().await.unwrap();
    sleep(60 * SECOND).await;
    let client = Engine::builder(store).start().await.unwrap();
    let trip = client.sagas::<Trip>().submit("k", 1).await.unwrap();
    let outcome = timeout(600 * SECOND, trip.outcome()).await.expect("it does nothing any more");
    assert_eq!(outcome.unwrap(), Outcome::Completed(()));
}

// ---------------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn what_waits_for_its_attempt_at_a_shutdown_has_not_begun() {
    let airline = Airline::new(|_| Box::pin(std::future::pending()));
    let store = MemoryStore::default();
    let engine = engine(&store, &airline, Nothing).configure(|config| config.attempts = 1).start().await.unwrap();
    engine.sagas::<Trip>().submit("first", 1).await.unwrap();
    until("the first", || !airline.log().is_empty()).await;
    let queued = engine.sagas::<Trip>().submit("queued", 5).await.unwrap();
    sleep(SECOND).await;
    engine.shutdown(20 * SECOND).await;
    let client = Engine::builder(store.clone()).register::<Trip>(airline.clone()).unwrap().start().await.unwrap();
    let told = client.sagas::<Trip>().get(queued.id()).history().await.unwrap().to_string();
    assert!(!told.contains("stopped in the middle"), "{told}");
}

// ---------------------------------------------------------------------------------------------------------------

/// No entry is taken, whatever it says.
#[derive(Default)]
struct NoJournal(Times);

#[async_trait]
impl Rig for NoJournal {
    async fn before(&self, call: &str, _: &MemoryStore, appends: &[Append]) -> Result<(), StoreError> {
        if call == "append" && appends.iter().any(|append| append.entry.is_some()) {
            return Err(StoreError::Rejected("no".into()));
        }
        // Enough is enough: the clock of the test stands still as long as somebody is busy.
        if call == "statuses" && !self.0.is_the(0) && self.0.so_far() > 1000 {
            return std::future::pending().await;
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn the_outcome_of_a_saga_whose_parking_could_not_be_journaled_is_parked() {
    let airline = Airline::new(|_| Box::pin(async { Ok(()) }));
    let store = MemoryStore::default();
    let engine = engine(&store, &airline, NoJournal::default()).start().await.unwrap();
    let trip = engine.sagas::<Trip>().submit("k", 1).await.unwrap();
    until("the attempt", || !airline.log().is_empty()).await;
    sleep(SECOND).await;
    assert_eq!(trip.status().await.unwrap(), Status::Parked);
    let outcome = timeout(60 * SECOND, trip.outcome()).await.expect("it asks again and again, for ever").unwrap();
    assert!(matches!(outcome, Outcome::Parked(_)), "{outcome:?}");
}

// ---------------------------------------------------------------------------------------------------------------

/// The first call of a kind hits a connection that is dead.
struct Stale(&'static str, Times);

#[async_trait]
impl Rig for Stale {
    async fn before(&self, call: &str, _: &MemoryStore, _: &[Append]) -> Result<(), StoreError> {
        if call == self.0 && self.1.is_the(1) { lost() } else { Ok(()) }
    }
}

#[tokio::test(start_paused = true)]
async fn a_users_call_survives_a_connection_that_broke() {
    for call in ["post", "read", "statuses", "find"] {
        let airline = Airline::new(|_| Box::pin(async { Ok(()) }));
        let store = MemoryStore::default();
        let client = Engine::builder(store.clone()).start().await.unwrap();
        let trip = client.sagas::<Trip>().submit("k", 1).await.unwrap().id();
        let caller = Engine::builder(Rigged { store: store.clone(), rig: Stale(call, Times::default()) });
        let trips = caller.start().await.unwrap().sagas::<Trip>();
        trips.find("k").await.unwrap_or_else(|error| panic!("{call}: {error}"));
        let trip = trips.get(trip);
        trip.status().await.unwrap_or_else(|error| panic!("{call}: {error}"));
        trip.history().await.unwrap_or_else(|error| panic!("{call}: {error}"));
        trips.cancel(trip.id(), "no").await.unwrap_or_else(|error| panic!("{call}: {error}"));
        drop(airline);
    }
}

// ---------------------------------------------------------------------------------------------------------------

/// The third start is committed, its answer comes after the caller's patience has ended.
#[derive(Default)]
struct LateStart(Times);

#[async_trait]
impl Rig for LateStart {
    async fn after(&self, call: &str, _: &[Append]) -> Result<(), StoreError> {
        if call == "start" && self.0.is_the(3) {
            sleep(11 * SECOND).await;
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_saga_nobody_knows_of_is_given_back_however_full_the_process_is() {
    let airline = Airline::new(|_| Box::pin(sleep(9 * SECOND).map(Ok)));
    let store = MemoryStore::default();
    let full =
        engine(&store, &airline, LateStart::default()).configure(|config| config.sagas = 3).start().await.unwrap();
    let (trips, client) = (full.sagas::<Trip>(), Engine::builder(store.clone()).start().await.unwrap());
    trips.submit("hangs", 0).await.unwrap();
    trips.submit("ends after nine seconds", 1).await.unwrap();
    let others = tokio::spawn(async move {
        sleep(5 * SECOND).await;
        client.sagas::<Trip>().submit("hangs then", 0).await.unwrap();
        client.sagas::<Trip>().submit("hangs after ten", 0).await.unwrap();
        client
    });
    trips.submit("unanswered", 1).await.unwrap_err();
    let _client = others.await.unwrap();
    sleep(SECOND).await;
    assert_eq!(airline.log().iter().filter(|call| *call == "book 0").count(), 3, "full: {:?}", airline.log());
    let idle = engine(&store, &airline, Nothing).start().await.unwrap();
    let unanswered = idle.sagas::<Trip>().find("unanswered").await.unwrap().expect("it stands");
    let outcome = timeout(120 * SECOND, unanswered.outcome()).await.expect("nobody runs it");
    assert_eq!(outcome.unwrap(), Outcome::Completed(()));
}

// ---------------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn no_attempt_starts_during_a_shutdown() {
    let airline = Airline::new(|_| Box::pin(sleep(5 * SECOND).map(Ok)));
    let store = MemoryStore::default();
    let engine = engine(&store, &airline, Nothing).configure(|config| config.attempts = 1).start().await.unwrap();
    engine.sagas::<Trip>().submit("first", 1).await.unwrap();
    until("the first", || !airline.log().is_empty()).await;
    engine.sagas::<Trip>().submit("queued", 5).await.unwrap();
    sleep(SECOND).await;
    engine.shutdown(60 * SECOND).await;
    assert_eq!(airline.log(), ["book 1"]);
}

// ---------------------------------------------------------------------------------------------------------------

/// The result of the step is refused, and the store is away just when the saga is to be read again.
#[derive(Default)]
struct RefusedAndAway(Times, Times);

#[async_trait]
impl Rig for RefusedAndAway {
    async fn before(&self, call: &str, _: &MemoryStore, _: &[Append]) -> Result<(), StoreError> {
        match call {
            "append" if self.0.is_the(1) => Err(StoreError::Rejected("no".into())),
            "read" if self.1.is_the(1) => lost(),
            _ => Ok(()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_result_is_in_doubt_even_if_the_store_is_away_just_then() {
    let airline = Airline::new(|_| Box::pin(async { Ok(()) }));
    let store = MemoryStore::default();
    let engine = engine(&store, &airline, RefusedAndAway::default()).start().await.unwrap();
    let trips = engine.sagas::<Trip>();
    let trip = trips.submit("k", 1).await.unwrap();
    until("the attempt", || !airline.log().is_empty()).await;
    trips.cancel(trip.id(), "changed my mind").await.unwrap();
    sleep(60 * SECOND).await;
    if trip.status().await.unwrap() == Status::Parked {
        trips.resume(trip.id(), "eve").await.unwrap();
        sleep(60 * SECOND).await;
    }
    let told = trip.history().await.unwrap().to_string();
    assert_eq!(trip.status().await.unwrap(), Status::RolledBack, "{told}");
    assert_eq!(airline.ledger.effects(), [""; 0], "left behind by a saga that was rolled back:\n{told}");
}

// ---------------------------------------------------------------------------------------------------------------

struct Touchy;

impl Drop for Touchy {
    fn drop(&mut self) {
        assert!(std::thread::panicking() || Instant::now().elapsed() > Duration::MAX, "dropped in the middle");
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_panics_when_it_is_dropped_is_an_attempt_with_an_unknown_outcome() {
    let airline = Airline::with(
        |_| Box::pin(async { Ok(()) }),
        |_| {
            Box::pin(async {
                let _touchy = Touchy;
                std::future::pending().await
            })
        },
    );
    let store = MemoryStore::default();
    let engine = engine(&store, &airline, Nothing).start().await.unwrap();
    let trip = engine.sagas::<Trip>().submit("k", 1).await.unwrap();
    let outcome = timeout(3600 * SECOND, trip.outcome()).await.expect("tried again and again, and never given up");
    assert!(matches!(outcome.unwrap(), Outcome::Parked(_)));
}

// ---------------------------------------------------------------------------------------------------------------

struct Measure;

impl Saga for Measure {
    const NAME: &'static str = "measure";
    const VERSION: u32 = 1;
    type Input = u32;
    type Output = ();
    type Deps = World;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        saga.compensatable("measure").run(measure).compensate(unmeasure);
        saga.pivot("judge").run(async |_: Cx<World>, _: u32| Err(StepError::fail("no")))
    }
}

async fn measure(world: Cx<World>, _: u32) -> Result<f64, StepError> {
    world.apply(world.idempotency_key())?;
    Ok(f64::NAN)
}

async fn unmeasure(world: CompensationCx<World>, _: u32, _: Option<f64>) -> Result<(), StepError> {
    world.revert(world.forward_key())
}

#[tokio::test(start_paused = true)]
async fn an_output_that_cannot_be_read_back_is_noticed_where_it_is_made_and_undone() {
    let world = World::default();
    let engine =
        Engine::builder(MemoryStore::default()).register::<Measure>(world.clone()).unwrap().start().await.unwrap();
    let measures = engine.sagas::<Measure>();
    let measure = measures.submit("k", 1).await.unwrap();
    let outcome = timeout(3600 * SECOND, measure.outcome()).await.unwrap().unwrap();
    let Outcome::Parked(why) = outcome else { panic!("{outcome:?}") };
    assert!(why.reason.contains("cannot be read"), "{why}");
    measures.cancel(measure.id(), "undo it").await.unwrap();
    measures.resume(measure.id(), "undo it").await.unwrap();
    sleep(3600 * SECOND).await;
    let told = measure.history().await.unwrap().to_string();
    assert_eq!(measure.status().await.unwrap(), Status::RolledBack, "{told}");
    assert_eq!(world.effects(), [""; 0]);
}

// ---------------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_verb_that_is_too_large_is_refused() {
    let client =
        Engine::builder(MemoryStore::default()).configure(|config| config.payload = 1000).start().await.unwrap();
    let trips = client.sagas::<Trip>();
    let trip = trips.submit("k", 1).await.unwrap();
    let error = trips.cancel(trip.id(), "x".repeat(10_000)).await.expect_err("it goes into the journal");
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_an_error_says_is_cut_before_it_goes_into_the_journal() {
    let airline = Airline::with(
        |_| Box::pin(async { Ok(()) }),
        |_| Box::pin(async { Err(StepError::fail("<html>".repeat(100_000))) }),
    );
    let store = MemoryStore::default();
    let engine = engine(&store, &airline, Nothing).start().await.unwrap();
    let trip = engine.sagas::<Trip>().submit("k", 1).await.unwrap();
    let Outcome::RolledBack(why) = trip.outcome().await.unwrap() else { panic!("not rolled back") };
    assert!(why.reason.len() <= 10_000, "{} bytes, in the journal for good", why.reason.len());
}

saga_over!(Reading, "reading", f64);

#[tokio::test(start_paused = true)]
async fn an_input_that_cannot_be_read_back_is_refused() {
    let client = Engine::builder(MemoryStore::default()).start().await.unwrap();
    let error = client.sagas::<Reading>().submit("k", f64::NAN).await.expect_err("no step could ever read it");
    assert!(matches!(error, Error::Codec(_)), "{error}");
}

/// A newer version of the library runs the saga, an older one comes by, and then the newer one again.
#[tokio::test(start_paused = true)]
async fn a_cancel_that_reached_a_version_which_cannot_read_the_journal_leaves_a_trace() {
    let airline = Airline::new(|_| Box::pin(async { Ok(()) }));
    let store = MemoryStore::default();
    let client = Engine::builder(store.clone()).start().await.unwrap();
    let trip = client.sagas::<Trip>().submit("k", 1).await.unwrap();
    let (newer, definition) = (WorkerId::generate(), DefinitionId { name: "trip".into(), version: 1 });
    store.join(newer, 3600 * SECOND, std::slice::from_ref(&definition)).await.unwrap();
    let record =
        store.claim(newer, std::slice::from_ref(&definition), Ripe::Due, Room::of(1)).await.unwrap().pop().unwrap();
    let append = Append {
        saga: trip.id(),
        epoch: record.epoch,
        seq: 1,
        entry: Some(br#"[{"signalled":{"name":"boarding"}}]"#.to_vec()),
        read: vec![],
        status: None,
        then: Then::Release { due_in: Some(Duration::ZERO) },
        age: Duration::ZERO,
        snapshot: SnapshotChange::None,
    };
    store.append(newer, &[append]).await.unwrap();
    client.sagas::<Trip>().cancel(trip.id(), "changed my mind").await.unwrap();
    let _older = engine(&store, &airline, Nothing).start().await.unwrap();
    sleep(60 * SECOND).await;
    let record = store.read(trip.id()).await.unwrap().unwrap();
    let journal = record.journal.iter().map(|entry| String::from_utf8_lossy(entry)).collect::<Vec<_>>().join("\n");
    let kept = record.mail.len() == 1 || journal.contains("changed my mind") || journal.contains("refused");
    assert!(kept, "the request was accepted, was read, and is nowhere: {journal}");
}
