//! A function that handles many events at once: each event has its effect once, whatever goes wrong with the others of its call.

mod participant;

use participant::World;
use saga_core::{
    Encoded, StepError,
    message::Message,
    participant::{BatchCx, Event, EventCx, Listener, Participating},
    transport::{LocalTransport, Outgoing, Receiver, Subscription, Transport, Unavailable, Verdict},
};
use saga_postgres::testing::Postgres;
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// What a handler does with these, besides noting them.
const PANICS: u32 = 1_000;
const IS_REFUSED: u32 = 1_001;
const PASSES_OVER_AN_ERROR: u32 = 1_002;
/// The first time only.
const IS_CUT_OFF: u32 = 1_003;

#[derive(Debug, Serialize, Deserialize)]
struct Shipped(u32);

impl Event for Shipped {
    const TYPE: &'static str = "shipped.v1";
    const TOPIC: &'static str = "delivery.events";
}

#[derive(Debug, Serialize, Deserialize)]
struct Arrived(u32);

impl Event for Arrived {
    const TYPE: &'static str = "arrived.v1";
    const TOPIC: &'static str = Shipped::TOPIC;
}

/// What the handlers know, and which events they were given in one call.
struct Book {
    schema: String,
    calls: Mutex<Vec<Vec<u32>>>,
}

impl Book {
    /// Notes the call, and the effects of its events.
    async fn note(&self, tx: &mut PgConnection, numbers: &[u32]) -> Result<(), StepError> {
        let before = self.calls.lock().unwrap().iter().flatten().any(|number| *number == IS_CUT_OFF);
        self.calls.lock().unwrap().push(numbers.to_vec());
        let schema = &self.schema;
        let sql = format!(
            "INSERT INTO {schema}.effect SELECT unnest($1::text[]), 1 ON CONFLICT (name) DO UPDATE SET count = effect.count + 1"
        );
        let names: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        sqlx::query(AssertSqlSafe(sql)).bind(names).execute(&mut *tx).await?;
        assert!(!numbers.contains(&PANICS), "a handler that panics");
        if numbers.contains(&IS_REFUSED) {
            return Err(StepError::fail("nobody to tell"));
        }
        if numbers.contains(&PASSES_OVER_AN_ERROR) {
            let _ = sqlx::query("SELECT 1 / 0").execute(&mut *tx).await;
        }
        if numbers.contains(&IS_CUT_OFF) && !before {
            sqlx::query("SELECT pg_terminate_backend(pg_backend_pid())").execute(&mut *tx).await?;
        }
        Ok(())
    }
}

async fn shipped(book: BatchCx<Book>, tx: &mut PgConnection, events: Vec<Shipped>) -> Result<(), StepError> {
    let keys: Vec<&str> = book.events().iter().map(EventCx::key).collect();
    let numbers: Vec<u32> = events.iter().map(|event| event.0).collect();
    assert!(keys.iter().zip(&numbers).all(|(key, number)| **key == (number % 10_000).to_string()), "{keys:?}");
    book.note(tx, &numbers).await
}

async fn arrived(book: BatchCx<Book>, tx: &mut PgConnection, events: Vec<Arrived>) -> Result<(), StepError> {
    book.note(tx, &events.iter().map(|event| event.0).collect::<Vec<_>>()).await
}

/// About one thing each: of ten thousand numbers.
fn event(number: u32) -> Message {
    Message::event("shop", Shipped::TYPE, (number % 10_000).to_string(), &Encoded::of(&Shipped(number)).unwrap())
}

struct Dead(mpsc::UnboundedSender<Message>);

#[async_trait::async_trait]
impl Receiver for Dead {
    async fn receive(&self, batch: &[Message]) -> Result<Vec<Verdict>, Unavailable> {
        batch.iter().for_each(|message| self.0.send(message.clone()).unwrap());
        Ok(vec![Verdict::Done; batch.len()])
    }
}

/// A listener whose events come in one batch if they are sent before it starts.
struct Listens {
    world: World,
    wire: LocalTransport,
    book: Arc<Book>,
}

impl Listens {
    async fn new() -> Self {
        Self::on(World::start().await)
    }

    fn on(world: World) -> Self {
        let book = Arc::new(Book { schema: world.schema.clone(), calls: Mutex::default() });
        Self { world, wire: LocalTransport::new(1), book }
    }

    async fn send(&self, messages: impl IntoIterator<Item = Message>) {
        let outgoing = |message| Outgoing { topic: Shipped::TOPIC.into(), message };
        let sent = self.wire.publish(&messages.into_iter().map(outgoing).collect::<Vec<_>>()).await;
        assert!(sent.iter().all(Result::is_ok));
    }

    async fn start(&self) -> Participating {
        let listener = Listener::new("notification", self.world.inbox.clone(), self.book.clone());
        listener.on_batch(shipped).on_batch(arrived).start(Arc::new(self.wire.clone())).await.unwrap()
    }

    /// Until so many events have had their effects.
    async fn until(&self, effects: i64) {
        let all = async {
            while self.world.count("SELECT count(*) FROM {schema}.effect").await < effects {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, all).await.unwrap();
    }

    /// Handles these, and says why some of them are dead letters.
    async fn handle(&self, messages: impl IntoIterator<Item = Message>, effects: i64, dead: usize) -> Vec<String> {
        self.send(messages).await;
        let (sender, mut letters) = mpsc::unbounded_channel();
        let topics = vec![format!("{}.dlt", Shipped::TOPIC)];
        let subscription = Subscription { group: "test".into(), topics, batch: 100 };
        let burier = self.wire.subscribe(subscription, Arc::new(Dead(sender))).await.unwrap();
        let listening = self.start().await;
        self.until(effects).await;
        let mut reasons = vec![];
        while reasons.len() < dead {
            let letter = timeout(PATIENCE, letters.recv()).await.unwrap().unwrap();
            reasons.push(letter.headers["saga-dead-letter-reason"].clone());
        }
        listening.stop().await;
        burier.stop().await;
        reasons
    }

    fn calls(&self) -> Vec<Vec<u32>> {
        self.book.calls.lock().unwrap().clone()
    }

    async fn assert_effects_once(&self) {
        assert_eq!(self.world.count("SELECT max(count)::bigint FROM {schema}.effect").await, 1);
    }
}

#[tokio::test]
async fn events_that_come_together_are_handled_in_one_call_and_what_was_handled_before_is_not_among_them() {
    let listens = Listens::new().await;
    let events: Vec<Message> = (0..30).map(event).collect();
    assert!(listens.handle(events.clone(), 30, 0).await.is_empty());
    assert_eq!(listens.calls(), [(0..30).collect::<Vec<_>>()]);
    // All again, and two new ones among them.
    let again = [&events[..10], &[event(30)], &events[10..], &[event(31)]].concat();
    assert!(listens.handle(again, 32, 0).await.is_empty());
    assert_eq!(listens.calls()[1..], [vec![30, 31]]);
    listens.assert_effects_once().await;
    assert_eq!(listens.world.rows().await, 32);
}

#[tokio::test]
async fn one_event_that_cannot_be_handled_is_in_nobodys_way() {
    let unreadable = Message { data: b"{".to_vec(), ..event(9) };
    let cases = [
        (event(IS_REFUSED), "nobody to tell"),
        (event(PANICS), "it panicked: a handler that panics"),
        (event(PASSES_OVER_AN_ERROR), "one of its statements had failed"),
        (unreadable, "the payload is no shipped.v1"),
    ];
    for (bad, reason) in cases {
        let listens = Listens::new().await;
        let events = (0..4).map(event).chain([bad]).chain((4..8).map(event));
        let dead = listens.handle(events, 8, 1).await;
        assert!(dead[0].contains(reason), "{dead:?}");
        listens.assert_effects_once().await;
        assert_eq!(listens.world.count("SELECT count(*) FROM {schema}.effect").await, 8, "{reason}");
        let calls = listens.calls();
        let (together, alone): (Vec<_>, Vec<_>) = calls.iter().partition(|call| call.len() > 1);
        // What cannot be read is found out before anybody is called.
        assert_eq!(together.len(), usize::from(!reason.starts_with("the payload")), "{calls:?}");
        (0..8).for_each(|number| assert_eq!(alone.iter().filter(|call| **call == &[number]).count(), 1, "{calls:?}"));
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_in_the_middle_leaves_each_effect_once() {
    let listens = Listens::new().await;
    let events = (0..4).chain([IS_CUT_OFF]).chain(4..8).map(event);
    assert!(listens.handle(events, 9, 0).await.is_empty());
    listens.assert_effects_once().await;
    assert_eq!(listens.calls()[0].len(), 9);
}

#[tokio::test]
async fn two_nodes_that_have_the_same_events_at_once_handle_each_once() {
    let one = Listens::new().await;
    let world =
        World { inbox: one.world.another_node().await, schema: one.world.schema.clone(), ..World::start().await };
    let other = Listens::on(world);
    let events: Vec<Message> = (0..500).map(event).collect();
    one.send(events.clone()).await;
    other.send(events).await;
    let (first, second) = tokio::join!(one.start(), other.start());
    one.until(500).await;
    tokio::join!(first.stop(), second.stop());
    one.assert_effects_once().await;
    assert_eq!(one.world.rows().await, 500);
}

#[tokio::test]
async fn connections_that_are_cut_at_any_moment_neither_lose_nor_repeat_an_effect() {
    let postgres = Postgres::private().await.unwrap();
    let listens = Listens::on(World::on(&postgres).await);
    let killer = tokio::spawn({
        let pool = PgPool::connect(&listens.world.url).await.unwrap();
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' AND xact_start IS NOT NULL";
        async move {
            let mut cut = 0;
            while cut < 15 {
                cut += sqlx::query_scalar::<_, i64>(sql).fetch_one(&pool).await.unwrap_or(0);
                sleep(Duration::from_millis(7)).await;
            }
        }
    });
    let listening = listens.start().await;
    let mut sent = 0;
    while !killer.is_finished() {
        listens.send((sent..sent + 20).map(event)).await;
        sent += 20;
        // Cut off while it looks, it looks again.
        let sql = format!("SELECT count(*) FROM {}.effect", listens.world.schema);
        while sqlx::query_scalar::<_, i64>(AssertSqlSafe(sql.clone())).fetch_one(&listens.world.pool).await.unwrap_or(0)
            < sent.into()
        {
            sleep(Duration::from_millis(1)).await;
        }
    }
    listening.stop().await;
    listens.assert_effects_once().await;
    assert_eq!(listens.world.rows().await, i64::from(sent));
}

#[tokio::test]
async fn events_of_one_key_are_in_calls_of_their_own_and_in_order() {
    let listens = Listens::new().await;
    let arrived = Message::event("shop", Arrived::TYPE, "2", &Encoded::of(&Arrived(20_002)).unwrap());
    let events = [event(1), event(2), event(3), event(10_002), arrived, event(4), event(10_001)];
    assert!(listens.handle(events, 7, 0).await.is_empty());
    assert_eq!(listens.calls(), [vec![1, 2, 3], vec![10_002], vec![20_002], vec![4, 10_001]]);
}

#[tokio::test]
async fn events_of_several_types_are_sorted_out() {
    let listens = Listens::new().await;
    let arrived = |n: u32| Message::event("shop", Arrived::TYPE, n.to_string(), &Encoded::of(&Arrived(n)).unwrap());
    let events = (0..6).map(|n| if n % 2 == 0 { event(n) } else { arrived(n) });
    assert!(listens.handle(events, 6, 0).await.is_empty());
    assert_eq!(listens.calls(), [vec![1, 3, 5], vec![0, 2, 4]]);
}

#[tokio::test]
async fn a_call_that_meets_a_lock_is_made_again_when_it_is_free() {
    let listens = Listens::new().await;
    listens.world.sql("INSERT INTO {schema}.effect VALUES ('5', 0)").await;
    let mut holder = PgConnection::connect(&listens.world.url).await.unwrap();
    let lock = format!("BEGIN; UPDATE {}.effect SET count = 0", listens.world.schema);
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut holder).await.unwrap();
    listens.send((0..8).map(event)).await;
    let listening = listens.start().await;
    // Those before it are not held up any longer than a batch waits for locks.
    listens.until(6).await;
    sqlx::raw_sql("COMMIT").execute(&mut holder).await.unwrap();
    listens.until(8).await;
    listening.stop().await;
    listens.assert_effects_once().await;
    assert_eq!(listens.calls()[0].len(), 8);
}
