//! A whole saga by commands and replies, and what becomes of messages that cannot be handled: documented answers, dead letters, and the next message goes on.

use async_trait::async_trait;
use saga_core::{
    Encoded, Engine, MemoryStore, Out, Outcome, Saga, SagaBuilder, SagaId, StepError,
    message::{Answer, CommandAttributes, CommandId, Message, Op},
    participant::{
        BatchCx, Command, CommandCx, Event, EventCx, Inbox, Job, Listener, MemoryInbox, Participant, Participating,
    },
    transport::{
        Consumer, LocalTransport, Outgoing, PublishError, Receiver, Subscription, Transport, TransportError,
        Unavailable, Verdict,
    },
};
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
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
command!(Reserve(u32) -> u32, "inventory.reserve.v1", "inventory.commands");
command!(Release(()) -> (), "inventory.release.v1", "inventory.commands");
command!(Describe(u32) -> String, "inventory.describe.v1", "inventory.commands");
command!(Charge(u32) -> String, "payment.charge.v1", "payment.commands");

struct Order;

impl Saga for Order {
    const NAME: &'static str = "order";
    const VERSION: u32 = 1;
    type Input = u32;
    type Output = String;
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, String> {
        let reserved = saga.compensatable("reserve").command(Reserve).compensate_command(|_, _| Release(()));
        saga.pivot("charge").reads(reserved).command(|_, reserved| Charge(reserved))
    }
}

/// What was done, in its order.
type Ledger = Arc<Mutex<Vec<String>>>;

async fn reserve(cx: CommandCx<Ledger>, _: &mut (), Reserve(quantity): Reserve) -> Result<u32, StepError> {
    match quantity {
        13 => panic!("a handler that panics"),
        14 => Err(StepError::unknown("a handler that always fails")),
        15 => std::future::pending().await,
        16 => Err(StepError::retry("busy")),
        17 => Err(StepError::fail("no ".repeat(1 << 20))),
        18 => panic!("{}", "ouch ".repeat(1 << 20)),
        quantity => {
            cx.lock().unwrap().push(format!("reserved {quantity}"));
            Ok(quantity)
        }
    }
}

/// A command whose reader panics.
#[derive(Debug, Serialize)]
struct Cursed;

impl<'de> Deserialize<'de> for Cursed {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("a reader that panics")
    }
}

impl Command for Cursed {
    const TYPE: &'static str = "inventory.curse.v1";
    const TOPIC: &'static str = "inventory.commands";
    type Reply = ();
}

async fn curse(_: CommandCx<Ledger>, _: &mut (), _: Cursed) -> Result<(), StepError> {
    Ok(())
}

/// Says as much as it is asked to.
async fn describe(_: CommandCx<Ledger>, _: &mut (), Describe(bytes): Describe) -> Result<String, StepError> {
    Ok("x".repeat(bytes as usize))
}

async fn release(cx: CommandCx<Ledger>, _: &mut (), _: Release) -> Result<(), StepError> {
    cx.lock().unwrap().push(format!("released {}", cx.kept::<u32>()?.unwrap_or(0)));
    Ok(())
}

async fn charge(cx: CommandCx<Ledger>, _: &mut (), Charge(quantity): Charge) -> Result<String, StepError> {
    if quantity > 5 {
        return Err(StepError::fail("declined"));
    }
    cx.lock().unwrap().push(format!("charged {quantity}"));
    Ok(format!("receipt for {quantity}"))
}

/// A transport, an inventory and a payment service on it, and what they have done.
struct World {
    transport: Arc<dyn Transport>,
    ledger: Ledger,
    _services: [Participating; 2],
}

impl World {
    async fn start() -> Self {
        let (transport, ledger): (Arc<dyn Transport>, Ledger) = (Arc::new(LocalTransport::default()), Arc::default());
        let allowed = Duration::from_millis(100);
        let inventory = Participant::new("inventory", MemoryInbox::default(), ledger.clone())
            .on(reserve)
            .on(describe)
            .on(curse)
            .on_undo(release)
            .timeout(allowed);
        let payment = Participant::new("payment", MemoryInbox::default(), ledger.clone()).on(charge);
        let services =
            [inventory.start(transport.clone()).await.unwrap(), payment.start(transport.clone()).await.unwrap()];
        Self { transport, ledger, _services: services }
    }

    fn done(&self) -> Vec<String> {
        self.ledger.lock().unwrap().clone()
    }

    async fn send(&self, topic: &str, message: Message) {
        let answers = self.transport.publish(&[Outgoing { topic: topic.into(), message }]).await;
        assert_eq!(answers, [Ok(())]);
    }

    async fn listen(&self, topic: &str) -> mpsc::UnboundedReceiver<Message> {
        let (sender, messages) = mpsc::unbounded_channel();
        let subscription = Subscription { group: "test".into(), topics: vec![topic.into()], batch: 100 };
        // It works until the runtime ends.
        std::mem::forget(self.transport.subscribe(subscription, Arc::new(Into(sender))).await.unwrap());
        messages
    }
}

struct Into(mpsc::UnboundedSender<Message>);

#[async_trait]
impl Receiver for Into {
    async fn receive(&self, batch: &[Message]) -> Result<Vec<Verdict>, Unavailable> {
        batch.iter().for_each(|message| drop(self.0.send(message.clone())));
        Ok(vec![Verdict::Done; batch.len()])
    }
}

async fn next(messages: &mut mpsc::UnboundedReceiver<Message>) -> Message {
    timeout(Duration::from_secs(1), messages.recv()).await.expect("nothing came within a second").unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_saga_completes_by_commands_and_replies() {
    let world = World::start().await;
    let builder = Engine::builder(MemoryStore::default()).transport("shop", world.transport.clone());
    let engine = builder.register::<Order>(()).unwrap().start().await.unwrap();
    let order = engine.sagas::<Order>().submit("order-1", 3).await.unwrap();
    assert_eq!(order.outcome().await.unwrap(), Outcome::Completed("receipt for 3".into()));
    assert_eq!(world.done(), ["reserved 3", "charged 3"]);
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_is_refused_is_undone_by_commands() {
    let world = World::start().await;
    let builder = Engine::builder(MemoryStore::default()).transport("shop", world.transport.clone());
    let engine = builder.register::<Order>(()).unwrap().start().await.unwrap();
    let order = engine.sagas::<Order>().submit("order-1", 6).await.unwrap();
    let Outcome::RolledBack(why) = order.outcome().await.unwrap() else { panic!("not rolled back") };
    assert_eq!(why.to_string(), "charge: declined");
    assert_eq!(world.done(), ["reserved 6", "released 6"]);
}

/// A command as the orchestrator sends it.
fn command(data: &str) -> Message {
    let id = CommandId { saga: SagaId::generate(), step: "reserve".into(), generation: 0 };
    let attributes = CommandAttributes { id, op: Op::Do, attempt: 1, reply_to: "shop.replies".into() };
    let mut message = attributes.message("shop", Reserve::TYPE, &Encoded::null());
    message.data = data.into();
    // All of them on one partition, one behind the other.
    message.key = "key".into();
    message
}

struct Poisoned {
    /// Outcome and reason of the reply to it, if there was one.
    reply: Option<(String, String)>,
    /// Why it is a dead letter, if it is one.
    dead: Option<String>,
}

/// Sends a message that cannot be handled, and sees to it that the next one on its partition is, within a second.
async fn poison(message: Message) -> Poisoned {
    let world = World::start().await;
    let mut replies = world.listen("shop.replies").await;
    let mut dead = world.listen("inventory.commands.dlt").await;
    let next_one = command("3");
    world.send(Reserve::TOPIC, message.clone()).await;
    world.send(Reserve::TOPIC, next_one.clone()).await;
    let (mut reply, mut handled, began) = (None, None, Instant::now());
    while let Ok(Some(answer)) = timeout(Duration::from_secs(1), replies.recv()).await {
        if answer.extensions["sagaid"] == next_one.extensions["sagaid"] {
            assert_eq!(answer.extensions["sagaoutcome"], "success");
            handled = Some(began.elapsed());
            continue;
        }
        let text = String::from_utf8(answer.data).unwrap();
        reply = Some((answer.extensions["sagaoutcome"].clone(), text));
    }
    assert!(handled.is_some_and(|after| after < Duration::from_secs(1)), "the next one came after {handled:?}");
    assert_eq!(world.done(), ["reserved 3"]);
    let found = timeout(Duration::from_millis(100), dead.recv()).await.ok().flatten();
    let dead = found.map(|found| {
        assert_eq!((&found.id, &found.data), (&message.id, &message.data));
        found.headers["saga-dead-letter-reason"].clone()
    });
    Poisoned { reply, dead }
}

/// A description of so many bytes.
fn description(bytes: usize) -> Message {
    Message { kind: Describe::TYPE.into(), ..command(&bytes.to_string()) }
}

fn refused(poisoned: &Poisoned, words: &str) {
    let (outcome, reason) = poisoned.reply.as_ref().expect("no reply");
    assert!(outcome == "fail" && reason.contains(words), "{outcome}: {reason}");
    let dead = poisoned.dead.as_ref().expect("no dead letter");
    assert!(dead.contains(words), "{dead}");
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_is_no_json_is_refused_and_a_dead_letter() {
    refused(&poison(command("{")).await, "the payload is no inventory.reserve.v1");
}

#[tokio::test(start_paused = true)]
async fn a_payload_of_another_shape_is_refused_and_a_dead_letter() {
    refused(&poison(command(r#"{"pieces": 3}"#)).await, "the payload is no inventory.reserve.v1");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_type_and_a_wrong_version_are_refused_and_dead_letters() {
    for kind in ["inventory.reserve.v2", "inventory.paint.v1"] {
        let message = Message { kind: kind.into(), ..command("3") };
        refused(&poison(message).await, kind);
    }
}

#[tokio::test(start_paused = true)]
async fn an_undo_that_says_it_is_a_command_is_refused_and_a_dead_letter() {
    let message = Message { kind: Release::TYPE.into(), ..command("null") };
    refused(&poison(message).await, "inventory.release.v1");
}

#[tokio::test(start_paused = true)]
async fn a_missing_attribute_makes_a_dead_letter_without_a_reply() {
    for name in ["sagaid", "sagastep", "sagagen", "sagaop", "sagaattempt", "replyto"] {
        let mut message = command("3");
        message.extensions.remove(name);
        let poisoned = poison(message).await;
        assert_eq!(poisoned.reply, None);
        assert_eq!(poisoned.dead.unwrap(), format!("attribute `{name}` is missing"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_fails_or_takes_too_long_is_answered_and_is_no_dead_letter() {
    for (data, outcome, words) in [
        ("13", "unknown", "it panicked: a handler that panics"),
        ("14", "unknown", "a handler that always fails"),
        ("15", "unknown", "it was not done within 100ms"),
        ("16", "retry", "busy"),
    ] {
        let poisoned = poison(command(data)).await;
        let (found, reason) = poisoned.reply.expect("no reply");
        assert!(found == outcome && reason.contains(words), "{found}: {reason}");
        assert_eq!(poisoned.dead, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_that_was_refused_unread_stays_refused() {
    let world = World::start().await;
    let mut replies = world.listen("shop.replies").await;
    let good = command("3");
    world.send(Reserve::TOPIC, Message { kind: "inventory.reserve.v2".into(), ..good.clone() }).await;
    assert_eq!(next(&mut replies).await.extensions["sagaoutcome"], "fail");
    world.send(Reserve::TOPIC, good).await;
    assert_eq!(next(&mut replies).await.extensions["sagaoutcome"], "fail");
    assert_eq!(world.done(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn the_trace_headers_of_a_command_are_on_its_reply() {
    let world = World::start().await;
    let mut replies = world.listen("shop.replies").await;
    let mut message = command("3");
    message.headers.insert("traceparent".into(), "00-1-2-01".into());
    message.headers.insert("tracestate".into(), "a=b".into());
    world.send(Reserve::TOPIC, message).await;
    let reply = next(&mut replies).await;
    assert_eq!((&*reply.headers["traceparent"], &*reply.headers["tracestate"]), ("00-1-2-01", "a=b"));
}

#[derive(Debug, Serialize, Deserialize)]
struct Confirmed(u32);

impl Event for Confirmed {
    const TYPE: &'static str = "order.confirmed.v1";
    const TOPIC: &'static str = "order.events";
}

async fn notify(cx: EventCx<Ledger>, _: &mut (), Confirmed(n): Confirmed) -> Result<(), StepError> {
    cx.lock().unwrap().push(format!("told of {n}"));
    match n {
        13 => panic!("a handler that panics"),
        14 => Err(StepError::retry("the mail server is down")),
        15 => Err(StepError::fail("nobody to tell")),
        _ => Ok(()),
    }
}

fn event(n: u32) -> Message {
    Message::event("shop", Confirmed::TYPE, "order-1", &Encoded::of(&Confirmed(n)).unwrap())
}

async fn told_of(messages: Vec<Message>, count: usize) -> (Vec<String>, Vec<String>) {
    let (transport, ledger): (Arc<dyn Transport>, Ledger) = (Arc::new(LocalTransport::default()), Arc::default());
    let listener = Listener::new("notification", MemoryInbox::default(), ledger.clone()).on(notify);
    let listening = listener.start(transport.clone()).await.unwrap();
    let (sender, mut dead) = mpsc::unbounded_channel();
    let subscription = Subscription { group: "test".into(), topics: vec!["order.events.dlt".into()], batch: 100 };
    let burier = transport.subscribe(subscription, Arc::new(Into(sender))).await.unwrap();
    let outgoing = |message| Outgoing { topic: Confirmed::TOPIC.into(), message };
    transport.publish(&messages.into_iter().map(outgoing).collect::<Vec<_>>()).await;
    until(&ledger, count).await;
    let mut reasons = vec![];
    while let Ok(Some(found)) = timeout(Duration::from_secs(60), dead.recv()).await {
        reasons.push(found.headers["saga-dead-letter-reason"].clone());
    }
    listening.stop().await;
    burier.stop().await;
    let told = ledger.lock().unwrap().clone();
    (told, reasons)
}

#[tokio::test(start_paused = true)]
async fn an_event_that_comes_twice_is_handled_once_and_events_of_a_key_in_order() {
    let (first, second) = (event(1), event(2));
    let (told, dead) = told_of(vec![first.clone(), second.clone(), first, event(3), second], 3).await;
    assert_eq!((told, dead), (vec!["told of 1".into(), "told of 2".into(), "told of 3".into()], vec![]));
}

#[tokio::test(start_paused = true)]
async fn an_event_that_cannot_be_handled_is_tried_five_times_and_is_a_dead_letter_then() {
    for (n, words) in [(13, "it panicked: a handler that panics"), (14, "the mail server is down")] {
        let (told, dead) = told_of(vec![event(n), event(1)], 6).await;
        assert_eq!(told, [vec![format!("told of {n}"); 5], vec!["told of 1".to_owned()]].concat());
        assert_eq!(dead, [words]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_refused_is_a_dead_letter_at_once() {
    let unreadable = Message { data: b"{".to_vec(), ..event(0) };
    let (told, dead) = told_of(vec![event(15), unreadable, event(1)], 2).await;
    assert_eq!(told, ["told of 15", "told of 1"]);
    assert_eq!(dead[0], "nobody to tell");
    assert!(dead[1].starts_with("the payload is no order.confirmed.v1"), "{dead:?}");
}

async fn notify_all(cx: BatchCx<Ledger>, _: &mut (), events: Vec<Confirmed>) -> Result<(), StepError> {
    assert_eq!(cx.events().len(), events.len());
    for Confirmed(n) in events {
        cx.lock().unwrap().push(format!("told of {n}"));
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_function_that_handles_many_events_is_given_one_by_an_inbox_that_has_no_use_for_it() {
    let (transport, ledger): (Arc<dyn Transport>, Ledger) = (Arc::new(LocalTransport::default()), Arc::default());
    let listener = Listener::new("notification", MemoryInbox::default(), ledger.clone()).on_batch(notify_all);
    let listening = listener.start(transport.clone()).await.unwrap();
    let outgoing = |message| Outgoing { topic: Confirmed::TOPIC.into(), message };
    let (first, second) = (event(1), event(2));
    transport.publish(&[first.clone(), second, first].map(outgoing)).await;
    until(&ledger, 2).await;
    listening.stop().await;
    assert_eq!(*ledger.lock().unwrap(), ["told of 1", "told of 2"]);
    let cx = BatchCx::test([event(3)], Arc::new(ledger.clone()));
    notify_all(cx, &mut (), vec![Confirmed(3)]).await.unwrap();
    assert_eq!(ledger.lock().unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_event_of_a_type_that_nobody_handles_is_passed_over() {
    let (told, dead) = told_of(vec![Message { kind: "order.painted.v1".into(), ..event(7) }, event(1)], 1).await;
    assert_eq!((told, dead), (vec!["told of 1".into()], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_command_that_says_it_is_an_undo_is_a_dead_letter_and_is_never_done() {
    let mut message = command("3");
    message.extensions.insert("sagaop".into(), "undo".into());
    let poisoned = poison(message).await;
    assert!(poisoned.dead.unwrap().contains("takes `inventory.reserve.v1` to do, not to undo"));
    // There was nothing to undo, and an undo cannot be refused.
    assert_eq!(poisoned.reply.unwrap().0, "success");
}

#[tokio::test(start_paused = true)]
async fn an_impossible_attribute_makes_a_dead_letter_without_a_reply() {
    for (name, value) in [
        ("sagaid", "7"),
        ("sagagen", "-1"),
        ("sagaop", "redo"),
        ("sagaattempt", "first"),
        ("sagaattempt", "4294967296"),
    ] {
        let mut message = command("3");
        message.extensions.insert(name.into(), value.into());
        let poisoned = poison(message).await;
        assert_eq!(poisoned.reply, None);
        assert_eq!(poisoned.dead.unwrap(), format!("attribute `{name}` cannot be `{value}`"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_is_no_utf_8_is_refused_and_a_dead_letter() {
    let message = Message { data: vec![0xff, 0, 0xfe], ..command("3") };
    refused(&poison(message).await, "the payload is no inventory.reserve.v1");
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_is_too_large_is_answered_with_a_failure_and_the_largest_is_not() {
    let poisoned = poison(description(1 << 19)).await;
    let (outcome, reason) = poisoned.reply.expect("no reply");
    assert!(outcome == "fail" && reason.contains("more than the 524288 allowed"), "{outcome}: {reason}");
    assert_eq!(poisoned.dead, None);
    // With its quotation marks it is as large as may be.
    let (outcome, text) = poison(description((1 << 19) - 2)).await.reply.expect("no reply");
    assert_eq!((outcome.as_str(), text.len()), ("success", 1 << 19));
}

#[tokio::test(start_paused = true)]
async fn a_reason_that_is_too_large_is_cut_and_its_command_answered() {
    for (data, expected, words) in [("17", "fail", "no no no"), ("18", "unknown", "it panicked: ouch ouch")] {
        let poisoned = poison(command(data)).await;
        let (outcome, reason) = poisoned.reply.expect("no reply");
        assert!(outcome == expected && reason.contains(words), "{outcome}: {}", &reason[..100]);
        assert!(reason.len() < 10_000, "the reason has {} bytes", reason.len());
        assert_eq!(poisoned.dead, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_payload_of_another_shape_is_refused_with_a_short_reason() {
    // The parser's error quotes it, and each of its quotation marks takes two bytes there and more in JSON.
    let text = serde_json::to_string(&"\"".repeat(400_000)).unwrap();
    let poisoned = poison(command(&text)).await;
    refused(&poisoned, "the payload is no inventory.reserve.v1");
    assert!(poisoned.reply.unwrap().1.len() < 10_000);
}

#[tokio::test(start_paused = true)]
async fn headers_that_leave_no_room_for_the_reply_make_a_dead_letter() {
    let mut message = description(500_000);
    message.headers.insert("baggage".into(), "x".repeat(600_000));
    let poisoned = poison(message).await;
    assert_eq!(poisoned.reply, None);
    assert!(poisoned.dead.expect("no dead letter").starts_with("its reply was refused"));
}

#[tokio::test(start_paused = true)]
async fn poisoned_messages_among_others_of_their_batch_hold_up_none_of_them() {
    let world = World::start().await;
    let mut replies = world.listen("shop.replies").await;
    let mut dead = world.listen("inventory.commands.dlt").await;
    let (mut good, mut bad) = (vec![], vec![]);
    let mut batch = vec![];
    for n in 0..40 {
        let mut message = command(&(100 + n).to_string());
        match n % 4 {
            0 => message.data = b"{".to_vec(),
            1 => drop(message.extensions.remove("sagaid")),
            _ => {
                good.push(format!("reserved {}", 100 + n));
                batch.push(Outgoing { topic: Reserve::TOPIC.into(), message });
                continue;
            }
        }
        bad.push(message.id.clone());
        batch.push(Outgoing { topic: Reserve::TOPIC.into(), message });
    }
    assert!(world.transport.publish(&batch).await.iter().all(Result::is_ok));
    let (mut buried, mut successes) = (vec![], 0);
    for _ in 0..30 {
        successes += usize::from(next(&mut replies).await.extensions["sagaoutcome"] == "success");
    }
    for _ in 0..20 {
        buried.push(next(&mut dead).await.id);
    }
    assert_eq!((successes, world.done(), buried), (20, good, bad));
}

#[tokio::test(start_paused = true)]
async fn a_command_that_comes_twice_is_done_once_and_answered_twice() {
    let world = World::start().await;
    let mut replies = world.listen("shop.replies").await;
    let message = command("3");
    for _ in 0..2 {
        world.send(Reserve::TOPIC, message.clone()).await;
        let reply = next(&mut replies).await;
        assert_eq!((&*reply.extensions["sagaoutcome"], reply.data), ("success", b"3".to_vec()));
    }
    assert_eq!(world.done(), ["reserved 3"]);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_comes_after_its_undo_is_refused() {
    let world = World::start().await;
    let mut replies = world.listen("shop.replies").await;
    let message = command("3");
    let mut undo = Message { kind: Release::TYPE.into(), data: b"null".to_vec(), ..message.clone() };
    undo.extensions.insert("sagaop".into(), "undo".into());
    world.send(Reserve::TOPIC, undo).await;
    assert_eq!(next(&mut replies).await.extensions["sagaoutcome"], "success");
    world.send(Reserve::TOPIC, message).await;
    assert_eq!(next(&mut replies).await.extensions["sagaoutcome"], "fail");
    assert_eq!(world.done(), Vec::<String>::new());
}

/// A transport whose broker does not take what is published the first few times.
struct AwayAtFirst(LocalTransport, AtomicUsize);

#[async_trait]
impl Transport for AwayAtFirst {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        match self.1.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => vec![Err(PublishError::Unavailable("away".into())); batch.len()],
            Err(_) => self.0.publish(batch).await,
        }
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
        receiver: Arc<dyn Receiver>,
    ) -> Result<Box<dyn Consumer>, TransportError> {
        self.0.subscribe(subscription, receiver).await
    }

    fn system(&self) -> &'static str {
        "local"
    }

    fn max_message_bytes(&self) -> usize {
        self.0.max_message_bytes()
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_cannot_be_published_yet_is_published_later_and_its_command_done_once() {
    let (local, ledger) = (LocalTransport::default(), Ledger::default());
    let away = Arc::new(AwayAtFirst(local.clone(), AtomicUsize::new(3)));
    let inventory = Participant::new("inventory", MemoryInbox::default(), ledger.clone()).on(reserve);
    let _inventory = inventory.start(away).await.unwrap();
    let (sender, mut replies) = mpsc::unbounded_channel();
    let subscription = Subscription { group: "test".into(), topics: vec!["shop.replies".into()], batch: 100 };
    let _listening = local.subscribe(subscription, Arc::new(Into(sender))).await.unwrap();
    local.publish(&[Outgoing { topic: Reserve::TOPIC.into(), message: command("3") }]).await;
    assert_eq!(next(&mut replies).await.extensions["sagaoutcome"], "success");
    assert_eq!(*ledger.lock().unwrap(), ["reserved 3"]);
}

/// The topic of an orchestrator that is not ours.
const THEIRS: &str = "theirs.replies";
/// The patience with a reply topic that is away, and the last try.
const A_MINUTE: std::ops::Range<Duration> = Duration::from_secs(55)..Duration::from_secs(90);
/// What does not have to wait for that.
const SOON: Duration = Duration::from_secs(3);

/// How a broker takes what it cannot publish.
#[derive(Clone, Copy)]
enum Manner {
    SaysSo,
    /// As a client of Kafka: it answers when it could.
    IsSilent,
}

/// A transport that cannot publish everything.
struct PartlyAway {
    local: LocalTransport,
    manner: Manner,
    away: Mutex<fn(&Outgoing) -> bool>,
}

impl PartlyAway {
    fn is_away(&self, outgoing: &Outgoing) -> bool {
        let away = *self.away.lock().unwrap();
        away(outgoing)
    }
}

#[async_trait]
impl Transport for PartlyAway {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        while matches!(self.manner, Manner::IsSilent) && batch.iter().any(|outgoing| self.is_away(outgoing)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut answers = vec![];
        for outgoing in batch {
            if self.is_away(outgoing) {
                answers.push(Err(PublishError::Unavailable("no leader".into())));
            } else {
                answers.extend(self.local.publish(std::slice::from_ref(outgoing)).await);
            }
        }
        answers
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
        receiver: Arc<dyn Receiver>,
    ) -> Result<Box<dyn Consumer>, TransportError> {
        self.local.subscribe(subscription, receiver).await
    }

    async fn takes_dead_letters(&self, topic: &str) -> bool {
        !self.is_away(&Outgoing { topic: format!("{topic}.dlt"), message: command("0") })
    }

    fn system(&self) -> &'static str {
        "local"
    }

    fn max_message_bytes(&self) -> usize {
        self.local.max_message_bytes()
    }
}

/// An inventory on such a transport, and what comes of its commands.
struct Shared {
    transport: Arc<PartlyAway>,
    ledger: Ledger,
    replies: mpsc::UnboundedReceiver<Message>,
    dead: mpsc::UnboundedReceiver<Message>,
    _inventory: Participating,
    _consumers: [Box<dyn Consumer>; 2],
}

impl Shared {
    async fn start(manner: Manner, batch: usize) -> Self {
        let (local, ledger) = (LocalTransport::default(), Ledger::default());
        let nothing: fn(&Outgoing) -> bool = |_| false;
        let transport = Arc::new(PartlyAway { local: local.clone(), manner, away: Mutex::new(nothing) });
        let inventory = Participant::new("inventory", MemoryInbox::default(), ledger.clone()).on(reserve).batch(batch);
        let inventory = inventory.start(transport.clone()).await.unwrap();
        let listen = async |topics: &[&str]| {
            let (sender, messages) = mpsc::unbounded_channel();
            let topics = topics.iter().map(ToString::to_string).collect();
            let subscription = Subscription { group: "test".into(), topics, batch: 100 };
            (messages, local.subscribe(subscription, Arc::new(Into(sender))).await.unwrap())
        };
        let (replies, first) = listen(&["shop.replies", THEIRS]).await;
        let (dead, second) = listen(&["inventory.commands.dlt"]).await;
        Self { transport, ledger, replies, dead, _inventory: inventory, _consumers: [first, second] }
    }

    /// From now on this cannot be published.
    fn take_away(&self, away: fn(&Outgoing) -> bool) {
        *self.transport.away.lock().unwrap() = away;
    }

    async fn send(&self, commands: &[&Message]) {
        let outgoing = |message: &&Message| Outgoing { topic: Reserve::TOPIC.into(), message: (*message).clone() };
        let outgoing: Vec<Outgoing> = commands.iter().map(outgoing).collect();
        assert!(self.transport.local.publish(&outgoing).await.iter().all(Result::is_ok));
    }

    /// How long it takes until a command is answered, with replies to others, and repeats, before.
    async fn answered(&mut self, command: &Message) -> Duration {
        let began = Instant::now();
        let answered =
            async { while self.replies.recv().await.unwrap().extensions["sagaid"] != command.extensions["sagaid"] {} };
        timeout(Duration::from_secs(300), answered).await.expect("it is not answered");
        began.elapsed()
    }

    /// How long it takes until it is a dead letter, the next one.
    async fn buried(&mut self, command: &Message) -> Duration {
        let began = Instant::now();
        let dead = timeout(Duration::from_secs(300), self.dead.recv()).await.expect("it is no dead letter").unwrap();
        assert_eq!(dead.id, command.id);
        let reason = &dead.headers["saga-dead-letter-reason"];
        assert!(reason.starts_with("its reply topic `theirs.replies` has been away for "), "{reason}");
        began.elapsed()
    }

    fn nothing_is_buried(&mut self) {
        assert!(self.dead.try_recv().is_err());
    }
}

/// A command whose reply goes to the other orchestrator.
fn theirs() -> Message {
    let mut message = command("7");
    message.extensions.insert("replyto".into(), THEIRS.into());
    message
}

fn to_them(outgoing: &Outgoing) -> bool {
    outgoing.topic == THEIRS
}

#[tokio::test(start_paused = true)]
async fn a_reply_topic_that_is_away_holds_up_others_for_a_minute_and_then_its_commands_are_dead_letters() {
    for manner in [Manner::SaysSo, Manner::IsSilent] {
        let mut shared = Shared::start(manner, 50).await;
        shared.take_away(to_them);
        let (first, ours, second) = (theirs(), command("1"), theirs());
        shared.send(&[&first, &ours, &second]).await;
        assert!(shared.answered(&ours).await < SOON);
        let behind = command("2");
        shared.send(&[&behind]).await;
        let waited = shared.buried(&first).await;
        assert!(A_MINUTE.contains(&waited), "{waited:?}");
        assert!(shared.buried(&second).await < SOON);
        assert!(shared.answered(&behind).await < SOON);
        // From then on it is known.
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(40)).await;
            let (again, ours) = (theirs(), command("3"));
            shared.send(&[&again, &ours]).await;
            assert!(shared.buried(&again).await < SOON);
            assert!(shared.answered(&ours).await < SOON);
        }
        // Until it is back. What was buried is answered when it is sent again, and is not done again.
        shared.take_away(|_| false);
        for command in [&first, &theirs(), &second] {
            shared.send(&[command]).await;
            assert!(shared.answered(command).await < SOON);
        }
        shared.nothing_is_buried();
        assert_eq!(shared.ledger.lock().unwrap().len(), 4 + 6 + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_behind_those_of_a_reply_topic_that_is_away_is_done_after_a_minute() {
    for manner in [Manner::SaysSo, Manner::IsSilent] {
        // Nothing was published before, and nothing else is in their batch, that would show that the broker works.
        let mut shared = Shared::start(manner, 1).await;
        shared.take_away(to_them);
        let (first, second, ours) = (theirs(), theirs(), command("1"));
        shared.send(&[&first, &second, &ours]).await;
        let waited = shared.buried(&first).await;
        assert!(A_MINUTE.contains(&waited), "{waited:?}");
        assert!(shared.buried(&second).await < SOON);
        assert!(shared.answered(&ours).await < SOON);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_a_dead_letter_because_the_whole_broker_is_away() {
    for manner in [Manner::SaysSo, Manner::IsSilent] {
        let mut shared = Shared::start(manner, 50).await;
        shared.take_away(to_them);
        let first = theirs();
        shared.send(&[&first]).await;
        shared.buried(&first).await;
        shared.take_away(|_| true);
        let (second, ours) = (theirs(), command("1"));
        shared.send(&[&second, &ours]).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        shared.nothing_is_buried();
        assert!(shared.replies.try_recv().is_err());
        // It comes back without their topic, which has its minute anew.
        shared.take_away(to_them);
        assert!(shared.answered(&ours).await < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_secs(40)).await;
        shared.nothing_is_buried();
        shared.take_away(|_| false);
        assert!(shared.answered(&second).await < Duration::from_secs(15));
        shared.nothing_is_buried();
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_of_a_reply_topic_that_is_away_makes_no_dead_letters_of_the_rest() {
    /// As it is for keys whose partition has no leader.
    fn stuck(outgoing: &Outgoing) -> bool {
        outgoing.topic == THEIRS && outgoing.message.extensions["sagastep"] == "stuck"
    }
    let stuck_one = || {
        let mut message = theirs();
        message.extensions.insert("sagastep".into(), "stuck".into());
        message
    };
    for manner in [Manner::SaysSo, Manner::IsSilent] {
        let mut shared = Shared::start(manner, 50).await;
        shared.take_away(stuck);
        let (first, well) = (stuck_one(), theirs());
        shared.send(&[&first, &well]).await;
        let waited = shared.buried(&first).await;
        assert!(A_MINUTE.contains(&waited), "{waited:?}");
        shared.answered(&well).await;
        // That some of it works gives the rest no minute anew.
        for _ in 0..3 {
            let (well, stuck) = (theirs(), stuck_one());
            shared.send(&[&well]).await;
            assert!(shared.answered(&well).await < SOON);
            tokio::time::sleep(Duration::from_secs(40)).await;
            shared.send(&[&stuck]).await;
            assert!(shared.buried(&stuck).await < SOON);
        }
        // But that all of it has for as long does.
        shared.take_away(|_| false);
        for _ in 0..2 {
            let well = theirs();
            shared.send(&[&well]).await;
            assert!(shared.answered(&well).await < SOON);
            tokio::time::sleep(Duration::from_secs(70)).await;
        }
        shared.take_away(stuck);
        let last = stuck_one();
        shared.send(&[&last]).await;
        let waited = shared.buried(&last).await;
        assert!(A_MINUTE.contains(&waited), "{waited:?}");
    }
}

/// An inbox whose database is down the first few times.
struct DownAtFirst(MemoryInbox, AtomicUsize);

#[async_trait]
impl Inbox for DownAtFirst {
    type Tx = ();
    async fn handle(&self, batch: &[Job<()>]) -> Result<Vec<Answer>, Unavailable> {
        match self.1.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Err(Unavailable("the database is down".into())),
            Err(_) => self.0.handle(batch).await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn commands_and_events_wait_for_a_database_that_is_down_and_are_no_dead_letters() {
    let (transport, ledger): (Arc<dyn Transport>, Ledger) = (Arc::new(LocalTransport::default()), Arc::default());
    let down = || DownAtFirst(MemoryInbox::default(), AtomicUsize::new(10));
    let inventory = Participant::new("inventory", down(), ledger.clone()).on(reserve);
    let listener = Listener::new("notification", down(), ledger.clone()).on(notify);
    let (inventory, listener) =
        (inventory.start(transport.clone()).await.unwrap(), listener.start(transport.clone()).await.unwrap());
    let (sender, mut dead) = mpsc::unbounded_channel();
    let topics = vec!["inventory.commands.dlt".into(), "order.events.dlt".into()];
    let subscription = Subscription { group: "test".into(), topics, batch: 100 };
    let _burier = transport.subscribe(subscription, Arc::new(Into(sender))).await.unwrap();
    let command = Outgoing { topic: Reserve::TOPIC.into(), message: command("3") };
    transport.publish(&[command, Outgoing { topic: Confirmed::TOPIC.into(), message: event(4) }]).await;
    until(&ledger, 2).await;
    let mut done = ledger.lock().unwrap().clone();
    done.sort();
    assert_eq!(done, ["reserved 3", "told of 4"]);
    inventory.stop().await;
    listener.stop().await;
    assert!(dead.try_recv().is_err());
}

async fn until(ledger: &Ledger, count: usize) {
    let all = async {
        while ledger.lock().unwrap().len() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(60), all).await.expect("not everything was handled");
}

#[tokio::test(start_paused = true)]
async fn nodes_of_a_service_that_come_stop_and_die_do_each_command_once() {
    let (transport, ledger): (Arc<dyn Transport>, Ledger) = (Arc::new(LocalTransport::default()), Arc::default());
    let inbox = MemoryInbox::default();
    let node = async || {
        let participant = Participant::new("inventory", inbox.clone(), ledger.clone()).on(reserve).batch(3);
        participant.start(transport.clone()).await.unwrap()
    };
    let commands: Vec<Outgoing> = (100..200)
        .map(|n| Outgoing {
            topic: Reserve::TOPIC.into(),
            message: Message { key: n.to_string(), ..command(&n.to_string()) },
        })
        .collect();
    let (first, second) = (node().await, node().await);
    transport.publish(&commands[..50]).await;
    until(&ledger, 10).await;
    first.stop().await;
    transport.publish(&commands[50..]).await;
    until(&ledger, 60).await;
    drop(second);
    let _third = node().await;
    until(&ledger, 100).await;
    let mut done = ledger.lock().unwrap().clone();
    done.sort();
    assert_eq!(done, (100..200).map(|n| format!("reserved {n}")).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_saga_outlives_a_participant_that_dies_in_the_middle_of_its_command() {
    let (transport, ledger): (Arc<dyn Transport>, Ledger) = (Arc::new(LocalTransport::default()), Arc::default());
    let inbox = MemoryInbox::default();
    let (entered, mut begun) = mpsc::unbounded_channel();
    let hang = move |_: CommandCx<Ledger>, _: &mut (), _: Reserve| {
        let _ = entered.send(());
        std::future::pending::<Result<u32, StepError>>()
    };
    let dying = Participant::new("inventory", inbox.clone(), ledger.clone()).on(hang);
    let dying = dying.start(transport.clone()).await.unwrap();
    let payment = Participant::new("payment", MemoryInbox::default(), ledger.clone()).on(charge);
    let _payment = payment.start(transport.clone()).await.unwrap();
    let builder = Engine::builder(MemoryStore::default()).transport("shop", transport.clone());
    let engine = builder.register::<Order>(()).unwrap().start().await.unwrap();
    let order = engine.sagas::<Order>().submit("order-1", 3).await.unwrap();
    begun.recv().await.unwrap();
    drop(dying);
    let inventory = Participant::new("inventory", inbox, ledger.clone()).on(reserve).on_undo(release);
    let _inventory = inventory.start(transport).await.unwrap();
    assert_eq!(order.outcome().await.unwrap(), Outcome::Completed("receipt for 3".into()));
    assert_eq!(*ledger.lock().unwrap(), ["reserved 3", "charged 3"]);
}

#[tokio::test(start_paused = true)]
async fn events_of_one_id_and_two_sources_are_two_events() {
    let first = event(1);
    let second = Message { source: "another shop".into(), ..first.clone() };
    let (told, dead) = told_of(vec![first, second], 2).await;
    assert_eq!((told, dead), (vec!["told of 1".into(), "told of 1".into()], vec![]));
}

#[tokio::test(start_paused = true)]
async fn an_event_that_was_refused_stays_unhandled_when_it_comes_again() {
    let refused = event(15);
    let (told, dead) = told_of(vec![refused.clone(), refused, event(1)], 2).await;
    assert_eq!(told, ["told of 15", "told of 1"]);
    assert_eq!(dead, ["nobody to tell", "nobody to tell"]);
}

#[tokio::test(start_paused = true)]
async fn a_payload_whose_reader_panics_is_refused_and_a_dead_letter() {
    let message = Message { kind: Cursed::TYPE.into(), ..command("null") };
    refused(&poison(message).await, "a reader that panics");
}
