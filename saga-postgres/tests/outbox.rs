//! The promises of the outbox, on a real Postgres and a broker in memory that fails as it is told to.

mod broker;

use broker::{Broker, first_occurrences};
use saga_core::{
    Encoded,
    message::Message,
    participant::Event,
    transport::{Consumer, Outgoing, PublishError, Receiver, Subscription, Transport, TransportError},
};
use saga_postgres::{
    PgOutbox,
    outbox::{OutboxError, Relay},
    testing,
};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgPool, Row, postgres::PgPoolOptions};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Counted(u64);

impl Event for Counted {
    const TYPE: &'static str = "test.counted.v1";
    const TOPIC: &'static str = "counted";
}

/// The same under another topic.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Elsewhere(u64);

impl Event for Elsewhere {
    const TYPE: &'static str = "test.elsewhere.v1";
    const TOPIC: &'static str = "elsewhere";
}

struct Setup {
    outbox: PgOutbox,
    pool: PgPool,
    schema: String,
}

async fn fresh() -> Setup {
    edited(|_, sql| sql).await
}

async fn edited(edit: fn(&str, String) -> String) -> Setup {
    let postgres = testing::shared().await.unwrap();
    on(&postgres.url(), postgres.schema(), edit).await
}

async fn on(url: &str, schema: String, edit: fn(&str, String) -> String) -> Setup {
    let pool = PgPoolOptions::new().max_connections(4).connect(url).await.unwrap();
    let options = PgOutbox::options(pool.clone(), "tests").schema(&schema).edit_sql(edit);
    let outbox = options.build().unwrap();
    outbox.migrate().await.unwrap();
    Setup { outbox, pool, schema }
}

impl Setup {
    async fn publish(&self, key: &str, number: u64) {
        let mut tx = self.pool.begin().await.unwrap();
        self.outbox.publish(&mut tx, key, &Counted(number)).await.unwrap();
        self.outbox.commit(tx).await.unwrap();
    }

    /// One transaction, nobody is woken.
    async fn publish_quietly(&self, keys: &[&str], numbers: impl IntoIterator<Item = u64>) {
        let mut tx = self.pool.begin().await.unwrap();
        for number in numbers {
            for key in keys {
                self.outbox.publish(&mut tx, key, &Counted(number)).await.unwrap();
            }
        }
        tx.commit().await.unwrap();
    }

    async fn relay(&self, broker: &Arc<Broker>) -> Relay {
        let relay = self.outbox.relay(broker.clone()).lanes(2).poll(Duration::from_millis(100));
        relay.lease(Duration::from_millis(900)).start().await.unwrap()
    }

    async fn is_true(&self, sql: &str) -> bool {
        let sql = sql.replace("{schema}", &self.schema);
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap()
    }

    async fn until(&self, sql: &str) {
        let began = Instant::now();
        while !self.is_true(sql).await {
            assert!(began.elapsed() < Duration::from_secs(120), "never: {sql}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_empty(&self) {
        self.until("SELECT NOT EXISTS (SELECT FROM {schema}.saga_outbox)").await;
    }
}

fn unavailable() -> Result<(), PublishError> {
    Err(PublishError::Unavailable("away".into()))
}

fn refused() -> Result<(), PublishError> {
    Err(PublishError::Refused("not this\0one".into()))
}

#[tokio::test]
async fn an_event_leaves_soon_after_its_commit_and_its_row_is_gone() {
    let setup = fresh().await;
    let broker = Broker::new();
    let relay = setup.outbox.relay(broker.clone()).poll(Duration::from_secs(60)).start().await.unwrap();
    let mut took = vec![];
    for number in 0..21 {
        setup.publish("a", number).await;
        let committed = Instant::now();
        broker.until_it_has(number as usize + 1).await;
        took.push(committed.elapsed());
    }
    took.sort();
    assert!(took[10] < Duration::from_millis(500), "{took:?}");
    assert_eq!(broker.of_key("a"), (0..21).collect::<Vec<_>>());
    setup.until_empty().await;
    relay.stop().await;
}

#[tokio::test]
async fn polling_finds_what_nobody_woke_for() {
    let setup = fresh().await;
    let broker = Broker::new();
    let relay = setup.relay(&broker).await;
    // Every lane has looked.
    setup.publish_quietly(&["a", "b", "c", "d"], [1]).await;
    broker.until_it_has(4).await;
    setup.publish_quietly(&["a", "b", "c", "d"], [2]).await;
    broker.until_it_has(8).await;
    relay.stop().await;
}

#[tokio::test]
async fn what_is_rolled_back_never_leaves() {
    let setup = fresh().await;
    let broker = Broker::new();
    let relay = setup.relay(&broker).await;
    let mut tx = setup.pool.begin().await.unwrap();
    setup.outbox.publish(&mut tx, "a", &Counted(1)).await.unwrap();
    tx.rollback().await.unwrap();
    let mut tx = setup.pool.begin().await.unwrap();
    setup.outbox.publish(&mut tx, "a", &Counted(2)).await.unwrap();
    sqlx::raw_sql("SAVEPOINT here").execute(&mut *tx).await.unwrap();
    setup.outbox.publish(&mut tx, "a", &Counted(3)).await.unwrap();
    sqlx::raw_sql("ROLLBACK TO SAVEPOINT here").execute(&mut *tx).await.unwrap();
    setup.outbox.publish(&mut tx, "a", &Counted(4)).await.unwrap();
    setup.outbox.commit(tx).await.unwrap();
    setup.publish("a", 5).await;
    broker.until_it_has(3).await;
    relay.stop().await;
    assert_eq!(broker.of_key("a"), [2, 4, 5]);
}

#[tokio::test]
async fn a_message_arrives_as_it_was_written() {
    let setup = fresh().await;
    let broker = Broker::new();
    let relay = setup.relay(&broker).await;
    let mut message = Message::event("orders", "order.drawn.v1", "order \u{1F4E6}", &Encoded::null());
    message.data = vec![0, 159, 146, 150];
    message.content_type = "image/png".into();
    message.subject = None;
    message.extensions.insert("priority".into(), "high \"quoted\"".into());
    message.headers.insert("traceparent".into(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    message.headers.insert("baggage".into(), "a=1,b=2".into());
    let mut tx = setup.pool.begin().await.unwrap();
    setup.outbox.publish_message(&mut tx, "drawings", &message).await.unwrap();
    setup.outbox.commit(tx).await.unwrap();
    broker.until_it_has(1).await;
    relay.stop().await;
    let arrived = broker.log().remove(0);
    // Postgres keeps microseconds.
    message.time = chrono::DateTime::from_timestamp_micros(message.time.timestamp_micros()).unwrap();
    assert_eq!((arrived.topic.as_str(), arrived.message), ("drawings", message));
}

#[tokio::test]
async fn events_of_one_statement_leave_in_their_order_and_as_they_were_written() {
    let setup = fresh().await;
    let event = |key: &str, number| setup.outbox.event(key, &Counted(number)).unwrap();
    let mut decorated = event("b", 2);
    decorated.message.subject = None;
    decorated.message.extensions.insert("priority".into(), "high \"quoted\"".into());
    decorated.message.headers.insert("baggage".into(), "a=1,b=2".into());
    decorated.topic = "elsewhere".into();
    let mut sent = vec![event("a", 1), decorated, event("a", 3)];
    sent.extend((4..40).map(|number| event("a", number)));
    let mut tx = setup.pool.begin().await.unwrap();
    setup.outbox.publish_all(&mut tx, sent.clone()).await.unwrap();
    setup.outbox.publish_all(&mut tx, vec![]).await.unwrap();
    tx.commit().await.unwrap();
    let broker = Broker::new();
    let relay = setup.relay(&broker).await;
    broker.until_it_has(sent.len()).await;
    relay.stop().await;
    let arrived = broker.log();
    for mut written in sent {
        // Postgres keeps microseconds.
        let micros = written.message.time.timestamp_micros();
        written.message.time = chrono::DateTime::from_timestamp_micros(micros).unwrap();
        let found = arrived.iter().find(|arrived| arrived.message.id == written.message.id).unwrap();
        assert_eq!((&found.topic, &found.message), (&written.topic, &written.message));
    }
    assert_eq!(broker.of_key("a"), [&[1], &(3..40).collect::<Vec<_>>()[..]].concat());
}

/// `scripts/debezium` shows the rest, with the real one.
#[tokio::test]
async fn an_event_has_the_columns_that_the_guide_has_change_data_capture_place_in_headers() {
    let setup = fresh().await;
    setup.publish("a", 1).await;
    let (_, placement) = include_str!("../../docs/src/kafka.md").split_once("additional.placement=").unwrap();
    let (placement, _) = placement.split_once("\n#").unwrap();
    let places: Vec<_> = placement.split(',').map(|place| place.trim_matches(['\\', '\n', ' '])).collect();
    let columns: Vec<_> = places.iter().map(|place| place.split_once(":header:").unwrap().0).collect();
    assert_eq!(places[0], "specversion:header:ce_specversion");
    let columns = columns.join(", ");
    let sql = format!("SELECT specversion = '1.0' FROM (SELECT {columns} FROM {{schema}}.saga_outbox) AS placed");
    assert!(setup.is_true(&sql).await, "{columns}");
}

#[tokio::test]
async fn one_event_that_cannot_be_written_keeps_back_the_others_of_its_statement() {
    let setup = fresh().await;
    let mut large = setup.outbox.event("a", &Counted(2)).unwrap();
    large.message.data = vec![b'1'; 1_000_001];
    let events = vec![setup.outbox.event("a", &Counted(1)).unwrap(), large];
    let mut tx = setup.pool.begin().await.unwrap();
    let error = setup.outbox.publish_all(&mut tx, events).await.unwrap_err();
    assert!(matches!(error, OutboxError::TooLarge { .. }), "{error}");
    setup.outbox.publish(&mut tx, "a", &Counted(3)).await.unwrap();
    tx.commit().await.unwrap();
    assert!(setup.is_true("SELECT count(*) = 1 FROM {schema}.saga_outbox").await);
}

#[tokio::test]
async fn an_event_that_is_too_large_is_an_error_and_the_transaction_goes_on() {
    let setup = fresh().await;
    let options = PgOutbox::options(setup.pool.clone(), "tests").schema(&setup.schema).max_message_bytes(1000);
    let outbox = options.build().unwrap();
    let mut tx = setup.pool.begin().await.unwrap();
    let mut message = Message::event("tests", "t", "a", &Encoded::null());
    message.data = vec![b'1'; 1001];
    let error = outbox.publish_message(&mut tx, "counted", &message).await.unwrap_err();
    assert!(error.to_string().contains("the limit is 1000"), "{error}");
    message.data = b"7".to_vec();
    message.key = "k".repeat(2000);
    let wide = &setup.outbox;
    let error = wide.publish_message(&mut tx, "counted", &message).await.unwrap_err();
    assert!(error.to_string().contains("2007 bytes in all, the limit is 2000"), "{error}");
    message.key = "a".into();
    message.id = "no uuid".into();
    let error = outbox.publish_message(&mut tx, "counted", &message).await.unwrap_err();
    assert!(matches!(error, OutboxError::Id(_)), "{error}");
    outbox.publish(&mut tx, "a", &Counted(7)).await.unwrap();
    outbox.commit(tx).await.unwrap();
    let broker = Broker::new();
    let relay = setup.relay(&broker).await;
    broker.until_it_has(1).await;
    relay.stop().await;
    assert_eq!(broker.numbers(), [7]);
}

#[tokio::test]
async fn a_relay_that_could_not_work_does_not_start() {
    let setup = fresh().await;
    let error = setup.outbox.relay(Broker::of(999_999)).start().await.unwrap_err();
    assert!(error.to_string().contains("the outbox takes events of up to 1000000 bytes"), "{error}");
    let elsewhere = PgOutbox::options(setup.pool.clone(), "tests").schema("not_there").build().unwrap();
    let error = elsewhere.relay(Broker::new()).start().await.unwrap_err();
    assert!(error.to_string().contains("run `migrate()` first"), "{error}");
    let error = PgOutbox::options(setup.pool.clone(), "tests").schema("Not a name").build().unwrap_err();
    assert!(error.to_string().contains("cannot be the name of a schema"), "{error}");
}

#[tokio::test]
async fn a_refused_event_parks_its_key_and_no_other_until_an_operator_decides() {
    let setup = fresh().await;
    let broker = Broker::new();
    broker.decide(
        |outgoing| if outgoing.message.data == b"2" && outgoing.message.key != "b" { refused() } else { Ok(()) },
    );
    let relay = setup.relay(&broker).await;
    for key in ["a", "b", "c"] {
        setup.publish(key, 1).await;
        setup.publish(key, 2).await;
    }
    setup.until("SELECT count(*) = 2 FROM {schema}.saga_outbox_parked").await;
    for key in ["a", "b", "c"] {
        setup.publish(key, 3).await;
        setup.publish(key, 4).await;
    }
    setup.until("SELECT count(*) = 6 FROM {schema}.saga_outbox_parked").await;
    setup.until_empty().await;
    assert_eq!((broker.of_key("a"), broker.of_key("b"), broker.of_key("c")), (vec![1], vec![1, 2, 3, 4], vec![1]));
    // Another topic is another order.
    let mut tx = setup.pool.begin().await.unwrap();
    setup.outbox.publish(&mut tx, "a", &Elsewhere(9)).await.unwrap();
    setup.outbox.commit(tx).await.unwrap();
    broker.until("another topic", |broker| broker.of_key("a") == [1, 9]).await;

    let parked = setup.outbox.parked(10).await.unwrap();
    let seen: Vec<_> =
        parked.iter().map(|parked| (parked.key.as_str(), parked.reason.as_str(), parked.behind)).collect();
    assert_eq!(seen, [("a", "not this one", 2), ("c", "not this one", 2)]);
    assert_eq!((parked[0].topic.as_str(), parked[0].kind.as_str()), ("counted", "test.counted.v1"));
    let lag = setup.outbox.lag().await.unwrap();
    assert_eq!((lag.waiting, lag.parked, lag.behind), (0, 2, 4));
    assert_eq!(relay.numbers().refused, 2);

    // Still refused: parked again, and nothing passes it.
    assert!(setup.outbox.unpark(parked[0].id).await.unwrap());
    setup.until("SELECT count(*) = 6 FROM {schema}.saga_outbox_parked").await;
    assert_eq!(broker.of_key("a"), [1, 9]);
    broker.accept();
    assert!(setup.outbox.unpark(parked[0].id).await.unwrap());
    assert!(setup.outbox.discard(parked[1].id).await.unwrap());
    broker
        .until("the rest", |broker| (broker.of_key("a"), broker.of_key("c")) == (vec![1, 9, 2, 3, 4], vec![1, 3, 4]))
        .await;
    assert!(!setup.outbox.unpark(parked[0].id).await.unwrap());
    assert!(!setup.outbox.discard(parked[1].id).await.unwrap());
    relay.stop().await;
    assert_eq!(setup.outbox.parked(10).await.unwrap(), []);
}

#[tokio::test]
async fn a_topic_that_was_put_right_is_unparked_as_a_whole() {
    let setup = fresh().await;
    let broker = Broker::new();
    broker.decide(|outgoing| if outgoing.topic == "counted" { refused() } else { Ok(()) });
    let relay = setup.relay(&broker).await;
    let keys: Vec<String> = (0..20).map(|n| format!("key-{n}")).collect();
    setup.publish_quietly(&keys.iter().map(String::as_str).collect::<Vec<_>>(), 0..3).await;
    setup.until("SELECT count(*) = 60 FROM {schema}.saga_outbox_parked").await;
    broker.accept();
    assert_eq!(setup.outbox.unpark_topic("elsewhere").await.unwrap(), 0);
    assert_eq!(setup.outbox.unpark_topic("counted").await.unwrap(), 20);
    broker.until_it_has(60).await;
    relay.stop().await;
    assert!(keys.iter().all(|key| broker.of_key(key) == [0, 1, 2]));
}

/// One event is refused, and 1,299 wait behind it.
async fn many_are_parked(setup: &Setup, broker: &Arc<Broker>) {
    broker.decide(|outgoing| if outgoing.message.data == b"0" { refused() } else { Ok(()) });
    let relay = setup.relay(broker).await;
    setup.publish("a", 0).await;
    setup.until("SELECT count(*) = 1 FROM {schema}.saga_outbox_parked").await;
    setup.publish_quietly(&["a"], 1..1300).await;
    setup.until("SELECT count(*) = 1300 FROM {schema}.saga_outbox_parked").await;
    relay.stop().await;
}

/// In one statement, all of it could be too much for the time that there is.
#[tokio::test]
async fn what_waits_behind_a_refused_event_is_given_back_some_at_a_time_and_in_its_order() {
    let setup = fresh().await;
    let broker = Broker::new();
    many_are_parked(&setup, &broker).await;
    let refused = &setup.outbox.parked(10).await.unwrap()[0];
    assert!(setup.outbox.discard(refused.id).await.unwrap());
    assert!(setup.is_true("SELECT count(*) = 799 FROM {schema}.saga_outbox_parked").await);
    let relay = setup.relay(&broker).await;
    broker.until_it_has(1299).await;
    setup.until_empty().await;
    relay.stop().await;
    assert_eq!(broker.of_key("a"), (1..1300).collect::<Vec<_>>());
    assert!(setup.is_true("SELECT count(*) = 0 FROM {schema}.saga_outbox_parked").await);
}

#[tokio::test]
async fn many_parked_events_of_a_topic_are_given_back_some_at_a_time_and_in_their_order() {
    let setup = fresh().await;
    let broker = Broker::new();
    many_are_parked(&setup, &broker).await;
    let refused = "WITH refused AS (UPDATE {schema}.saga_outbox_parked SET reason = 'no' RETURNING 1)
                   SELECT count(*) = 1300 FROM refused";
    assert!(setup.is_true(refused).await);
    assert_eq!(setup.outbox.unpark_topic("counted").await.unwrap(), 1300);
    assert!(setup.is_true("SELECT count(DISTINCT xmin::text) = 3 FROM {schema}.saga_outbox").await);
    broker.accept();
    let relay = setup.relay(&broker).await;
    broker.until_it_has(1300).await;
    relay.stop().await;
    assert_eq!(broker.of_key("a"), (0..1300).collect::<Vec<_>>());
}

/// The longest that there may be, of what cannot be made shorter: nothing of it may keep the relay from parking it.
#[tokio::test]
async fn an_event_with_the_longest_key_can_be_parked_too() {
    let setup = fresh().await;
    let broker = Broker::new();
    broker.decide(|_| refused());
    let relay = setup.relay(&broker).await;
    let key: String =
        (0..63).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect::<String>().split_at(1993).0.into();
    setup.publish(&key, 1).await;
    setup.until("SELECT count(*) = 1 FROM {schema}.saga_outbox_parked").await;
    relay.stop().await;
}

#[tokio::test]
async fn a_key_that_the_broker_does_not_take_now_waits_in_its_order_and_the_others_go_on() {
    let setup = fresh().await;
    let broker = Broker::new();
    broker.decide(|outgoing| if outgoing.message.key == "a" { unavailable() } else { Ok(()) });
    // More of it than a round takes.
    setup.publish_quietly(&["a"], 0..500).await;
    // Of the same shard, behind it.
    setup.publish_quietly(&[&same_shard_as_a()], 0..10).await;
    setup.publish_quietly(&["b", "c", "d"], 0..10).await;
    let relay = setup.relay(&broker).await;
    broker.until_it_has(40).await;
    assert_eq!(broker.of_key("a"), [0_u64; 0]);
    assert!(relay.numbers().unavailable > 0);
    broker.accept();
    broker.until_it_has(540).await;
    assert_eq!(broker.of_key("a"), (0..500).collect::<Vec<_>>());
    relay.stop().await;
}

/// Another key of that shard.
fn same_shard_as_a() -> String {
    let shard = |key: &str| {
        key.bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
            % 64
    };
    (0..).map(|n| format!("other-{n}")).find(|key| shard(key) == shard("a")).unwrap()
}

#[tokio::test]
async fn a_broker_that_is_away_is_waited_for() {
    let setup = fresh().await;
    let broker = Broker::new();
    broker.decide(|_| unavailable());
    let relay = setup.relay(&broker).await;
    let keys: Vec<String> = (0..1200).map(|n| n.to_string()).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    setup.publish_quietly(&keys, 0..2).await;
    broker.until("it is asked again", |broker| broker.calls() > 6).await;
    assert_eq!(relay.numbers().published, 0);
    broker.accept();
    broker.until_it_has(2400).await;
    relay.stop().await;
    assert!(keys.iter().all(|key| broker.of_key(key) == [0, 1]));
}

#[tokio::test]
async fn a_transport_that_panics_ends_no_relay() {
    let setup = fresh().await;
    let broker = Broker::new();
    let relay = setup.relay(&broker).await;
    broker.panic_at_the_next_call();
    setup.publish("a", 1).await;
    broker.until_it_has(1).await;
    relay.stop().await;
}

#[tokio::test]
async fn two_relays_share_the_work_and_repeat_nothing() {
    let setup = fresh().await;
    let broker = Broker::new();
    let (one, other) = (setup.relay(&broker).await, setup.relay(&broker).await);
    let writer = async |writer: u64| {
        for number in 0..100 {
            setup.publish(&format!("{writer}-{}", number % 10), number).await;
        }
    };
    futures::future::join_all((0..4).map(writer)).await;
    broker.until_it_has(400).await;
    setup.until_empty().await;
    one.stop().await;
    other.stop().await;
    assert_eq!(broker.log().len(), 400);
    for key in (0..4).flat_map(|writer| (0..10).map(move |key| (writer, key))) {
        let expected: Vec<u64> = (key.1..100).step_by(10).collect();
        assert_eq!(broker.of_key(&format!("{}-{}", key.0, key.1)), expected);
    }
}

/// The lock saves work, no more: this is what there is without it.
#[tokio::test]
async fn relays_that_do_not_lock_repeat_much_and_still_keep_the_order() {
    let setup = edited(|name, sql| match name {
        "lock" => sql.replace("pg_try_advisory_xact_lock(", "(0, 0) IS DISTINCT FROM ("),
        _ => sql,
    })
    .await;
    let broker = Broker::new();
    let mut relays = vec![];
    for _ in 0..4 {
        relays.push(setup.relay(&broker).await);
    }
    let writer = async |key: u64| {
        for number in 0..300 {
            setup.publish(&key.to_string(), number).await;
        }
    };
    futures::future::join_all((0..4).map(writer)).await;
    broker.until("all events", |broker| first_occurrences(broker.of_key("3")).len() == 300).await;
    setup.until_empty().await;
    for relay in relays {
        relay.stop().await;
    }
    for key in 0..4 {
        assert_eq!(first_occurrences(broker.of_key(&key.to_string())), (0..300).collect::<Vec<_>>());
    }
    assert!(broker.log().len() > 1200, "without a lock nothing was repeated: the test shows nothing");
}

#[tokio::test]
async fn what_a_killed_relay_was_sending_is_sent_again_at_once() {
    let setup = fresh().await;
    let broker = Broker::new();
    broker.fall_silent();
    // Its lease is long: that is not what frees its shards.
    let relay = setup.outbox.relay(broker.clone()).lease(Duration::from_secs(600)).start().await.unwrap();
    setup.publish_quietly(&["a", "b"], 0..10).await;
    setup.outbox.wake();
    broker.until_it_has(20).await;
    drop(relay);
    broker.answer();
    let began = Instant::now();
    let relay = setup.relay(&broker).await;
    broker.until_it_has(40).await;
    assert!(began.elapsed() < Duration::from_secs(5));
    setup.until_empty().await;
    relay.stop().await;
    let twice: Vec<u64> = (0..10).chain(0..10).collect();
    assert_eq!((broker.of_key("a"), broker.of_key("b")), (twice.clone(), twice));
    let ids: std::collections::HashSet<String> = broker.log().into_iter().map(|sent| sent.message.id).collect();
    assert_eq!(ids.len(), 20, "a repeat has the same id");
}

/// A transport that stops its whole thread, and so the relay, before it passes on what it was given.
struct Frozen {
    broker: Arc<Broker>,
    called: tokio::sync::Notify,
    thaw: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
}

#[async_trait::async_trait]
impl Transport for Frozen {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        self.called.notify_one();
        self.thaw.lock().unwrap().recv().unwrap();
        self.broker.publish(batch).await
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
        receiver: Arc<dyn Receiver>,
    ) -> Result<Box<dyn Consumer>, TransportError> {
        self.broker.subscribe(subscription, receiver).await
    }

    fn system(&self) -> &'static str {
        "local"
    }

    fn max_message_bytes(&self) -> usize {
        self.broker.max_message_bytes()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_frozen_relay_is_followed_after_its_lease_and_what_it_sends_late_is_a_repeat() {
    let setup = fresh().await;
    let broker = Broker::new();
    let (thaw, frozen) = std::sync::mpsc::channel();
    let frozen = Arc::new(Frozen { broker: broker.clone(), called: tokio::sync::Notify::new(), thaw: frozen.into() });
    setup.publish_quietly(&["a"], 0..10).await;
    // A runtime of its own, as another process has.
    let (outbox, transport, lease) = (setup.outbox.clone(), frozen.clone(), Duration::from_millis(400));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let other = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let relay = outbox.relay(transport).lanes(1).lease(lease).start().await.unwrap();
            stopped.await.unwrap();
            relay.stop().await;
        });
    });
    frozen.called.notified().await;
    // All the time that this one sends, the other one is frozen.
    let relay = setup.relay(&broker).await;
    broker.until_it_has(10).await;
    setup.publish_quietly(&["a"], 10..20).await;
    broker.until_it_has(20).await;
    thaw.send(()).unwrap();
    broker.until("the late ones", |broker| broker.log().len() >= 30).await;
    drop(thaw);
    stop.send(()).unwrap();
    other.join().unwrap();
    setup.until_empty().await;
    relay.stop().await;
    assert_eq!(broker.of_key("a"), (0..20).chain(0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_relay_that_waits_for_its_broker_for_longer_than_its_lease_is_not_robbed() {
    let setup = fresh().await;
    let broker = Broker::new();
    broker.fall_silent();
    let patient = setup.outbox.relay(broker.clone()).lanes(1).lease(Duration::from_millis(300)).start().await.unwrap();
    setup.publish("a", 1).await;
    broker.until_it_has(1).await;
    let other = setup.relay(&broker).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    broker.answer();
    setup.until_empty().await;
    patient.stop().await;
    other.stop().await;
    assert_eq!(broker.of_key("a"), [1]);
}

#[tokio::test]
async fn a_relay_whose_sessions_are_ended_goes_on() {
    let setup = fresh().await;
    let broker = Broker::new();
    let relay = setup.relay(&broker).await;
    for number in 0..300 {
        setup.publish("a", number).await;
        if number % 30 == 0 {
            let end = "SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity WHERE application_name = '{schema} outbox relay'";
            setup.until(end).await;
        }
    }
    broker.until("all events", |broker| first_occurrences(broker.of_key("a")).len() == 300).await;
    setup.until_empty().await;
    relay.stop().await;
    assert_eq!(first_occurrences(broker.of_key("a")), (0..300).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_database_that_crashes_is_waited_for_and_nothing_is_lost() {
    let mut postgres = testing::Postgres::private().await.unwrap();
    let setup = on(&postgres.url(), "saga".into(), |_, sql| sql).await;
    let broker = Broker::new();
    let relay = setup.relay(&broker).await;
    for crash in 0..2 {
        setup.publish_quietly(&["a", "b"], crash * 100..crash * 100 + 100).await;
        broker.until("some of it", |broker| broker.of_key("b").len() > crash as usize * 100).await;
        postgres.crash().await.unwrap();
        let began = Instant::now();
        while setup.pool.acquire().await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(120), "the database did not come back");
        }
    }
    setup.publish("a", 200).await;
    setup.publish("b", 200).await;
    for key in ["a", "b"] {
        broker.until("the last", |broker| broker.of_key(key).contains(&200)).await;
    }
    setup.until_empty().await;
    relay.stop().await;
    for key in ["a", "b"] {
        assert_eq!(first_occurrences(broker.of_key(key)), (0..=200).collect::<Vec<_>>());
    }
    postgres.stop().await;
}

/// Numbers are given out before the commit: a lower one may appear after a higher one was published.
#[tokio::test]
async fn an_event_that_was_numbered_early_and_committed_late_is_found() {
    let setup = fresh().await;
    let broker = Broker::new();
    let relay = setup.relay(&broker).await;
    let other = same_shard_as_a();
    let mut late = setup.pool.begin().await.unwrap();
    setup.outbox.publish(&mut late, &other, &Counted(1)).await.unwrap();
    setup.publish("a", 2).await;
    broker.until_it_has(1).await;
    setup.until_empty().await;
    setup.outbox.commit(late).await.unwrap();
    broker.until_it_has(2).await;
    relay.stop().await;
    assert_eq!(broker.numbers(), [2, 1]);
}

#[tokio::test]
async fn transactions_that_lock_what_the_key_stands_for_are_published_in_the_order_of_their_commits() {
    let setup = fresh().await;
    let table = format!("{}.account", setup.schema);
    let create = format!(
        "CREATE TABLE {table} (id int PRIMARY KEY, version bigint NOT NULL); INSERT INTO {table} VALUES (1, 0)"
    );
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&setup.pool).await.unwrap();
    let broker = Broker::new();
    let relay = setup.relay(&broker).await;
    let writer = async |_| {
        for _ in 0..100 {
            let mut tx = setup.pool.begin().await.unwrap();
            let change = format!("UPDATE {table} SET version = version + 1 WHERE id = 1 RETURNING version");
            let version: i64 = sqlx::query_scalar(AssertSqlSafe(change)).fetch_one(&mut *tx).await.unwrap();
            setup.outbox.publish(&mut tx, "account-1", &Counted(version as u64)).await.unwrap();
            setup.outbox.commit(tx).await.unwrap();
        }
    };
    futures::future::join_all((0..4).map(writer)).await;
    broker.until_it_has(400).await;
    relay.stop().await;
    assert_eq!(broker.numbers(), (1..=400).collect::<Vec<_>>());
}

#[tokio::test]
async fn transactions_that_publish_to_the_same_keys_do_not_wait_for_each_other() {
    let setup = fresh().await;
    let (mut one, mut other) = (setup.pool.begin().await.unwrap(), setup.pool.begin().await.unwrap());
    setup.outbox.publish(&mut one, "a", &Counted(1)).await.unwrap();
    setup.outbox.publish(&mut other, "b", &Counted(2)).await.unwrap();
    setup.outbox.publish(&mut one, "b", &Counted(3)).await.unwrap();
    setup.outbox.publish(&mut other, "a", &Counted(4)).await.unwrap();
    setup.outbox.commit(other).await.unwrap();
    setup.outbox.commit(one).await.unwrap();
    let broker = Broker::new();
    let relay = setup.relay(&broker).await;
    broker.until_it_has(4).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_round_that_waits_for_its_broker_does_not_keep_vacuum_from_its_work() {
    let setup = fresh().await;
    let broker = Broker::new();
    broker.fall_silent();
    let relay = setup.relay(&broker).await;
    setup.publish("a", 1).await;
    broker.until_it_has(1).await;
    let sql = "SELECT state = 'idle in transaction' AND backend_xmin IS NULL AND backend_xid IS NULL FROM pg_stat_activity \
               WHERE application_name = '{schema} outbox relay' AND state LIKE 'idle in%'";
    setup.until(sql).await;
    broker.answer();
    relay.stop().await;
}

#[tokio::test]
async fn a_relay_that_stops_lets_its_round_end_and_leaves_nothing_in_doubt() {
    let setup = fresh().await;
    let broker = Broker::new();
    broker.fall_silent();
    let relay = setup.relay(&broker).await;
    setup.publish("a", 1).await;
    broker.until_it_has(1).await;
    let stopping = tokio::spawn(relay.stop());
    setup.publish("a", 2).await;
    broker.answer();
    stopping.await.unwrap();
    assert_eq!(broker.numbers(), [1]);
    assert_eq!(setup.outbox.lag().await.unwrap().waiting, 1);
}

#[tokio::test]
async fn lag_and_latency_say_how_long_events_wait() {
    let setup = fresh().await;
    let none = setup.outbox.lag().await.unwrap();
    assert_eq!((none.waiting, none.oldest, none.parked, none.behind), (0, None, 0, 0));
    setup.publish_quietly(&["a", "b"], 0..3).await;
    setup.until("SELECT min(created_at) < clock_timestamp() - interval '200 ms' FROM {schema}.saga_outbox").await;
    let lag = setup.outbox.lag().await.unwrap();
    assert_eq!(lag.waiting, 6);
    assert!(lag.oldest.unwrap() >= Duration::from_millis(200), "{lag:?}");
    let broker = Broker::new();
    let relay = setup.relay(&broker).await;
    broker.until_it_has(6).await;
    setup.until_empty().await;
    let numbers = relay.numbers();
    assert_eq!((numbers.published, numbers.refused, numbers.unavailable), (6, 0, 0));
    assert_eq!(numbers.latency.count(), 6);
    assert!(numbers.latency.at(0.5).unwrap() >= Duration::from_millis(200));
    relay.stop().await;
}

#[tokio::test]
async fn a_round_takes_no_more_than_it_may_hold() {
    let setup = fresh().await;
    let broker = Broker::new();
    let mut message = Message::event("tests", "t", "a", &Encoded::null());
    // JSON all the same.
    message.data = [&[b' '; 400_000][..], b"1"].concat();
    let mut tx = setup.pool.begin().await.unwrap();
    for _ in 0..8 {
        setup.outbox.publish_message(&mut tx, "counted", &message).await.unwrap();
    }
    tx.commit().await.unwrap();
    let relay = setup.relay(&broker).await;
    broker.until_it_has(8).await;
    relay.stop().await;
    assert_eq!(broker.calls(), 4, "two large ones a round");
}

#[tokio::test]
async fn a_busy_relay_vacuums_behind_itself() {
    let setup = fresh().await;
    let off = format!("ALTER TABLE {}.saga_outbox SET (autovacuum_enabled = off)", setup.schema);
    sqlx::raw_sql(AssertSqlSafe(off)).execute(&setup.pool).await.unwrap();
    let broker = Broker::new();
    let keys: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    setup.publish_quietly(&keys.iter().map(String::as_str).collect::<Vec<_>>(), 0..101).await;
    let relay = setup.relay(&broker).await;
    let vacuumed =
        "SELECT vacuum_count > 0 FROM pg_stat_user_tables WHERE schemaname = '{schema}' AND relname = 'saga_outbox'";
    setup.until(vacuumed).await;
    relay.stop().await;
}

#[tokio::test]
async fn postgres_can_prepare_every_statement_and_reads_by_the_index() {
    let setup = fresh().await;
    let mut connection = setup.pool.acquire().await.unwrap();
    // What is no query cannot be prepared.
    for (name, sql) in setup.outbox.statements().into_iter().filter(|(name, _)| *name != "vacuum") {
        let prepared =
            sqlx::raw_sql(AssertSqlSafe(format!("PREPARE outbox_{name} AS {sql}"))).execute(&mut *connection).await;
        assert!(prepared.is_ok(), "{name}: {prepared:?}");
    }
    let settings = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off";
    sqlx::raw_sql(settings).execute(&mut *connection).await.unwrap();
    let found = "'{1,2}', 10, '{1}', '{t}', '{5}', '{u}', '{v}', '{k}'";
    let served = [
        (format!("work({found})"), vec!["saga_outbox_topic", "saga_outbox_pkey"]),
        (format!("read({found}, '{{v}}', '{{1}}', 200, 500000, 25)"), vec!["saga_outbox_topic", "saga_outbox_pkey"]),
        ("heads('{1,2}', 10, '{t}', '{k}')".into(), vec!["saga_outbox_topic", "saga_outbox_parked_topic"]),
        ("sent('{1,2}', '{1,2}')".into(), vec!["saga_outbox_pkey"]),
        ("park('{1,2}', '{1,2}', '{r,r}')".into(), vec!["saga_outbox_pkey"]),
        ("free('{t}', '{k}')".into(), vec!["saga_outbox_parked_key"]),
    ];
    // A plan may be made while a table is known to be empty, and has to be right for ever.
    for state in ["ANALYZE {schema}.saga_outbox", "VACUUM {schema}.saga_outbox; VACUUM {schema}.saga_outbox_parked"] {
        for statement in state.replace("{schema}", &setup.schema).split(';') {
            sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&setup.pool).await.unwrap();
        }
        for (execute, indexes) in &served {
            let explain = format!("EXPLAIN (COSTS off) EXECUTE outbox_{execute}");
            let rows = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(&mut *connection).await.unwrap();
            let plan: String = rows.iter().map(|row| row.get::<String, _>(0) + "\n").collect();
            assert!(indexes.iter().all(|index| plan.contains(&format!("using {index} "))), "{plan}");
            assert!(!plan.contains("Seq Scan") && !plan.contains("Bitmap"), "{plan}");
            for line in plan.lines().filter(|line| line.contains(" on saga_outbox")) {
                let is_served = indexes.iter().any(|index| line.contains(&format!("using {index} ")));
                let is_written_to = ["Tid Scan", "Delete", "Insert", "parked_key"].iter().any(|how| line.contains(how));
                assert!(is_served || is_written_to, "{line} in {plan}");
            }
            // By all that is known, and not by the shard alone.
            assert!(!plan.contains("Cond: (shard = asked.shard)"), "{plan}");
        }
    }
}
