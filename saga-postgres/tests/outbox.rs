//! The promises of the outbox, on a real Postgres and a broker in memory that fails as it is told to.

mod broker;

use broker::{Broker, first_occurrences};
use saga_core::{Encoded, message::Message, participant::Event, transport::PublishError};
use saga_postgres::{
    PgOutbox,
    outbox::{OutboxError, Relay},
    testing,
};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions};
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
            assert!(began.elapsed() < Duration::from_secs(20), "never: {sql}");
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
    Err(PublishError::Refused("not this one".into()))
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
    assert!(took[10] < Duration::from_millis(50), "{took:?}");
    assert_eq!(broker.of_key("a"), (0..21).collect::<Vec<_>>());
    setup.until_empty().await;
    relay.stop().await;
}

#[tokio::test]
async fn polling_finds_what_nobody_woke_for() {
    let setup = fresh().await;
    let broker = Broker::new();
    let relay = setup.relay(&broker).await;
    setup.publish_quietly(&["a"], [1]).await;
    broker.until_it_has(1).await;
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
    assert!(error.to_string().contains("run `PgOutbox::migrate` first"), "{error}");
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
