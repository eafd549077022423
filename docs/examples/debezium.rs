//! Is what Debezium publishes from the outbox what the relay would? Takes the connector from the guide, word by word,
//! has both publish the same events, and compares record by record. `scripts/debezium` runs it: it needs a broker in
//! `KAFKA_BROKERS`, and as its arguments the command that starts a standalone worker of Kafka Connect with Debezium.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a program that checks may stop")]

use async_trait::async_trait;
use chrono::{DateTime, SubsecRound, Utc};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{Consumer as _, StreamConsumer},
    message::Headers,
};
use saga_core::{
    Encoded,
    message::Message,
    transport::{Outgoing, Receiver, Subscription, Transport, Unavailable, Verdict},
};
use saga_kafka::{KafkaTransport, TopicSpec};
use saga_postgres::{PgOutbox, testing::Postgres};
use sqlx::{AssertSqlSafe, PgPool};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
    process::{ExitCode, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

const GUIDE: &str = include_str!("../src/kafka.md");
const TOPICS: [&str; 2] = ["order.events", "letter.events"];
const PARTITIONS: i32 = 6;
/// Turns the order round in which the rows lie in the table. They lie in none where room was freed and used again.
const LAST_FIRST: &str = "CREATE INDEX last_first ON saga.saga_outbox (seq DESC);
    CLUSTER saga.saga_outbox USING last_first; DROP INDEX saga.last_first";
/// Connect alone takes some ten seconds to start, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(180);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut terminated = signal(SignalKind::terminate()).unwrap();
    // What is broken off is dropped, and the worker and the server go with it.
    let findings = tokio::select! {
        findings = compare() => findings,
        _ = terminated.recv() => vec!["broken off".to_owned()],
    };
    for finding in findings.iter().take(20) {
        eprintln!("debezium: NOT AS THE GUIDE SAYS: {finding}");
    }
    if findings.len() > 20 {
        eprintln!("debezium: and {} more.", findings.len() - 20);
    }
    if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn compare() -> Vec<String> {
    let brokers = std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS names a broker: see scripts/debezium");
    let postgres = Postgres::builder().setting("wal_level", "logical").database("shop").start().await.unwrap();
    println!("Postgres {}, librdkafka {}", postgres.version(), rdkafka::util::get_rdkafka_version().1);
    let kafka = Arc::new(KafkaTransport::new(&brokers).unwrap());
    kafka.ensure_topics(&TOPICS.map(|topic| TopicSpec::new(topic).partitions(PARTITIONS))).await.unwrap();
    let pool = PgPool::connect(&postgres.url()).await.unwrap();
    let outbox = PgOutbox::new(pool.clone(), "orders");
    outbox.migrate().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(block("sql", "wal_level=logical"))).execute(&pool).await.unwrap();

    // Some are there when the connector starts and are read from the table, the others come through the log.
    let events = events();
    let (early, late) = events.split_at(events.len() / 2);
    publish(&pool, &outbox, early).await;
    sqlx::raw_sql(LAST_FIRST).execute(&pool).await.unwrap();
    let mut records = Records::of(&brokers);
    let mut worker = Worker::start(&brokers, &postgres);
    let mut theirs = records.next(early.len(), &mut worker).await;
    publish(&pool, &outbox, late).await;
    theirs.extend(records.next(late.len(), &mut worker).await);
    let read = read(&kafka, events.len()).await;
    worker.stop().await;

    // The relay finds the same rows: Debezium deletes none.
    let relay = outbox.relay(kafka.clone()).start().await.unwrap();
    let ours = records.next(events.len(), &mut Worker::none()).await;
    relay.stop().await;

    let mut findings = Vec::new();
    let mut differences = BTreeMap::new();
    for event in &events {
        let id = &event.message.id;
        match (theirs.iter().find(|record| record.is(id)), ours.iter().find(|record| record.is(id))) {
            (Some(theirs), Some(ours)) => differ(event, theirs, ours, &mut differences, &mut findings),
            (theirs, ours) => {
                let came = |record: Option<_>| if record.is_some() { "came" } else { "did not come" };
                findings.push(format!("event {id} {} from Debezium and {} from the relay", came(theirs), came(ours)));
            }
        }
        let expected = through_debezium(&event.message);
        match read.iter().find(|message| message.id == *id) {
            Some(message) if *message == expected => {}
            message => findings.push(format!("saga-kafka reads {message:?}, not {expected:?}")),
        }
    }
    let order = |records: &[Record]| -> Vec<String> {
        let of_it = |record: &&Record| record.topic == TOPICS[0] && record.key == Some(b"order-4711".to_vec());
        records.iter().filter(of_it).map(Record::id).collect()
    };
    if order(&theirs) != order(&ours) {
        findings.push(format!("the events of a key come as {:?}, not {:?}", order(&theirs), order(&ours)));
    }
    println!(
        "{} events, {} of them from the table and the others from the log; Debezium's against the relay's:",
        events.len(),
        early.len()
    );
    for (difference, count) in &differences {
        println!("{count:>4}  {difference}");
    }
    findings
}

/// The one block of the guide in that language that has that text in it, or before it in its paragraph.
fn block(language: &str, near: &str) -> String {
    let (_, after) = GUIDE.split_once(near).expect("the guide has lost its paragraph");
    let (_, block) = after.split_once(&format!("```{language}\n")).expect("the guide has lost its block");
    block.split_once("\n```").expect("a block ends").0.to_owned()
}

/// Everything that a column may hold, and what has been taken for something else than text before.
fn events() -> Vec<Outgoing> {
    let at = |time: &str| DateTime::parse_from_rfc3339(time).unwrap().with_timezone(&Utc);
    let mut events = Vec::new();
    let mut event = |topic: &str, key: &str, change: &dyn Fn(&mut Message)| {
        let mut message = Message::event("orders", "order.confirmed.v1", key, &Encoded::of(&"bestätigt").unwrap());
        message.time = message.time.trunc_subsecs(6); // as Postgres keeps it
        change(&mut message);
        events.push(Outgoing { topic: topic.into(), message });
    };
    // Twice, so that each kind comes from the table and from the log.
    for _ in 0..2 {
        event(TOPICS[0], "order-4711", &|_| ());
        event(TOPICS[0], "order-4711", &|message| message.subject = None);
        event(TOPICS[0], "order-4711", &|message| {
            let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
            message.headers.insert("traceparent".into(), parent.into());
        });
        event(TOPICS[1], "order-4711", &|message| {
            message.headers.insert("tracestate".into(), "shop=1".into());
            message.extensions.insert("tenant".into(), "7".into());
        });
        for time in ["2026-11-28T12:00:00Z", "2026-11-28T12:00:00.12Z", "2026-11-28T12:00:00.000001Z"] {
            event(TOPICS[0], "times", &|message| message.time = at(time));
        }
        for text in ["1.0", "1", "true", "null", "\"quoted\"", "{\"a\": 1}", "[1, 2]", "2026-11-28", "größer ≥ 𝄞", " "]
        {
            event(TOPICS[1], text, &|message| {
                message.kind = format!("letter.{text}");
                message.source = format!("letters/{text}");
            });
        }
        event(TOPICS[0], "", &|message| message.subject = None);
        event(TOPICS[0], "empty", &|message| message.data.clear());
        event(TOPICS[0], "bytes", &|message| {
            message.data = (0..=255).collect();
            message.content_type = "application/octet-stream".into();
        });
        event(TOPICS[0], "json", &|message| message.data = br#"{ "cents" : 1.0, "n": 12345678901234567890 }"#.into());
        event(TOPICS[0], "large", &|message| message.data = vec![b'x'; 900_000]);
        for n in 0..40 {
            event(TOPICS[0], &format!("order-{n}"), &|_| ());
        }
    }
    events
}

/// The one way and the other, and one that is rolled back and must not come.
async fn publish(pool: &PgPool, outbox: &PgOutbox, events: &[Outgoing]) {
    let (one_by_one, at_once) = events.split_at(events.len() / 2);
    let mut tx = pool.begin().await.unwrap();
    let mut never = one_by_one[0].message.clone();
    never.id = Message::event("", "", "", &Encoded::null()).id;
    outbox.publish_message(&mut tx, TOPICS[0], &never).await.unwrap();
    tx.rollback().await.unwrap();
    for Outgoing { topic, message } in one_by_one {
        let mut tx = pool.begin().await.unwrap();
        outbox.publish_message(&mut tx, topic, message).await.unwrap();
        tx.commit().await.unwrap();
    }
    let mut tx = pool.begin().await.unwrap();
    outbox.publish_all(&mut tx, at_once.to_vec()).await.unwrap();
    tx.commit().await.unwrap();
}

/// A standalone worker of Kafka Connect with the guide's connector. It goes when this does.
struct Worker(Option<(Child, tempfile::TempDir)>);

impl Worker {
    fn start(brokers: &str, postgres: &Postgres) -> Self {
        let files = tempfile::tempdir().unwrap();
        let path = |name: &str| files.path().join(name);
        // Of two values for one name the later wins: these are the five lines that the guide has changed.
        let mut connector = block("properties", "### With Debezium");
        let own = [
            ("hostname", "127.0.0.1"),
            ("port", &postgres.port().to_string()),
            ("user", "debezium"),
            ("password", "secret"),
            ("dbname", "shop"),
        ];
        for (name, value) in own {
            assert!(connector.contains(&format!("\ndatabase.{name}=")), "the guide lacks database.{name}");
            write!(connector, "\ndatabase.{name}={value}").unwrap();
        }
        std::fs::write(path("connector.properties"), connector).unwrap();
        // The converters are those of Kafka's own example, which the connector has to overrule.
        let json = "org.apache.kafka.connect.json.JsonConverter";
        let offsets = path("offsets").display().to_string();
        let worker = format!(
            "bootstrap.servers={brokers}\nkey.converter={json}\nvalue.converter={json}\nheader.converter={json}\n\
             offset.storage.file.filename={offsets}\noffset.flush.interval.ms=1000\nlisteners=http://127.0.0.1:0\n"
        );
        std::fs::write(path("worker.properties"), worker).unwrap();
        let log = std::fs::File::create(path("log")).unwrap();
        let mut command = std::env::args().skip(1);
        let child = Command::new(command.next().expect("the command that starts Kafka Connect"))
            .args(command)
            .args([path("worker.properties"), path("connector.properties")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self(Some((child, files)))
    }

    const fn none() -> Self {
        Self(None)
    }

    /// Why it works no more, if so.
    fn fault(&mut self) -> Option<String> {
        let (child, files) = self.0.as_mut()?;
        let log = log(files.path());
        let failed = log.lines().position(|line| line.contains("unrecoverable exception"));
        let ended = child.try_wait().unwrap();
        let tail = |from: usize| log.lines().skip(from).take(25).collect::<Vec<_>>().join("\n");
        match (failed, ended) {
            (Some(line), _) => Some(format!("the connector's task failed:\n{}", tail(line))),
            (None, Some(status)) => {
                Some(format!("Kafka Connect ended, {status}:\n{}", tail(log.lines().count().saturating_sub(25))))
            }
            (None, None) => None,
        }
    }

    async fn stop(mut self) {
        if let Some((child, _)) = &mut self.0 {
            child.kill().await.unwrap();
        }
    }
}

fn log(directory: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(directory.join("log")).unwrap_or_default()).into_owned()
}

/// A record as it lies in its topic.
#[derive(Debug)]
struct Record {
    topic: String,
    partition: i32,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: BTreeMap<String, Option<Vec<u8>>>,
    /// Whether a header came twice.
    repeated: bool,
}

impl Record {
    fn id(&self) -> String {
        let id = self.headers.get("ce_id").cloned().flatten();
        String::from_utf8_lossy(&id.unwrap_or_default()).into_owned()
    }

    fn is(&self, id: &str) -> bool {
        self.headers.get("ce_id") == Some(&Some(id.as_bytes().to_vec()))
    }
}

/// All records of the topics, from the beginning.
struct Records(StreamConsumer);

impl Records {
    fn of(brokers: &str) -> Self {
        let consumer: StreamConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "compare")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        let mut partitions = TopicPartitionList::new();
        for topic in TOPICS {
            for partition in 0..PARTITIONS {
                partitions.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
            }
        }
        consumer.assign(&partitions).unwrap();
        Self(consumer)
    }

    /// So many more, and no more than that.
    async fn next(&mut self, count: usize, worker: &mut Worker) -> Vec<Record> {
        let deadline = Instant::now() + PATIENCE;
        let mut records = Vec::new();
        while records.len() < count {
            match timeout(Duration::from_secs(1), self.0.recv()).await {
                Ok(record) => records.push(Self::record(&record.unwrap())),
                Err(_) => {
                    if let Some(fault) = worker.fault() {
                        panic!("{fault}");
                    }
                    let came = records.len();
                    assert!(Instant::now() < deadline, "{came} of {count} records came within {PATIENCE:?}");
                }
            }
        }
        if let Ok(more) = timeout(Duration::from_secs(2), self.0.recv()).await {
            panic!("one too many: {:?}", Self::record(&more.unwrap()));
        }
        records
    }

    fn record(record: &rdkafka::message::BorrowedMessage<'_>) -> Record {
        let headers = record.headers().into_iter().flat_map(|headers| headers.iter());
        let headers: Vec<_> = headers.map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect();
        let names: BTreeSet<_> = headers.iter().map(|(name, _)| name).collect();
        Record {
            topic: record.topic().into(),
            partition: record.partition(),
            key: record.key().map(<[u8]>::to_vec),
            value: record.payload().map(<[u8]>::to_vec),
            repeated: names.len() < headers.len(),
            headers: headers.into_iter().collect(),
        }
    }
}

/// Compares two records of an event. Notes what the guide says, and finds what it does not say.
fn differ(
    event: &Outgoing,
    theirs: &Record,
    ours: &Record,
    differences: &mut BTreeMap<String, u32>,
    findings: &mut Vec<String>,
) {
    let found = findings.len();
    let mut noted = false;
    let mut note = |text: String| {
        *differences.entry(text).or_insert(0) += 1;
        noted = true;
    };
    let place = |record: &Record| format!("{}/{}, key {:?}", record.topic, record.partition, record.key);
    if theirs.topic == ours.topic && (theirs.key.as_deref(), ours.key.as_deref()) == (Some(&[]), None) {
        note("an empty key, not none".into());
    } else if place(theirs) != place(ours) {
        findings.push(format!("a record goes to {}, not to {}", place(theirs), place(ours)));
    }
    if theirs.value != ours.value {
        findings.push(format!("the value of {} is another", place(theirs)));
    }
    if theirs.repeated || ours.repeated {
        findings.push(format!("a header of {} comes twice", place(theirs)));
    }
    let names: BTreeSet<_> = theirs.headers.keys().chain(ours.headers.keys()).collect();
    for name in names {
        let text = |record: &Record| {
            let value = record.headers.get(name).cloned();
            value.map(|value| value.map(|value| String::from_utf8(value).unwrap()))
        };
        let instant = |text: &str| DateTime::parse_from_rfc3339(text).ok();
        match (name.as_str(), text(theirs), text(ours)) {
            (_, theirs, ours) if theirs == ours => {}
            ("ce_subject" | "traceparent", Some(None), None) => note(format!("{name}: a header without a value")),
            ("ce_time", Some(Some(theirs)), Some(Some(ours))) if instant(&theirs) == instant(&ours) => {
                note("ce_time: the same instant with another number of digits".into());
            }
            (_, None, Some(Some(_))) if own(event, name) => note(format!("{name}: not there")),
            (_, theirs, ours) => findings.push(format!("header {name} is {theirs:?}, not {ours:?}")),
        }
    }
    if !noted && findings.len() == found {
        *differences.entry("the same to the last byte".into()).or_insert(0) += 1;
    }
}

/// Whether a header is one that stands in the columns `headers` and `extensions`.
fn own(Outgoing { message, .. }: &Outgoing, name: &str) -> bool {
    let extension = name.strip_prefix("ce_").is_some_and(|name| message.extensions.contains_key(name));
    extension || (name != "traceparent" && message.headers.contains_key(name))
}

/// What is left of a message on that way.
fn through_debezium(message: &Message) -> Message {
    let mut message = message.clone();
    message.extensions.clear();
    message.headers.retain(|name, _| name == "traceparent");
    message
}

/// The messages of the topics as the library's own reader gives them to a listener.
async fn read(kafka: &KafkaTransport, count: usize) -> Vec<Message> {
    struct Collector(mpsc::UnboundedSender<Message>);

    #[async_trait]
    impl Receiver for Collector {
        async fn receive(&self, batch: &[Message]) -> Result<Vec<Verdict>, Unavailable> {
            batch.iter().for_each(|message| self.0.send(message.clone()).unwrap());
            Ok(batch.iter().map(|_| Verdict::Done).collect())
        }
    }

    let (sender, mut receiver) = mpsc::unbounded_channel();
    let subscription = Subscription { group: "reader".into(), topics: TOPICS.map(String::from).into(), batch: 100 };
    let consumer = kafka.subscribe(subscription, Arc::new(Collector(sender))).await.unwrap();
    let mut messages = Vec::new();
    // What it cannot read goes to the dead letters and never comes.
    while messages.len() < count
        && let Ok(Some(message)) = timeout(Duration::from_secs(30), receiver.recv()).await
    {
        messages.push(message);
    }
    sleep(Duration::from_millis(100)).await;
    consumer.stop().await;
    messages
}
