//! Records and moments chosen to stick a partition, or to hang a caller.

use async_trait::async_trait;
use rdkafka::{
    ClientConfig,
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use saga_core::{
    Encoded, SagaId, StepError,
    message::{CommandAttributes, CommandId, Message, Op},
    participant::{Command, CommandCx, MemoryInbox, Participant},
    transport::{Consumer, Outgoing, PublishError, Receiver, Subscription, Transport, Unavailable, Verdict},
};
use saga_kafka::{EmbeddedBroker, KafkaTransport, TopicSpec};
use serde::{Deserialize, Serialize};
use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, time::timeout};

const PATIENCE: Duration = Duration::from_secs(60);
const TOPIC: &str = "tests";

/// Hands on what it receives; what is told to be bad becomes a dead letter.
struct Into(mpsc::UnboundedSender<Message>);

#[async_trait]
impl Receiver for Into {
    async fn receive(&self, batch: &[Message]) -> Result<Vec<Verdict>, Unavailable> {
        let verdict = |message: &Message| {
            drop(self.0.send(message.clone()));
            if message.kind == "bad.v1" { Verdict::DeadLetter("it is bad".into()) } else { Verdict::Done }
        };
        Ok(batch.iter().map(verdict).collect())
    }
}

struct World {
    broker: EmbeddedBroker,
    kafka: KafkaTransport,
}

impl World {
    fn start(topics: &[TopicSpec]) -> Self {
        let broker = EmbeddedBroker::start(topics).unwrap();
        let kafka = EmbeddedBroker::settings(broker.brokers(), topics).build().unwrap();
        Self { broker, kafka }
    }

    async fn read(&self, topic: &str) -> (mpsc::UnboundedReceiver<Message>, Box<dyn Consumer>) {
        let (into, messages) = mpsc::unbounded_channel();
        let subscription = Subscription { group: "readers".into(), topics: vec![topic.into()], batch: 10 };
        (messages, self.kafka.subscribe(subscription, Arc::new(Into(into))).await.unwrap())
    }

    /// A producer that is not ours.
    fn raw(&self) -> FutureProducer {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.broker.brokers()).set("partitioner", "murmur2_random");
        config.set("message.max.bytes", "4000000").create().unwrap()
    }
}

async fn next(messages: &mut mpsc::UnboundedReceiver<Message>) -> Message {
    timeout(PATIENCE, messages.recv()).await.expect("nothing arrived").unwrap()
}

/// Until there is a dead letter.
async fn buried(world: &World) {
    let dead = async {
        while world.kafka.metrics().dead_letters < 1 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, dead).await.expect("the partition waits for its dead letter");
}

fn event(key: &str, data: &str) -> Outgoing {
    Outgoing { topic: TOPIC.into(), message: Message::event("test", "tested.v1", key, &Encoded::of(&data).unwrap()) }
}

#[tokio::test]
async fn a_batch_larger_than_what_may_be_unread_is_published_as_it_is_read() {
    let world = World::start(&[TopicSpec::new(TOPIC).read_by("readers")]);
    let (mut messages, _consumer) = world.read(TOPIC).await;
    let batch: Vec<Outgoing> = (0..50).map(|n| event(&format!("k{n}"), &"x".repeat(20_000))).collect();
    let published = timeout(PATIENCE, world.kafka.publish(&batch)).await.expect("it waits for itself");
    assert_eq!(published, vec![Ok(()); 50]);
    for _ in 0..50 {
        next(&mut messages).await;
    }
}

#[derive(Serialize, Deserialize)]
struct Add(u32);
impl Command for Add {
    const TYPE: &'static str = "sums.add.v1";
    const TOPIC: &'static str = TOPIC;
    type Reply = u32;
}

async fn add(_: CommandCx<()>, _: &mut (), Add(n): Add) -> Result<u32, StepError> {
    Ok(n + 1)
}

fn command(reply_to: &str) -> Message {
    let id = CommandId { saga: SagaId::generate(), step: "add".into(), generation: 0 };
    let attributes = CommandAttributes { id, op: Op::Do, attempt: 1, reply_to: reply_to.into() };
    attributes.message("test", "sums.add.v1", &Encoded::of(&1).unwrap())
}

/// A command whose reply goes to `reply_to`, and then one on the same partition that is to be answered.
async fn goes_on_after_a_command_that_is_to_be_answered_to(reply_to: &str) {
    let topics = [TopicSpec::new(TOPIC).partitions(1).read_by("sums"), TopicSpec::new("replies").read_by("readers")];
    let world = World::start(&topics);
    let participant = Participant::new("sums", MemoryInbox::default(), ()).on(add);
    let _participant = participant.start(Arc::new(world.kafka.clone())).await.unwrap();
    let (mut replies, _replies) = world.read("replies").await;
    let sent = [command(reply_to), command("replies")];
    let outgoing = sent.clone().map(|message| Outgoing { topic: TOPIC.into(), message });
    assert_eq!(world.kafka.publish(&outgoing).await, vec![Ok(()); 2]);
    assert_eq!(next(&mut replies).await.key, sent[1].key);
    buried(&world).await;
}

#[tokio::test]
async fn a_reply_address_that_no_topic_can_have_sticks_nothing() {
    goes_on_after_a_command_that_is_to_be_answered_to("no topic / at all!").await;
}

#[tokio::test]
async fn a_reply_address_that_is_too_long_sticks_nothing() {
    goes_on_after_a_command_that_is_to_be_answered_to(&"x".repeat(40_000)).await;
}

#[tokio::test]
async fn a_reply_address_with_a_nul_in_it_sticks_nothing() {
    goes_on_after_a_command_that_is_to_be_answered_to("re\0plies").await;
}

/// It takes a minute: that is how long a participant waits for a reply topic.
#[tokio::test]
async fn a_reply_topic_without_a_leader_sticks_nothing_for_long() {
    let topics = [
        TopicSpec::new(TOPIC).partitions(1).read_by("sums"),
        TopicSpec::new("replies").read_by("readers"),
        TopicSpec::new("leaderless").partitions(1),
    ];
    let world = World::start(&topics);
    world.broker.with(|cluster| cluster.partition_leader("leaderless", 0, None)).unwrap().unwrap();
    // One by one, so that nothing but what the broker says of the dead letters shows that it works.
    let participant = Participant::new("sums", MemoryInbox::default(), ()).on(add).batch(1);
    let _participant = participant.start(Arc::new(world.kafka.clone())).await.unwrap();
    let (mut replies, _replies) = world.read("replies").await;
    let sent = [command("leaderless"), command("leaderless"), command("replies")];
    let outgoing = sent.clone().map(|message| Outgoing { topic: TOPIC.into(), message });
    assert_eq!(world.kafka.publish(&outgoing).await, vec![Ok(()); 3]);
    let answered = timeout(3 * PATIENCE, replies.recv()).await.expect("it waits for a topic without a leader").unwrap();
    assert_eq!(answered.key, sent[2].key);
    assert_eq!(world.kafka.metrics().dead_letters, 2);
}

#[tokio::test]
async fn a_topic_that_does_not_exist_is_asked_about_for_seconds_only_once() {
    let world = World::start(&[TopicSpec::new(TOPIC)]);
    let sent = Outgoing { topic: "later".into(), ..event("k", "x") };
    let refused = async || {
        let began = Instant::now();
        let answers = world.kafka.publish(std::slice::from_ref(&sent)).await;
        assert!(matches!(answers[..], [Err(PublishError::Refused(_))]), "{answers:?}");
        began.elapsed()
    };
    // Four questions with a second between each, and one: so much less, however slow the machine.
    let (first, again) = (refused().await, refused().await);
    assert!(again + Duration::from_secs(2) < first, "{again:?} after {first:?}");
    world.broker.create_topics(&[TopicSpec::new("later")]).unwrap();
    assert_eq!(world.kafka.publish(std::slice::from_ref(&sent)).await, vec![Ok(())]);
}

#[tokio::test]
async fn a_record_whose_key_alone_is_larger_than_a_dead_letter_sticks_nothing() {
    let world = World::start(&[TopicSpec::new(TOPIC).partitions(1).read_by("readers")]);
    let (mut messages, _consumer) = world.read(TOPIC).await;
    let key = "k".repeat(1_500_000);
    let headers = OwnedHeaders::new().insert(Header { key: "ce_specversion", value: Some("0.1") });
    world.raw().send(FutureRecord::to(TOPIC).key(&key).payload("x").headers(headers), PATIENCE).await.unwrap();
    let sent = event("k", "after it");
    world.kafka.publish(std::slice::from_ref(&sent)).await;
    assert_eq!(next(&mut messages).await, sent.message);
    buried(&world).await;
}

/// Produces a record with a header whose name is no text: no client in Rust does, and those in other languages do.
fn produce_with_a_header_name_that_is_no_text(brokers: &str) {
    let bytes = |bytes: &[u8]| [&i32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let text = |text: &str| [&i16::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat();
    // Small numbers as they are in a record: twice their value.
    let record = [0, 0, 0, 2, b'k', 2, b'v', 2, 2, 0xff, 2, b'x'];
    let batch = [
        &[0; 4][..],                  // leader epoch
        &[2],                         // magic
        &[0; 4],                      // checksum, which nobody compares
        &[0; 2],                      // attributes
        &[0; 4],                      // last offset
        &1_000_000_i64.to_be_bytes(), // first time
        &1_000_000_i64.to_be_bytes(), // last time
        &[0xff; 14],                  // no producer
        &1_i32.to_be_bytes(),         // one record
        &[2 * record.len() as u8],
        &record,
    ]
    .concat();
    let batch = [&[0; 8][..], &bytes(&batch)].concat();
    let request = [
        &0_i16.to_be_bytes()[..], // produce
        &3_i16.to_be_bytes(),
        &7_i32.to_be_bytes(),
        &text("test"),
        &(-1_i16).to_be_bytes(), // no transaction
        &(-1_i16).to_be_bytes(), // acks
        &5000_i32.to_be_bytes(),
        &1_i32.to_be_bytes(),
        &text(TOPIC),
        &1_i32.to_be_bytes(),
        &0_i32.to_be_bytes(),
        &bytes(&batch),
    ]
    .concat();
    let mut broker = TcpStream::connect(brokers).unwrap();
    broker.write_all(&bytes(&request)).unwrap();
    let mut size = [0; 4];
    broker.read_exact(&mut size).unwrap();
    let mut answer = vec![0; u32::from_be_bytes(size) as usize];
    broker.read_exact(&mut answer).unwrap();
    // Behind the number of the request, the topic and the partition.
    let error = 4 + 4 + 2 + TOPIC.len() + 4 + 4;
    assert_eq!(answer[error..error + 2], [0, 0], "{answer:?}");
}

#[tokio::test]
async fn a_header_whose_name_is_no_text_sticks_nothing() {
    let world = World::start(&[TopicSpec::new(TOPIC).partitions(1).read_by("readers")]);
    let (mut messages, _consumer) = world.read(TOPIC).await;
    produce_with_a_header_name_that_is_no_text(world.broker.brokers());
    buried(&world).await;
    let sent = event("k", "after it");
    world.kafka.publish(std::slice::from_ref(&sent)).await;
    assert_eq!(next(&mut messages).await, sent.message);
}

#[tokio::test]
async fn dead_letters_that_nobody_reads_stick_nothing() {
    let world = World::start(&[TopicSpec::new(TOPIC).partitions(1).read_by("readers")]);
    let (mut messages, _consumer) = world.read(TOPIC).await;
    for _ in 0..20 {
        let mut bad = event("k", &"x".repeat(50_000));
        bad.message.kind = "bad.v1".into();
        assert_eq!(timeout(PATIENCE, world.kafka.publish(&[bad])).await.unwrap(), vec![Ok(())]);
        assert_eq!(next(&mut messages).await.kind, "bad.v1");
    }
    let sent = event("k", "after them");
    timeout(PATIENCE, world.kafka.publish(std::slice::from_ref(&sent))).await.unwrap();
    assert_eq!(next(&mut messages).await, sent.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_stops_within_a_minute_while_the_broker_is_away() {
    let stops = [0, 0, 20, 60, 90, 110, 150, 300].map(|pause| async move {
        let world = World::start(&[TopicSpec::new(TOPIC).read_by("readers")]);
        let (mut messages, consumer) = world.read(TOPIC).await;
        world.kafka.publish(&[event("k", "before")]).await;
        next(&mut messages).await;
        // Before, in and after the moment in which its offset is committed.
        tokio::time::sleep(Duration::from_millis(pause)).await;
        world.broker.with(|cluster| cluster.broker_down(1)).unwrap().unwrap();
        (pause, timeout(PATIENCE, consumer.stop()).await.is_ok())
    });
    let hung: Vec<(u64, bool)> =
        futures::future::join_all(stops).await.into_iter().filter(|(_, stopped)| !stopped).collect();
    assert!(hung.is_empty(), "after these pauses it did not stop: {hung:?}");
}
