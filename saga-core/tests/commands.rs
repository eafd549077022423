//! Command steps, over a wire that the test holds in its hands: what is sent when, and what each reply does, on time, twice, late, early or strayed.

use async_trait::async_trait;
use saga_core::{
    BuildError, Definition, Encoded, Engine, Error, MemoryStore, Out, Outcome, Retry, Saga, SagaBuilder, SagaId,
    machine::{Event, Status},
    message::{Answer, CommandAttributes, Message, Op},
    participant::Command,
    transport::{Consumer, Outgoing, PublishError, Receiver, Subscription, Transport, TransportError, Verdict},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

macro_rules! command {
    ($name:ident($field:ty) -> $reply:ty, $kind:literal, $topic:literal) => {
        #[derive(Debug, Serialize, Deserialize)]
        struct $name($field);
        impl Command for $name {
            const TYPE: &'static str = $kind;
            const TOPIC: &'static str = $topic;
            type Reply = $reply;
        }
    };
}
command!(Reserve(u32) -> String, "inventory.reserve.v1", "inventory.commands");
command!(Release(Option<String>) -> (), "inventory.release.v1", "inventory.commands");
command!(Charge(String) -> u64, "payment.charge.v1", "payment.commands");

/// Two commands: one that is undone by a third, and the pivot.
struct Order;

impl Saga for Order {
    const NAME: &'static str = "order";
    const VERSION: u32 = 1;
    type Input = u32;
    type Output = u64;
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, u64> {
        let retry = Retry::fixed(Duration::from_secs(1)).attempts(3);
        let reservation = saga
            .compensatable("reserve")
            .retry(retry)
            .timeout(Duration::from_secs(10))
            .command(Reserve)
            .retry_compensation(retry)
            .compensate_command(|_, reservation| Release(reservation));
        saga.pivot("charge").retry(retry).reads(reservation).command(|_, reservation| Charge(reservation))
    }
}

/// What is published is kept for the test to see, and what it answers goes to whoever subscribed.
#[derive(Default)]
struct Wire {
    sent: Mutex<VecDeque<Message>>,
    receiver: Mutex<Option<Arc<dyn Receiver>>>,
    refusals: Mutex<Vec<PublishError>>,
    /// Acknowledgements that are held back, if any.
    acknowledgements: Option<Semaphore>,
}

struct Subscribed;

#[async_trait]
impl Consumer for Subscribed {
    async fn stop(self: Box<Self>) {}
}

#[async_trait]
impl Transport for Wire {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        for outgoing in batch {
            if let Some(refusal) = self.refusals.lock().unwrap().pop() {
                return vec![Err(refusal)];
            }
            assert_eq!(outgoing.message.kind.split('.').next(), outgoing.topic.split('.').next());
            self.sent.lock().unwrap().push_back(outgoing.message.clone());
        }
        if let Some(acknowledgements) = &self.acknowledgements {
            acknowledgements.acquire().await.unwrap().forget();
        }
        batch.iter().map(|_| Ok(())).collect()
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
        receiver: Arc<dyn Receiver>,
    ) -> Result<Box<dyn Consumer>, TransportError> {
        assert_eq!(
            (subscription.group.as_str(), subscription.topics.as_slice()),
            ("shop", &["shop.replies".into()][..])
        );
        *self.receiver.lock().unwrap() = Some(receiver);
        Ok(Box::new(Subscribed))
    }

    fn system(&self) -> &'static str {
        "local"
    }

    fn max_message_bytes(&self) -> usize {
        1 << 20
    }
}

impl Wire {
    /// The next command that is published.
    async fn next(&self) -> Message {
        let next = async {
            loop {
                if let Some(message) = self.sent.lock().unwrap().pop_front() {
                    return message;
                }
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(600), next).await.expect("nothing was published")
    }

    fn nothing_more(&self) {
        assert_eq!(*self.sent.lock().unwrap(), VecDeque::new());
    }

    async fn receive(&self, reply: &Message) -> Verdict {
        let receiver = self.receiver.lock().unwrap().clone().expect("nobody subscribed");
        receiver.receive(std::slice::from_ref(reply)).await.unwrap().remove(0)
    }

    async fn answer(&self, command: &Message, answer: Answer) {
        assert_eq!(self.receive(&reply_to(command, answer)).await, Verdict::Done);
    }
}

fn reply_to(command: &Message, answer: Answer) -> Message {
    CommandAttributes::of(command).unwrap().reply("participant", command, &answer)
}

fn success<T: Serialize>(reply: T) -> Answer {
    Answer::Success(Encoded::of(&reply).unwrap())
}

fn body(message: &Message) -> &str {
    std::str::from_utf8(&message.data).unwrap()
}

async fn engine(store: &MemoryStore, wire: &Arc<Wire>) -> Engine {
    let builder = Engine::builder(store.clone()).transport("shop", wire.clone()).register::<Order>(()).unwrap();
    builder.start().await.unwrap()
}

fn refused(events: &[Event]) -> bool {
    events.iter().any(|event| matches!(event, Event::Refused { .. }))
}

#[tokio::test(start_paused = true)]
async fn each_reply_is_its_steps_output_and_the_last_one_ends_the_saga() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let engine = engine(&store, &wire).await;
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    let reserve = wire.next().await;
    let attributes = CommandAttributes::of(&reserve).unwrap();
    assert_eq!((reserve.kind.as_str(), body(&reserve)), ("inventory.reserve.v1", "3"));
    assert_eq!(reserve.id, format!("{}/reserve", order.id()));
    assert_eq!((attributes.op, attributes.attempt, attributes.reply_to.as_str()), (Op::Do, 1, "shop.replies"));
    let trace = reserve.headers["traceparent"].clone();
    assert!(trace.starts_with(&format!("00-{}-", order.id().as_uuid().simple())));
    wire.answer(&reserve, success("r-1")).await;
    let charge = wire.next().await;
    assert_eq!((charge.kind.as_str(), body(&charge)), ("payment.charge.v1", "\"r-1\""));
    wire.answer(&charge, success(70)).await;
    assert_eq!(order.outcome().await.unwrap(), Outcome::Completed(70));
    wire.nothing_more();
}

#[tokio::test(start_paused = true)]
async fn a_no_turns_the_saga_back_and_the_undo_is_told_the_reply() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let engine = engine(&store, &wire).await;
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    wire.answer(&wire.next().await, success("r-1")).await;
    wire.answer(&wire.next().await, Answer::Fail("declined".into())).await;
    let release = wire.next().await;
    assert_eq!((release.kind.as_str(), body(&release)), ("inventory.release.v1", "\"r-1\""));
    assert_eq!(release.id, format!("{}/reserve/undo", order.id()));
    assert_eq!(CommandAttributes::of(&release).unwrap().op, Op::Undo);
    wire.answer(&release, success(())).await;
    let Outcome::RolledBack(why) = order.outcome().await.unwrap() else { panic!("not rolled back") };
    assert_eq!(why.to_string(), "charge: declined");
}

#[tokio::test(start_paused = true)]
async fn a_retry_is_sent_again_under_the_same_id_and_its_repeats_count_once() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let engine = engine(&store, &wire).await;
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    let first = wire.next().await;
    for _ in 0..5 {
        // Each of them is a message of its own: a participant that was sent the command twice answers twice.
        wire.answer(&first, Answer::Retry("busy".into())).await;
    }
    let second = wire.next().await;
    assert_eq!((&second.id, &second.data), (&first.id, &first.data));
    assert_eq!(CommandAttributes::of(&second).unwrap().attempt, 2);
    wire.answer(&first, Answer::Unknown("late, of the first attempt".into())).await;
    sleep(Duration::from_secs(5)).await;
    wire.nothing_more();
    wire.answer(&first, success("late, of the first attempt, and final")).await;
    assert_eq!(body(&wire.next().await), "\"late, of the first attempt, and final\"");
    let attempts = order.history().await.unwrap();
    let retries = attempts.events().iter().filter(|event| matches!(event, Event::Retrying { .. })).count();
    assert_eq!(retries, 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_reply_it_is_sent_again_until_it_gives_up_in_doubt_and_is_undone() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let engine = engine(&store, &wire).await;
    let begun = Instant::now();
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    let sent = [wire.next().await, wire.next().await, wire.next().await];
    assert!(sent.iter().all(|message| (&message.id, &message.data) == (&sent[0].id, &sent[0].data)));
    let release = wire.next().await;
    let elapsed = begun.elapsed();
    assert!(elapsed >= Duration::from_secs(30) && elapsed < Duration::from_secs(40), "{elapsed:?}");
    assert_eq!(body(&release), "null", "nobody knows what it replied");
    wire.answer(&sent[0], success("too late: it will be undone")).await;
    wire.answer(&release, success(())).await;
    assert!(matches!(order.outcome().await.unwrap(), Outcome::RolledBack(_)));
}

#[tokio::test(start_paused = true)]
async fn a_repeated_a_strayed_and_a_senseless_reply_change_nothing() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let engine = engine(&store, &wire).await;
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    let reserve = wire.next().await;
    let with = |name: &str, value: &str| {
        let mut reply = reply_to(&reserve, success("strayed"));
        reply.extensions.insert(name.into(), value.into());
        reply
    };
    assert_eq!(wire.receive(&with("sagagen", "1")).await, Verdict::Done, "of a generation that is not there");
    assert_eq!(wire.receive(&with("sagaop", "undo")).await, Verdict::Done, "of an undo that was not asked for");
    assert_eq!(wire.receive(&with("sagastep", "charge")).await, Verdict::Done, "early: it was not commanded yet");
    assert_eq!(wire.receive(&with("sagastep", "nonsense")).await, Verdict::Done);
    for broken in [with("sagaid", &SagaId::generate().to_string()), with("sagaid", "x"), with("sagaoutcome", "maybe")] {
        assert!(matches!(wire.receive(&broken).await, Verdict::DeadLetter(_)));
    }
    sleep(Duration::from_secs(5)).await;
    wire.nothing_more();
    let heard = reply_to(&reserve, success("r-1"));
    wire.receive(&heard).await;
    let charge = wire.next().await;
    wire.receive(&heard).await;
    wire.answer(&reserve, success("r-2")).await;
    wire.answer(&reserve, Answer::Fail("no".into())).await;
    wire.answer(&charge, success(70)).await;
    assert_eq!(order.outcome().await.unwrap(), Outcome::Completed(70));
    wire.answer(&charge, success(71)).await;
    let history = order.history().await.unwrap();
    assert!(refused(history.events()), "a reply to a step that is not there is told");
    wire.nothing_more();
}

#[tokio::test(start_paused = true)]
async fn a_reply_may_be_quicker_than_the_brokers_acknowledgement() {
    let wire = Wire { acknowledgements: Some(Semaphore::new(0)), ..Wire::default() };
    let (store, wire) = (MemoryStore::default(), Arc::new(wire));
    let engine = engine(&store, &wire).await;
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    wire.answer(&wire.next().await, success("r-1")).await;
    wire.answer(&wire.next().await, success(70)).await;
    assert_eq!(order.outcome().await.unwrap(), Outcome::Completed(70));
}

#[tokio::test(start_paused = true)]
async fn a_saga_stays_owned_until_its_command_is_acknowledged() {
    let wire = Wire { acknowledgements: Some(Semaphore::new(0)), ..Wire::default() };
    let (store, wire) = (MemoryStore::default(), Arc::new(wire));
    let engine = engine(&store, &wire).await;
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    wire.next().await;
    sleep(Duration::from_secs(5)).await; // longer than a saga is held that only waits
    assert!(!released(&order.history().await.unwrap()));
    wire.acknowledgements.as_ref().unwrap().add_permits(1);
    sleep(Duration::from_secs(2)).await;
    assert!(released(&order.history().await.unwrap()));
}

fn released<S: Saga>(history: &saga_core::History<S>) -> bool {
    history.events().iter().any(|event| matches!(event, Event::Awaiting { .. }))
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_waits_for_long_leaves_memory_and_its_command_is_not_sent_again_when_it_comes_back() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let engine = engine(&store, &wire).await;
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    let reserve = wire.next().await;
    sleep(Duration::from_secs(5)).await;
    assert!(released(&order.history().await.unwrap()));
    wire.nothing_more();
    wire.answer(&reserve, success("r-1")).await;
    wire.answer(&wire.next().await, success(70)).await;
    assert_eq!(order.outcome().await.unwrap(), Outcome::Completed(70));
    wire.nothing_more();
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_left_memory_sends_again_when_the_time_for_the_reply_is_over() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let engine = engine(&store, &wire).await;
    let begun = Instant::now();
    engine.sagas::<Order>().submit("k", 3).await.unwrap();
    wire.next().await;
    let again = wire.next().await;
    assert_eq!(CommandAttributes::of(&again).unwrap().attempt, 2);
    assert!((10..13).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_hands_over_what_is_awaited_and_the_next_node_does_not_send_it_again() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let first = engine(&store, &wire).await;
    let order = first.sagas::<Order>().submit("k", 3).await.unwrap().id();
    let reserve = wire.next().await;
    first.shutdown(Duration::from_secs(1)).await;
    let second = engine(&store, &wire).await;
    sleep(Duration::from_secs(2)).await;
    wire.nothing_more();
    wire.answer(&reserve, success("r-1")).await;
    wire.answer(&wire.next().await, success(70)).await;
    assert_eq!(second.sagas::<Order>().get(order).outcome().await.unwrap(), Outcome::Completed(70));
}

/// The same saga as another build of the service has it, in which the command says something else.
struct Rewritten;

impl Saga for Rewritten {
    const NAME: &'static str = "order";
    const VERSION: u32 = 1;
    type Input = u32;
    type Output = u64;
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, u64> {
        let reserve = saga.compensatable("reserve").command(|quantity| Reserve(quantity + 1000));
        let reservation = reserve.compensate_command(|_, reservation| Release(reservation));
        saga.pivot("charge").reads(reservation).command(|_, reservation| Charge(reservation))
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_the_very_same_command_is_sent_again_even_by_another_build() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let first = engine(&store, &wire).await;
    let order = first.sagas::<Order>().submit("k", 3).await.unwrap().id();
    let reserve = wire.next().await;
    first.kill().await;
    let builder = Engine::builder(store.clone()).transport("shop", wire.clone());
    let second = builder.register::<Rewritten>(()).unwrap().start().await.unwrap();
    let again = wire.next().await;
    assert_eq!((&again.id, &again.data), (&reserve.id, &reserve.data));
    assert_eq!(CommandAttributes::of(&again).unwrap().attempt, 2, "the attempt of the lost worker counts");
    wire.answer(&reserve, success("r-1")).await;
    wire.answer(&wire.next().await, success(70)).await;
    assert_eq!(second.sagas::<Rewritten>().get(order).outcome().await.unwrap(), Outcome::Completed(70));
}

/// One command, sent for as long as it takes.
struct Patient;

impl Saga for Patient {
    const NAME: &'static str = "patient";
    const VERSION: u32 = 1;
    type Input = String;
    type Output = u64;
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, u64> {
        saga.pivot("charge").retry(Retry::fixed(Duration::from_secs(1)).forever()).command(Charge)
    }
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_waits_for_others_is_no_suspect_of_killing_its_workers() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let start = async || {
        let builder = Engine::builder(store.clone()).transport("shop", wire.clone());
        builder.register::<Patient>(()).unwrap().start().await.unwrap()
    };
    let mut engine = start().await;
    let order = engine.sagas::<Patient>().submit("k", "r-1".into()).await.unwrap().id();
    let charge = wire.next().await;
    for _ in 0..5 {
        engine.kill().await;
        engine = start().await;
        assert_eq!(wire.next().await.id, charge.id);
    }
    wire.answer(&charge, success(70)).await;
    assert_eq!(engine.sagas::<Patient>().get(order).outcome().await.unwrap(), Outcome::Completed(70));
}

#[tokio::test(start_paused = true)]
async fn a_cancel_does_not_wait_for_a_reply_but_undoes_what_is_in_doubt() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let engine = engine(&store, &wire).await;
    for wait in [0, 5] {
        // In memory, and out of it.
        let order = engine.sagas::<Order>().submit(format!("k{wait}"), 3).await.unwrap();
        wire.next().await;
        sleep(Duration::from_secs(wait)).await;
        engine.sagas::<Order>().cancel(order.id(), "changed my mind").await.unwrap();
        let release = wire.next().await;
        assert_eq!((release.kind.as_str(), body(&release)), ("inventory.release.v1", "null"));
        wire.answer(&release, success(())).await;
        assert!(matches!(order.outcome().await.unwrap(), Outcome::RolledBack(_)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_waits_for_the_reply_to_the_pivot() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let engine = engine(&store, &wire).await;
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    wire.answer(&wire.next().await, success("r-1")).await;
    let charge = wire.next().await;
    engine.sagas::<Order>().cancel(order.id(), "changed my mind").await.unwrap();
    sleep(Duration::from_secs(5)).await;
    wire.nothing_more();
    wire.answer(&charge, success(70)).await;
    assert_eq!(order.outcome().await.unwrap(), Outcome::Completed(70));
}

#[tokio::test(start_paused = true)]
async fn a_pivot_without_a_reply_is_parked_and_a_late_reply_moves_it_on() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let engine = engine(&store, &wire).await;
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    wire.answer(&wire.next().await, success("r-1")).await;
    let charge = wire.next().await;
    assert!(matches!(order.outcome().await.unwrap(), Outcome::Parked(_)));
    wire.answer(&charge, Answer::Retry("not final: it stays parked".into())).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(order.status().await.unwrap(), Status::Parked);
    wire.answer(&charge, success(70)).await;
    while order.status().await.unwrap() == Status::Parked {
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(order.outcome().await.unwrap(), Outcome::Completed(70));
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_cannot_be_read_parks_the_saga_and_a_resume_asks_again() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let engine = engine(&store, &wire).await;
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    let reserve = wire.next().await;
    wire.answer(&reserve, success(12)).await;
    let Outcome::Parked(why) = order.outcome().await.unwrap() else { panic!("not parked") };
    assert!(why.reason.contains("its reply cannot be read"), "{why}");
    engine.sagas::<Order>().resume(order.id(), "eve").await.unwrap();
    let again = wire.next().await;
    assert_eq!((&again.id, &again.data), (&reserve.id, &reserve.data), "it is in doubt, so its key stays");
    wire.answer(&again, success("r-1")).await;
    wire.answer(&wire.next().await, success(70)).await;
    assert_eq!(order.outcome().await.unwrap(), Outcome::Completed(70));
}

#[tokio::test(start_paused = true)]
async fn an_undo_that_is_refused_is_sent_again_then_parked_and_resumed() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let engine = engine(&store, &wire).await;
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    wire.answer(&wire.next().await, success("r-1")).await;
    wire.answer(&wire.next().await, Answer::Fail("declined".into())).await;
    for answer in [Answer::Unknown("?".into()), Answer::Retry("busy".into()), Answer::Fail("no".into())] {
        let release = wire.next().await;
        assert_eq!(body(&release), "\"r-1\"");
        wire.answer(&release, answer).await;
    }
    let Outcome::Parked(why) = order.outcome().await.unwrap() else { panic!("not parked") };
    assert_eq!(why.to_string(), "reserve: no");
    engine.sagas::<Order>().resume(order.id(), "eve").await.unwrap();
    wire.answer(&wire.next().await, success(())).await;
    while order.status().await.unwrap() != Status::RolledBack {
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_broker_refuses_has_not_happened_and_what_it_does_not_answer_is_tried_again() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let engine = engine(&store, &wire).await;
    *wire.refusals.lock().unwrap() = vec![PublishError::Unavailable("no leader".into())];
    engine.sagas::<Order>().submit("k", 3).await.unwrap();
    assert_eq!(CommandAttributes::of(&wire.next().await).unwrap().attempt, 2);
    *wire.refusals.lock().unwrap() = vec![PublishError::Refused("too large".into())];
    let order = engine.sagas::<Order>().submit("l", 3).await.unwrap();
    let Outcome::RolledBack(why) = order.outcome().await.unwrap() else { panic!("not rolled back") };
    assert_eq!(why.to_string(), "reserve: the broker refused the message: too large");
    wire.nothing_more();
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_nothing_of_an_earlier_attempt_at_the_pivot() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let engine = engine(&store, &wire).await;
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    let reserve = wire.next().await;
    let refused = PublishError::Refused("the topic is gone".into());
    *wire.refusals.lock().unwrap() = vec![refused.clone(), refused, PublishError::Unavailable("no leader".into())];
    wire.answer(&reserve, success("r-1")).await;
    while order.status().await.unwrap() != Status::Parked {
        sleep(Duration::from_millis(100)).await;
    }
    wire.nothing_more();
}

#[tokio::test(start_paused = true)]
async fn an_engine_without_a_transport_does_not_start() {
    let started = Engine::builder(MemoryStore::default()).register::<Order>(()).unwrap().start().await;
    let Err(error @ Error::NoTransport { .. }) = started else { panic!("it started") };
    assert!(error.to_string().contains("step `reserve` of saga `order`"), "{error}");
}

command!(ReleaseElsewhere(()) -> (), "payment.release.v1", "payment.commands");

#[test]
fn an_undo_goes_where_its_command_went() {
    struct Astray;
    impl Saga for Astray {
        const NAME: &'static str = "astray";
        const VERSION: u32 = 1;
        type Input = u32;
        type Output = String;
        type Deps = ();
        fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, String> {
            let reserve = saga.compensatable("reserve").command(Reserve);
            reserve.compensate_command(|_, _| ReleaseElsewhere(()))
        }
    }
    assert!(matches!(Definition::<Astray>::build(), Err(BuildError::UndoneElsewhere { .. })));
}

#[test]
fn the_types_of_commands_belong_to_the_fingerprint() {
    assert_eq!(
        Definition::<Order>::build().unwrap().graph().fingerprint(),
        "reserve: compensatable, sends inventory.reserve.v1, undone by inventory.release.v1\n\
         charge: pivot after reserve, sends payment.charge.v1\n"
    );
}

#[tokio::test(start_paused = true)]
async fn a_command_that_was_answered_retry_to_the_end_is_undone_because_a_copy_of_it_may_still_come() {
    // The participant answered, and died before it committed the offset: its next node is given the same record, finds no row, and does it.
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let engine = engine(&store, &wire).await;
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    for _ in 0..3 {
        wire.answer(&wire.next().await, Answer::Retry("busy".into())).await;
    }
    let release = wire.next().await;
    assert_eq!((release.kind.as_str(), body(&release)), ("inventory.release.v1", "null"));
    wire.answer(&release, success(())).await;
    assert!(matches!(order.outcome().await.unwrap(), Outcome::RolledBack(_)));
}

#[tokio::test(start_paused = true)]
async fn a_cancel_between_a_retry_and_the_next_attempt_undoes_the_command() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let engine = engine(&store, &wire).await;
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    wire.answer(&wire.next().await, Answer::Retry("busy".into())).await;
    engine.sagas::<Order>().cancel(order.id(), "changed my mind").await.unwrap();
    let release = wire.next().await;
    assert_eq!((release.kind.as_str(), body(&release)), ("inventory.release.v1", "null"));
}

#[tokio::test(start_paused = true)]
async fn a_pivot_that_was_answered_retry_to_the_end_is_parked_because_a_copy_of_it_may_still_come() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let engine = engine(&store, &wire).await;
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    wire.answer(&wire.next().await, success("r-1")).await;
    let charge = wire.next().await;
    wire.answer(&charge, Answer::Retry("busy".into())).await;
    for _ in 0..2 {
        wire.answer(&wire.next().await, Answer::Retry("busy".into())).await;
    }
    assert!(matches!(order.outcome().await.unwrap(), Outcome::Parked(_)));
    engine.sagas::<Order>().resume(order.id(), "eve").await.unwrap();
    let again = wire.next().await;
    assert_eq!((&again.id, &again.data), (&charge.id, &charge.data), "under another key it could happen twice");
    wire.answer(&again, success(70)).await;
    while order.status().await.unwrap() != Status::Completed {
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_repeated_no_to_one_undo_counts_as_one_attempt() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let engine = engine(&store, &wire).await;
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    wire.answer(&wire.next().await, success("r-1")).await;
    wire.answer(&wire.next().await, Answer::Fail("declined".into())).await;
    let release = wire.next().await;
    for _ in 0..5 {
        wire.answer(&release, Answer::Fail("not now".into())).await;
    }
    let again = wire.next().await;
    assert_eq!(CommandAttributes::of(&again).unwrap().attempt, 2);
    wire.answer(&again, success(())).await;
    assert!(matches!(order.outcome().await.unwrap(), Outcome::RolledBack(_)));
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_of_the_command_that_comes_late_is_not_taken_for_one_of_its_undo() {
    let wire = Wire { acknowledgements: Some(Semaphore::new(0)), ..Wire::default() };
    let (store, wire) = (MemoryStore::default(), Arc::new(wire));
    let engine = engine(&store, &wire).await;
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    // The replies are quicker than the acknowledgement of the very first command.
    wire.answer(&wire.next().await, success("r-1")).await;
    wire.answer(&wire.next().await, Answer::Fail("declined".into())).await;
    sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    wire.acknowledgements.as_ref().unwrap().add_permits(100);
    let release = wire.next().await;
    assert_eq!(CommandAttributes::of(&release).unwrap().attempt, 1);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    wire.answer(&release, success(())).await;
    assert!(matches!(order.outcome().await.unwrap(), Outcome::RolledBack(_)));
}

#[tokio::test(start_paused = true)]
async fn the_attempt_of_a_worker_that_is_lost_while_it_waits_is_not_waited_for_again() {
    let (store, wire) = (MemoryStore::default(), Arc::new(Wire::default()));
    let first = engine(&store, &wire).await;
    let order = first.sagas::<Order>().submit("k", 3).await.unwrap();
    let reserve = wire.next().await;
    while !released(&order.history().await.unwrap()) {
        sleep(Duration::from_millis(100)).await;
    }
    // Something that changes nothing brings it back into memory, and there the worker is lost.
    wire.receive(&{
        let mut strayed = reply_to(&reserve, success("strayed"));
        strayed.extensions.insert("sagagen".into(), "1".into());
        strayed
    })
    .await;
    sleep(Duration::from_millis(500)).await;
    first.kill().await;
    let second = engine(&store, &wire).await;
    let again = wire.next().await;
    assert_eq!(CommandAttributes::of(&again).unwrap().attempt, 2, "an attempt was counted that never was");
    wire.answer(&again, success("r-1")).await;
    wire.answer(&wire.next().await, success(70)).await;
    assert_eq!(second.sagas::<Order>().get(order.id()).outcome().await.unwrap(), Outcome::Completed(70));
}
