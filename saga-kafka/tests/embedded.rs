//! The transport over the embedded broker: what the conformance suite does not ask.

use async_trait::async_trait;
use rdkafka::{
    ClientConfig,
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
    types::{RDKafkaApiKey, RDKafkaRespErr},
};
use saga_core::{
    Encoded,
    message::Message,
    transport::{Consumer, Outgoing, PublishError, Receiver, Subscription, Transport, Unavailable, Verdict},
};
use saga_kafka::{EmbeddedBroker, KafkaTransport, SettingError, TopicSpec};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

const PATIENCE: Duration = Duration::from_secs(60);

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

/// A broker, a transport on it, and what one group receives.
struct World {
    broker: EmbeddedBroker,
    kafka: KafkaTransport,
}

const TOPIC: &str = "tests";

impl World {
    fn start() -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let topics = [TopicSpec::new(TOPIC).read_by("readers")];
        let broker = EmbeddedBroker::start(&topics).unwrap();
        let kafka = EmbeddedBroker::settings(broker.brokers(), &topics).build().unwrap();
        Self { broker, kafka }
    }

    async fn read(&self, topic: &str) -> Reading {
        let (into, messages) = mpsc::unbounded_channel();
        let subscription = Subscription { group: "readers".into(), topics: vec![topic.into()], batch: 10 };
        let consumer = self.kafka.subscribe(subscription, Arc::new(Into(into))).await.unwrap();
        Reading { messages, consumer }
    }

    async fn read_dead_letters(&self) -> Reading {
        let second = format!("{TOPIC}.dlt");
        self.broker.create_topics(&[TopicSpec::new(format!("{second}.dlt")).without_dead_letters()]).unwrap();
        self.read(&second).await
    }

    /// The first requests of that kind fail with these errors.
    fn fail(&self, requests: RDKafkaApiKey, errors: Vec<RDKafkaRespErr>) {
        self.broker.with(move |cluster| cluster.request_errors(requests, &errors)).unwrap();
    }
}

struct Reading {
    messages: mpsc::UnboundedReceiver<Message>,
    consumer: Box<dyn Consumer>,
}

impl Reading {
    async fn next(&mut self) -> Message {
        timeout(PATIENCE, self.messages.recv()).await.expect("nothing arrived").unwrap()
    }

    async fn take(&mut self, count: usize) -> Vec<Message> {
        let mut messages = vec![];
        while messages.len() < count {
            messages.push(self.next().await);
        }
        messages
    }
}

fn event(key: &str, n: usize) -> Outgoing {
    Outgoing { topic: TOPIC.into(), message: Message::event("test", "tested.v1", key, &Encoded::of(&n).unwrap()) }
}

fn events(count: usize) -> Vec<Outgoing> {
    (0..count).map(|n| event(&format!("k{}", n % 7), n)).collect()
}

fn assert_in_order(sent: &[Outgoing], received: &[Message]) {
    assert_eq!(sent.len(), received.len());
    for key in 0..7 {
        let of_key = |message: &&Message| message.key == format!("k{key}");
        let expected: Vec<&Message> = sent.iter().map(|outgoing| &outgoing.message).filter(of_key).collect();
        assert_eq!(received.iter().filter(of_key).collect::<Vec<_>>(), expected);
    }
}

#[tokio::test]
async fn requests_that_fail_are_made_again_without_a_gap_a_repeat_or_a_change_of_order() {
    use RDKafkaRespErr::*;
    let world = World::start();
    let transport = RD_KAFKA_RESP_ERR__TRANSPORT;
    let produce = [
        RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        transport,
        RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    ];
    world.fail(RDKafkaApiKey::Produce, produce.repeat(3));
    world.fail(RDKafkaApiKey::Fetch, [transport, RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION].repeat(3));
    world.fail(RDKafkaApiKey::OffsetCommit, vec![RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS, transport]);
    let mut reading = world.read(TOPIC).await;
    let sent = events(500);
    for part in sent.chunks(50) {
        assert_eq!(timeout(PATIENCE, world.kafka.publish(part)).await.unwrap(), vec![Ok(()); 50]);
    }
    let received = reading.take(500).await;
    assert_in_order(&sent, &received);
    reading.consumer.stop().await;
    assert!(reading.messages.try_recv().is_err(), "something came twice");
    // Its offsets were committed.
    let mut reading = world.read(TOPIC).await;
    let last = event("k0", 500);
    world.kafka.publish(std::slice::from_ref(&last)).await;
    assert_eq!(reading.next().await, last.message);
}

#[tokio::test]
async fn a_broker_that_is_away_is_waited_for() {
    let world = World::start();
    let mut reading = world.read(TOPIC).await;
    world.kafka.publish(&events(7)).await;
    reading.take(7).await;
    world.broker.with(|cluster| cluster.broker_down(1)).unwrap().unwrap();
    let sent = events(50);
    let mut publishing = std::pin::pin!(world.kafka.publish(&sent));
    assert!(timeout(Duration::from_secs(2), &mut publishing).await.is_err(), "nobody was there to answer");
    world.broker.with(|cluster| cluster.broker_up(1)).unwrap().unwrap();
    assert_eq!(timeout(PATIENCE, publishing).await.unwrap(), vec![Ok(()); 50]);
    let received = reading.take(50).await;
    assert_in_order(&sent, &received);
}

#[tokio::test]
async fn a_consumer_stops_without_its_broker() {
    let world = World::start();
    let mut reading = world.read(TOPIC).await;
    world.kafka.publish(&events(7)).await;
    reading.take(7).await;
    world.broker.with(|cluster| cluster.broker_down(1)).unwrap().unwrap();
    timeout(Duration::from_secs(15), reading.consumer.stop()).await.expect("it waited for its broker");
}

#[tokio::test]
async fn what_nobody_has_read_is_not_driven_out() {
    let world = World::start();
    // 12 MiB on one partition; the broker keeps 5.
    let body = Encoded::of(&"x".repeat(4000)).unwrap();
    let sent: Vec<Outgoing> = (0..3000)
        .map(|_| Outgoing { topic: TOPIC.into(), message: Message::event("test", "large.v1", "key", &body) })
        .collect();
    let kafka = world.kafka.clone();
    let (progress, mut published) = mpsc::unbounded_channel();
    let publishing = tokio::spawn({
        let sent = sent.clone();
        async move {
            for part in sent.chunks(50) {
                assert_eq!(kafka.publish(part).await, vec![Ok(()); 50]);
                progress.send(part.len()).unwrap();
            }
        }
    });
    let mut before = 0;
    while let Ok(part) = timeout(Duration::from_secs(2), published.recv()).await {
        before += part.expect("everything was published, and nobody had read anything");
    }
    assert!(before > 0);
    let mut reading = world.read(TOPIC).await;
    let received = reading.take(sent.len()).await;
    assert!(received.iter().zip(&sent).all(|(received, sent)| received.id == sent.message.id));
    publishing.await.unwrap();
}

#[tokio::test]
async fn a_record_that_is_no_message_and_one_that_is_rejected_go_to_the_dead_letters_as_they_came() {
    let world = World::start();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", world.broker.brokers()).set("partitioner", "murmur2_random");
    let raw: FutureProducer = config.create().unwrap();
    let headers = OwnedHeaders::new()
        .insert(Header { key: "ce_specversion", value: Some("1.0") })
        .insert(Header { key: "binary", value: Some(&[0xff, 0][..]) });
    let record = FutureRecord::to(TOPIC).key("k0").payload(&[0xfe, 1][..]).headers(headers);
    raw.send(record, PATIENCE).await.unwrap();
    let mut bad = event("k0", 1);
    bad.message.kind = "bad.v1".into();
    bad.message.headers.insert("traceparent".into(), "00-1-1-00".into());
    world.kafka.publish(&[bad.clone(), event("k0", 2)]).await;
    let mut reading = world.read(TOPIC).await;
    assert_eq!(reading.take(2).await[1].kind, "tested.v1");
    let mut dead = world.read_dead_letters().await;
    // The first is no message in its new place either, and goes on to the dead letters of the dead letters.
    let second = dead.next().await;
    assert_eq!((second.id, second.data), (bad.message.id, bad.message.data));
    assert_eq!(second.headers["traceparent"], "00-1-1-00");
    assert_eq!(second.headers["saga-dead-letter-reason"], "it is bad");
    assert_eq!(second.headers["saga-dead-letter-topic"], TOPIC);
    assert_eq!(second.headers["saga-dead-letter-offset"], "1");
    let counted = async {
        while world.kafka.metrics().dead_letters < 3 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, counted).await.unwrap();
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_its_neighbours_are_not() {
    let world = World::start();
    let mut large = event("k0", 1);
    large.message.data = vec![b'1'; 1_000_000];
    let answers = world.kafka.publish(&[event("k0", 0), large, event("k0", 2)]).await;
    let Err(PublishError::Refused(reason)) = &answers[1] else { panic!("{answers:?}") };
    assert!(reason.contains("`message.max.bytes` is 1000000"), "{reason}");
    assert_eq!((&answers[0], &answers[2]), (&Ok(()), &Ok(())));
}

#[tokio::test]
async fn a_topic_that_does_not_exist_is_named() {
    let world = World::start();
    let astray = Outgoing { topic: "nowhere".into(), ..event("k", 1) };
    let answers = world.kafka.publish(&[astray]).await;
    assert_eq!(answers, vec![Err(PublishError::Refused("there is no topic `nowhere`: create it".into()))]);
    let error = world.kafka.check_topics(&[TopicSpec::new(TOPIC).partitions(9).replication(3)]).await.unwrap_err();
    let faults: HashSet<&str> = error.0.lines().collect();
    assert!(faults.contains("topic `tests` has 4 partitions, not 9"), "{error}");
    assert!(faults.contains("topic `tests` is kept 1 times, not 3"), "{error}");
}

#[tokio::test]
async fn settings_that_would_break_a_promise_are_refused() {
    for (name, value) in [("auto.offset.reset", "latest"), ("acks", "1"), ("enable.auto.commit", "true")] {
        let error = KafkaTransport::builder("localhost:1").set(name, value).build().unwrap_err();
        assert!(matches!(&error, SettingError::Promised { .. }), "{error}");
    }
    let error = KafkaTransport::builder("localhost:1").set("no.such.thing", "1").build().unwrap_err();
    assert!(error.to_string().contains("no.such.thing"), "{error}");
    KafkaTransport::builder("localhost:1").set("acks", "all").set("linger.ms", "5").build().unwrap();
}

#[tokio::test]
async fn a_consumer_that_stops_hands_over_at_once() {
    let world = World::start();
    world.kafka.publish(&events(20)).await;
    let mut first = world.read(TOPIC).await;
    first.take(20).await;
    first.consumer.stop().await;
    let began = Instant::now();
    let mut second = world.read(TOPIC).await;
    world.kafka.publish(&events(7)).await;
    second.take(7).await;
    assert!(second.messages.try_recv().is_err(), "what was dealt with came again");
    // A member that had died instead would be waited for until its session had timed out.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

/// Callers give up and come again; what they left stays in the client, which has one queue for all topics.
#[tokio::test]
async fn a_topic_that_is_away_leaves_room_for_the_others() {
    let topics = [TopicSpec::new("away").partitions(1), TopicSpec::new(TOPIC)];
    let broker = EmbeddedBroker::start(&topics).unwrap();
    let kafka = KafkaTransport::builder(broker.brokers());
    let kafka = kafka.set_producer("queue.buffering.max.messages", "400").build().unwrap();
    broker.with(|cluster| cluster.partition_leader("away", 0, None)).unwrap().unwrap();
    let away: Vec<Outgoing> =
        events(1_000).into_iter().map(|event| Outgoing { topic: "away".into(), ..event }).collect();
    let given_up = timeout(Duration::from_secs(10), kafka.publish(&away)).await;
    assert!(given_up.is_err(), "some of it is with the client for ever");
    let others = timeout(PATIENCE, kafka.publish(&events(50))).await.expect("they wait for the one that is away");
    assert_eq!(others, vec![Ok(()); 50]);
    let again = timeout(PATIENCE, kafka.publish(&away)).await.expect("there is no more of it in the client");
    assert!(again.iter().all(|answer| matches!(answer, Err(PublishError::Unavailable(_)))), "{again:?}");
}
