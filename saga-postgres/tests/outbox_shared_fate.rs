//! Nobody stops a stranger: a topic that is away, silent or slow holds up no other; and what was sent long ago costs
//! nothing.
#![cfg(all(feature = "testing", unix))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker;

use async_trait::async_trait;
use broker::{Broker, first_occurrences};
use futures::future::join_all;
use saga_core::{
    Encoded,
    message::Message,
    transport::{Consumer, Outgoing, PublishError, Receiver, Subscription, Transport, TransportError},
};
use saga_postgres::{PgOutbox, outbox::Relay, testing};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, Row, postgres::PgPoolOptions};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::watch, time::sleep};

/// How long anything may take that is not at all fast.
const LONG: Duration = Duration::from_secs(120);

/// How a topic is.
#[derive(Clone, Debug)]
enum Mood {
    Well,
    /// It does not take anything, and says so after a while.
    Away(Duration),
    /// It refuses everything for good, and says so after a while.
    Refuses(Duration),
    /// It takes everything, and says so after a while.
    Slow(Duration),
    /// It says nothing until its mood changes.
    Silent,
}

/// A broker some of whose topics are not well. Like Kafka's client it answers a call when all of it has an answer.
struct Moody {
    broker: Arc<Broker>,
    moods: watch::Sender<HashMap<String, Mood>>,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
    asked: Mutex<HashMap<String, usize>>,
    taken: Mutex<HashMap<String, usize>>,
}

impl Moody {
    fn new(moods: &[(&str, Mood)]) -> Arc<Self> {
        let moods = moods.iter().map(|(topic, mood)| ((*topic).to_owned(), mood.clone())).collect();
        let (under_way, most_under_way) = Default::default();
        let (broker, moods) = (Broker::new(), watch::Sender::new(moods));
        Arc::new(Self { broker, moods, under_way, most_under_way, asked: Mutex::default(), taken: Mutex::default() })
    }

    fn set(&self, topic: &str, mood: Mood) {
        self.moods.send_modify(|moods| {
            moods.insert(topic.into(), mood);
        });
    }

    /// How often events of a topic were handed over.
    fn asked(&self, topic: &str) -> usize {
        self.asked.lock().unwrap().get(topic).copied().unwrap_or_default()
    }

    /// The keys and numbers that it has of a topic, in order, repeats included.
    fn of(&self, topic: &str) -> Vec<(String, u64)> {
        let of_topic = self.broker.log().into_iter().filter(|outgoing| outgoing.topic == topic);
        of_topic.map(|Outgoing { message, .. }| (message.key, serde_json::from_slice(&message.data).unwrap())).collect()
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !done(self) {
            assert!(began.elapsed() < LONG, "never: {what}; asked {:?}", self.asked.lock().unwrap());
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_it_has(&self, topic: &str, count: usize) {
        let has = |moody: &Self| moody.taken.lock().unwrap().get(topic).is_some_and(|taken| *taken >= count);
        self.until(&format!("{count} of {topic}"), has).await;
    }

    async fn one(&self, outgoing: &Outgoing) -> Result<(), PublishError> {
        let mut moods = self.moods.subscribe();
        loop {
            let mood = moods.borrow_and_update().get(&outgoing.topic).cloned().unwrap_or(Mood::Well);
            match mood {
                Mood::Well => return Ok(()),
                Mood::Slow(time) => {
                    sleep(time).await;
                    return Ok(());
                }
                Mood::Away(time) => {
                    sleep(time).await;
                    return Err(PublishError::Unavailable("away".into()));
                }
                Mood::Refuses(time) => {
                    sleep(time).await;
                    return Err(PublishError::Refused("never".into()));
                }
                Mood::Silent => moods.changed().await.unwrap(),
            }
        }
    }
}

#[async_trait]
impl Transport for Moody {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        let now = self.under_way.fetch_add(batch.len(), Ordering::SeqCst) + batch.len();
        self.most_under_way.fetch_max(now, Ordering::SeqCst);
        for Outgoing { topic, .. } in batch {
            *self.asked.lock().unwrap().entry(topic.clone()).or_default() += 1;
        }
        let answers = join_all(batch.iter().map(|outgoing| self.one(outgoing))).await;
        self.under_way.fetch_sub(batch.len(), Ordering::SeqCst);
        let taken: Vec<Outgoing> = batch
            .iter()
            .zip(&answers)
            .filter(|(_, answer)| answer.is_ok())
            .map(|(outgoing, _)| outgoing.clone())
            .collect();
        self.broker.publish(&taken).await;
        for Outgoing { topic, .. } in taken {
            *self.taken.lock().unwrap().entry(topic).or_default() += 1;
        }
        answers
    }

    async fn subscribe(&self, _: Subscription, _: Arc<dyn Receiver>) -> Result<Box<dyn Consumer>, TransportError> {
        Err(TransportError("it is only published to".into()))
    }

    fn system(&self) -> &'static str {
        "local"
    }

    fn max_message_bytes(&self) -> usize {
        1_000_000
    }
}

struct Setup {
    outbox: PgOutbox,
    pool: PgPool,
    schema: String,
    url: String,
}

async fn fresh() -> Setup {
    let postgres = testing::shared().await.unwrap();
    let (url, schema) = (postgres.url(), postgres.schema());
    let pool = PgPoolOptions::new().max_connections(4).connect(&url).await.unwrap();
    let outbox = PgOutbox::options(pool.clone(), "tests").schema(&schema).build().unwrap();
    outbox.migrate().await.unwrap();
    Setup { outbox, pool, schema, url }
}

fn event(topic: &str, key: impl ToString, number: u64) -> Outgoing {
    let message = Message::event("tests", "t", key.to_string(), &Encoded::of(&number).unwrap());
    Outgoing { topic: topic.into(), message }
}

impl Setup {
    async fn publish(&self, events: impl IntoIterator<Item = Outgoing>) {
        let mut tx = self.pool.begin().await.unwrap();
        self.outbox.publish_all(&mut tx, events.into_iter().collect()).await.unwrap();
        self.outbox.commit(tx).await.unwrap();
    }

    /// An event each of so many keys.
    async fn publish_keys(&self, topic: &str, keys: u64) {
        self.publish((0..keys).map(|key| event(topic, key, key))).await;
    }

    async fn relay(&self, transport: &Arc<Moody>) -> Relay {
        let relay = self.outbox.relay(transport.clone()).poll(Duration::from_millis(100));
        relay.lease(Duration::from_millis(900)).start().await.unwrap()
    }

    async fn run(&self, sql: &str) {
        let sql = sql.replace("{schema}", &self.schema);
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.pool).await.unwrap();
    }

    async fn number(&self, sql: &str) -> i64 {
        let sql = sql.replace("{schema}", &self.schema);
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap()
    }

    async fn until(&self, sql: &str) {
        let began = Instant::now();
        while self.number(&format!("SELECT ({sql})::int::bigint")).await != 1 {
            assert!(began.elapsed() < LONG, "never: {sql}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A topic that is away, with twenty thousand keys that came first; and then one that is well.
async fn holds_up_no_other(mood: Mood) {
    let setup = fresh().await;
    setup.publish_keys("bad", 20_000).await;
    setup.publish_keys("good", 452).await;
    let transport = Moody::new(&[("bad", mood)]);
    let relay = setup.relay(&transport).await;
    transport.until_it_has("good", 452).await;
    // While it is away, what comes later leaves as well, and little of the other is tried.
    for number in 0..20 {
        setup.publish([event("good", "later", number)]).await;
        transport.until_it_has("good", 453 + number as usize).await;
    }
    assert!(transport.asked("bad") < 4_000, "it was asked for {} events", transport.asked("bad"));
    assert!(transport.most_under_way.load(Ordering::SeqCst) < 4_000);
    assert_eq!(transport.of("bad"), []);
    // It is back.
    transport.set("bad", Mood::Well);
    transport.until_it_has("bad", 20_000).await;
    setup.until("SELECT NOT EXISTS (SELECT FROM {schema}.saga_outbox)").await;
    relay.stop().await;
    assert_eq!((transport.of("good").len(), transport.of("bad").len()), (472, 20_000), "nothing was repeated");
    let later: Vec<u64> = transport.of("good").into_iter().filter(|(key, _)| key == "later").map(|(_, n)| n).collect();
    assert_eq!(later, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_topic_that_says_at_once_that_it_is_away_holds_up_no_other() {
    holds_up_no_other(Mood::Away(Duration::ZERO)).await;
}

#[tokio::test]
async fn a_topic_that_takes_its_time_to_say_that_it_is_away_holds_up_no_other() {
    holds_up_no_other(Mood::Away(Duration::from_secs(3))).await;
}

#[tokio::test]
async fn a_topic_that_says_nothing_holds_up_no_other() {
    holds_up_no_other(Mood::Silent).await;
}

#[tokio::test]
async fn several_topics_that_are_away_and_one_that_is_slow_hold_up_no_other() {
    let setup = fresh().await;
    let bad: Vec<String> = (0..6).map(|n| format!("bad-{n}")).collect();
    for topic in &bad {
        setup.publish_keys(topic, 2_000).await;
    }
    setup.publish((0..2_000).map(|n| event("slow", n % 100, n / 100))).await;
    setup.publish_keys("good", 452).await;
    let transport = Moody::new(&[("slow", Mood::Slow(Duration::from_secs(1)))]);
    for (topic, mood) in bad.iter().zip([Mood::Silent, Mood::Away(Duration::ZERO), Mood::Away(LONG)].iter().cycle()) {
        transport.set(topic, mood.clone());
    }
    let relay = setup.relay(&transport).await;
    transport.until_it_has("good", 452).await;
    transport.until_it_has("slow", 2_000).await;
    assert!(transport.most_under_way.load(Ordering::SeqCst) < 12_000);
    let slow = transport.of("slow");
    for key in 0..100 {
        let of_key: Vec<u64> = slow.iter().filter(|(other, _)| *other == key.to_string()).map(|(_, n)| *n).collect();
        assert_eq!(of_key, (0..20).collect::<Vec<_>>(), "in order, and nothing twice");
    }
    // Those that answer after a long time would hold up the end.
    drop(relay);
}

/// Two relays, and topics that change their moods all the time: what one relay waits for, the other sends again.
#[tokio::test]
async fn what_several_relays_send_of_a_topic_that_is_slow_is_in_order_all_the_same() {
    const KEYS: u64 = 20;
    let setup = fresh().await;
    let slow = || Mood::Slow(Duration::from_millis(700));
    let transport = Moody::new(&[("slow", slow()), ("moody", slow())]);
    let (one, other) = (setup.relay(&transport).await, setup.relay(&transport).await);
    for number in 0..60 {
        for topic in ["slow", "moody", "good"] {
            setup.publish((0..KEYS).map(|key| event(topic, key, number))).await;
        }
        let moods = [slow(), Mood::Well, Mood::Away(Duration::from_millis(600)), Mood::Silent];
        transport.set("moody", moods[number as usize / 3 % 4].clone());
        sleep(Duration::from_millis(50)).await;
    }
    transport.set("moody", Mood::Well);
    setup.until("SELECT NOT EXISTS (SELECT FROM {schema}.saga_outbox)").await;
    one.stop().await;
    other.stop().await;
    for topic in ["slow", "moody", "good"] {
        let all = transport.of(topic);
        for key in (0..KEYS).map(|key| key.to_string()) {
            let of_key = all.iter().filter(|(other, _)| *other == key).map(|(_, number)| *number).collect();
            assert_eq!(first_occurrences(of_key), (0..60).collect::<Vec<_>>(), "{topic} {key}");
        }
    }
}

#[tokio::test]
async fn what_is_refused_after_its_round_is_parked_all_the_same() {
    let setup = fresh().await;
    setup.publish((0..3).map(|n| event("bad", "a", n))).await;
    let transport = Moody::new(&[("bad", Mood::Refuses(Duration::from_secs(2)))]);
    let relay = setup.relay(&transport).await;
    let began = Instant::now();
    // There is always something else to do.
    for number in 0.. {
        setup.publish([event("good", number % 64, number)]).await;
        if setup.number("SELECT count(*) FROM {schema}.saga_outbox_parked").await == 3 {
            break;
        }
        assert!(began.elapsed() < LONG, "it is never parked");
        sleep(Duration::from_millis(20)).await;
    }
    let parked = setup.outbox.parked(10).await.unwrap();
    assert_eq!((parked.len(), parked[0].reason.as_str(), parked[0].behind), (1, "never", 2));
    transport.set("bad", Mood::Well);
    assert!(setup.outbox.unpark(parked[0].id).await.unwrap());
    transport.until_it_has("bad", 3).await;
    setup.until("SELECT NOT EXISTS (SELECT FROM {schema}.saga_outbox_parked)").await;
    relay.stop().await;
    assert_eq!(transport.of("bad"), [0, 1, 2].map(|n| ("a".to_owned(), n)));
}

/// How many entries of indexes were passed.
const READ: &str = "SELECT coalesce(sum(idx_tup_read), 0)::bigint FROM pg_stat_user_indexes WHERE schemaname = '{schema}' AND relname = 'saga_outbox'";

/// The very round that cost 61 milliseconds: all was sent, and somebody's old transaction might still see it.
#[tokio::test]
async fn a_look_does_not_pass_what_was_sent_while_an_old_transaction_was_open() {
    const DEAD: i64 = 50_000;
    let setup = fresh().await;
    setup.run("ALTER TABLE {schema}.saga_outbox SET (autovacuum_enabled = off)").await;
    let fill = format!(
        "INSERT INTO {{schema}}.saga_outbox (shard, id, aggregatetype, aggregateid, type, source, time, content_type, payload)
         SELECT n % 64, gen_random_uuid(), 'dead', n::text, 't', 's', now(), 'c', '1' FROM generate_series(1, {DEAD}) n"
    );
    setup.run(&fill).await;
    let mut old = PgConnection::connect(&setup.url).await.unwrap();
    sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").execute(&mut old).await.unwrap();
    setup.run("DELETE FROM {schema}.saga_outbox").await;

    let transport = Moody::new(&[]);
    let relay = setup.outbox.relay(transport.clone()).poll(Duration::from_millis(20)).start().await.unwrap();
    let looks = "SELECT coalesce(sum(idx_scan), 0) / 64 >= 200 FROM pg_stat_user_indexes WHERE schemaname = '{schema}' AND relname = 'saga_outbox'";
    setup.until(looks).await;
    let read = setup.number(READ).await;
    assert!(read < 50 * DEAD, "200 looks have passed {read} entries: {DEAD} are there");
    // What comes now is found.
    setup.publish((0..100).map(|n| event("dead", n % 10, n))).await;
    transport.until_it_has("dead", 100).await;
    relay.stop().await;
}

/// The statements themselves, by what they read: it does not depend on the machine.
#[tokio::test]
async fn a_look_costs_the_same_whatever_lies_before_it() {
    let setup = fresh().await;
    let fill = |topic: &str, count: u64| {
        format!(
            "INSERT INTO {{schema}}.saga_outbox (shard, id, aggregatetype, aggregateid, type, source, time, content_type, payload)
             SELECT n % 64, gen_random_uuid(), '{topic}', n::text, 't', 's', now(), 'c', '1' FROM generate_series(1, {count}) n;"
        )
    };
    setup.run(&fill("bad", 100_000)).await;
    setup.run(&fill("good", 64)).await;
    let mut connection = PgConnection::connect(&setup.url).await.unwrap();
    let settings = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off";
    sqlx::raw_sql(settings).execute(&mut connection).await.unwrap();
    for (name, sql) in setup.outbox.statements() {
        if ["work", "read", "heads"].contains(&name) {
            let prepare = format!("PREPARE {name} AS {sql}");
            sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut connection).await.unwrap();
        }
    }
    let shards = (0..64).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let of_all = |bad: &str, good: &str| [vec![bad; 64], vec![good; 64]].concat().join(",");
    let settled =
        format!("100064, '{{{shards},{shards}}}', '{{{}}}', '{{{}}}'", of_all("bad", "good"), of_all("1", "100001"));
    for (execute, rows) in [
        (format!("heads('{{{shards}}}', 100064, '{{}}', '{{}}')"), 128),
        (format!("work('{{{shards}}}', {settled}, '{{bad}}', '{{}}', '{{}}')"), 64),
        (format!("read('{{{shards}}}', {settled}, '{{bad}}', '{{}}', '{{}}', '{{}}', '{{}}', 200, 500000, 25)"), 64),
    ] {
        let explain = format!("EXPLAIN (ANALYZE, BUFFERS, COSTS off, TIMING off) EXECUTE {execute}");
        let lines = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(&mut connection).await.unwrap();
        let lines: Vec<String> = lines.iter().map(|row| row.get(0)).collect();
        let plan = lines.join("\n");
        let pages = lines.iter().find(|line| line.contains("Buffers: ")).unwrap();
        let pages: u64 = pages
            .split_once("shared ")
            .unwrap()
            .1
            .split(' ')
            .filter_map(|part| part.split_once('='))
            .filter(|(kind, _)| ["hit", "read"].contains(kind))
            .map(|(_, count)| count.parse::<u64>().unwrap())
            .sum();
        assert!(lines[0].contains(&format!("rows={rows}")), "{plan}");
        assert!(pages < 2_500, "{pages} pages: {plan}");
        assert!(plan.contains("using saga_outbox_topic") && !plan.contains("Seq Scan on"), "{plan}");
    }
}

/// A key that is left alone is passed over with all that it has.
#[tokio::test]
async fn a_key_that_is_not_taken_holds_up_no_other_whatever_it_has_waiting() {
    let setup = fresh().await;
    setup.publish((0..5_000).map(|n| event("events", "bad", n))).await;
    let transport = Moody::new(&[]);
    transport.broker.decide(|outgoing| match outgoing.message.key.as_str() {
        "bad" => Err(PublishError::Unavailable("away".into())),
        _ => Ok(()),
    });
    let relay = setup.outbox.relay(transport.broker.clone()).poll(Duration::from_millis(100)).start().await.unwrap();
    let (before, began) = (setup.number(READ).await, Instant::now());
    for number in 0..100 {
        setup.publish([event("events", number, number)]).await;
        transport.broker.until_it_has(number as usize + 1).await;
    }
    // A look for each event, and ten a second beside. The key is tried, and the heads are read, once a second.
    let (passed, seconds) = (setup.number(READ).await - before, began.elapsed().as_secs() as i64);
    assert!(passed < 5_000 * (20 + 4 * seconds), "its events are passed with each look: {passed} in {seconds} s");
    transport.broker.accept();
    transport.broker.until_it_has(5_100).await;
    relay.stop().await;
    let bad: Vec<u64> = transport.of("events").into_iter().filter(|(key, _)| key == "bad").map(|(_, n)| n).collect();
    assert_eq!(bad, (0..5_000).collect::<Vec<_>>());
}

/// A transaction that began after another had committed, for the same key: its event comes later, also when the
/// number of the first one was given out so early that all others of that time have long left.
#[tokio::test]
async fn an_event_that_was_numbered_early_is_not_overtaken_by_one_that_was_written_after_its_commit() {
    let setup = fresh().await;
    let transport = Moody::new(&[]);
    let relay = setup.outbox.relay(transport.clone()).poll(Duration::from_millis(10)).start().await.unwrap();
    for round in 0..4 {
        let mut early = setup.pool.begin().await.unwrap();
        setup.outbox.publish_all(&mut early, vec![event("events", "a", 2 * round)]).await.unwrap();
        // The relay learns meanwhile, more than once, how far the numbers have come.
        let began = Instant::now();
        let mut others = 0;
        while began.elapsed() < Duration::from_millis(2_500) {
            setup.publish([event("others", others % 64, others)]).await;
            others += 1;
            sleep(Duration::from_millis(20)).await;
        }
        early.commit().await.unwrap();
        let mut second = setup.pool.begin().await.unwrap();
        setup.outbox.publish_all(&mut second, vec![event("events", "a", 2 * round + 1)]).await.unwrap();
        second.commit().await.unwrap();
        transport.until_it_has("events", 2 * (round as usize + 1)).await;
    }
    relay.stop().await;
    assert_eq!(transport.of("events").into_iter().map(|(_, n)| n).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
}

/// It comes back with its old number, while what came after it has long left.
#[tokio::test]
async fn an_event_that_comes_back_is_not_overtaken_by_one_that_was_written_later() {
    let setup = fresh().await;
    let transport = Moody::new(&[("events", Mood::Refuses(Duration::ZERO))]);
    let relay = setup.outbox.relay(transport.clone()).poll(Duration::from_millis(10)).start().await.unwrap();
    for round in 0..3 {
        setup.publish([event("events", "a", 2 * round)]).await;
        setup.until("SELECT EXISTS (SELECT FROM {schema}.saga_outbox_parked)").await;
        transport.set("events", Mood::Well);
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(1_500) {
            setup.publish([event("others", "a", 0)]).await;
            sleep(Duration::from_millis(20)).await;
        }
        let parked = setup.outbox.parked(10).await.unwrap();
        assert!(setup.outbox.unpark(parked[0].id).await.unwrap());
        let mut later = setup.pool.begin().await.unwrap();
        setup.outbox.publish_all(&mut later, vec![event("events", "a", 2 * round + 1)]).await.unwrap();
        later.commit().await.unwrap();
        transport.until_it_has("events", 2 * (round as usize + 1)).await;
        transport.set("events", Mood::Refuses(Duration::ZERO));
    }
    relay.stop().await;
    assert_eq!(transport.of("events").into_iter().map(|(_, n)| n).collect::<Vec<_>>(), (0..6).collect::<Vec<_>>());
}
