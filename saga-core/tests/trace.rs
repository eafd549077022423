//! One saga is one trace: from the request that starts it to the last handler, over retries and restarts, and without an SDK just as well.

use opentelemetry::{
    Context, TraceId,
    baggage::BaggageExt,
    context::FutureExt,
    global,
    trace::{SpanId, TraceContextExt, Tracer},
};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use saga_core::{
    CompensationCx, Cx, Encoded, Engine, MemoryStore, Out, Outcome, Retry, Saga, SagaBuilder, StepError,
    message::{Answer, Message},
    participant::{
        BatchCx, Command, CommandCx, Event, EventCx, Inbox, Job, Listener, MemoryInbox, Participant, Worked,
    },
    trace::Tracing,
    transport::{LocalTransport, Outgoing, Transport, Unavailable},
};
use serde::{Deserialize, Serialize};
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::sync::{Semaphore, mpsc};

/// All tests of this file record into the same place: each looks at the trace of its own.
fn recorded() -> &'static InMemorySpanExporter {
    static RECORDED: OnceLock<InMemorySpanExporter> = OnceLock::new();
    RECORDED.get_or_init(|| {
        let exporter = InMemorySpanExporter::default();
        global::set_tracer_provider(SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build());
        exporter
    })
}

/// A span as the user's code makes one.
fn span(name: &'static str) -> Context {
    recorded();
    let span = global::tracer("test").start_with_context(name, &Context::current());
    Context::current().with_span(span)
}

/// What was recorded of a trace, as a tree in the order of time. Each line is a span; one whose parent was not recorded is an orphan.
fn tree(trace: TraceId) -> String {
    let mut spans = recorded().get_finished_spans().unwrap();
    spans.retain(|span| span.span_context.trace_id() == trace);
    spans.sort_by_key(|span| span.start_time);
    let mut text = String::new();
    for span in spans.iter().filter(|span| !spans.iter().any(|other| is_child(span, other))) {
        assert_eq!(span.parent_span_id, SpanId::INVALID, "an orphan: {}", span.name);
        write(&mut text, &spans, span, 0);
    }
    text
}

fn is_child(span: &SpanData, of: &SpanData) -> bool {
    span.parent_span_id == of.span_context.span_id()
}

fn write(text: &mut String, spans: &[SpanData], span: &SpanData, depth: usize) {
    let error = if let opentelemetry::trace::Status::Error { description } = &span.status {
        format!(" ! {description}")
    } else {
        String::new()
    };
    text.push_str(&format!("{}{}{error}\n", "  ".repeat(depth), span.name));
    if span.name.starts_with("process") {
        let linked: Vec<SpanId> = span.links.iter().map(|link| link.span_context.span_id()).collect();
        assert_eq!(linked, [span.parent_span_id], "{}", span.name);
    }
    for child in spans.iter().filter(|child| is_child(child, span)) {
        write(text, spans, child, depth + 1);
    }
}

macro_rules! message {
    ($name:ident, $trait:ident, $kind:literal, $topic:literal $(, $reply:ty)?) => {
        #[derive(Debug, Serialize, Deserialize)]
        struct $name(u32);
        impl $trait for $name {
            const TYPE: &'static str = $kind;
            const TOPIC: &'static str = $topic;
            $(type Reply = $reply;)?
        }
    };
}
message!(Reserve, Command, "inventory.reserve.v1", "inventory.commands", u32);
message!(Release, Command, "inventory.release.v1", "inventory.commands", ());
message!(Shipped, Event, "order.shipped.v1", "order.events");

/// Whether the pivot says yes, and what holds it up.
struct Deps {
    pay: bool,
    open: Semaphore,
    at_pivot: mpsc::UnboundedSender<()>,
}

struct Order;

impl Saga for Order {
    const NAME: &'static str = "order";
    const VERSION: u32 = 1;
    type Input = u32;
    type Output = ();
    type Deps = Deps;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        let soon = Retry::fixed(Duration::from_millis(10)).attempts(3);
        saga.compensatable("place").retry(soon).run(place).compensate(withdraw);
        saga.compensatable("reserve").command(Reserve).compensate_command(|n, _| Release(n));
        saga.pivot("pay").retry(soon).run(pay)
    }
}

async fn place(cx: Cx<Deps>, _: u32) -> Result<(), StepError> {
    if cx.attempt() == 1 {
        return Err(StepError::retry("busy"));
    }
    drop(span("a query"));
    Ok(())
}

async fn withdraw(_: CompensationCx<Deps>, _: u32, _: Option<()>) -> Result<(), StepError> {
    drop(span("another query"));
    Ok(())
}

async fn pay(cx: Cx<Deps>, _: u32) -> Result<(), StepError> {
    cx.at_pivot.send(()).unwrap();
    cx.open.acquire().await.unwrap().forget();
    if cx.pay { Ok(()) } else { Err(StepError::fail("declined")) }
}

async fn reserve(_: CommandCx<()>, _: &mut (), Reserve(n): Reserve) -> Result<u32, StepError> {
    drop(span("an update"));
    assert_eq!(Context::current().baggage().get("customer").map(|value| value.to_string()), Some("Amélie".into()));
    Ok(n)
}

async fn release(_: CommandCx<()>, _: &mut (), _: Release) -> Result<(), StepError> {
    Ok(())
}

struct World {
    store: MemoryStore,
    wire: Arc<LocalTransport>,
    deps: Arc<Deps>,
    at_pivot: mpsc::UnboundedReceiver<()>,
}

impl World {
    fn new(pay: bool) -> Self {
        // Before anybody asks for a tracer.
        recorded();
        let (sender, at_pivot) = mpsc::unbounded_channel();
        let deps = Arc::new(Deps { pay, open: Semaphore::new(0), at_pivot: sender });
        let wire = LocalTransport::new(2);
        Self { store: MemoryStore::default(), wire: Arc::new(wire), deps, at_pivot }
    }

    async fn engine(&self) -> Engine {
        let builder = Engine::builder(self.store.clone()).transport("shop", self.wire.clone());
        let builder = builder.register::<Order>(self.deps.clone()).unwrap();
        builder.configure(|config| config.lease = Duration::from_secs(1)).start().await.unwrap()
    }

    async fn inventory(&self) -> saga_core::participant::Participating {
        let inventory = Participant::new("inventory", MemoryInbox::default(), ()).on(reserve).on_undo(release);
        inventory.start(self.wire.clone()).await.unwrap()
    }
}

/// A request with baggage.
fn request() -> (Context, TraceId) {
    let context = span("request").with_baggage(vec![opentelemetry::KeyValue::new("customer", "Amélie")]);
    let trace = context.span().span_context().trace_id();
    (context, trace)
}

#[tokio::test(start_paused = true)]
async fn everything_that_is_done_for_a_saga_is_one_trace() {
    let mut world = World::new(true);
    let (engine, inventory) = (world.engine().await, world.inventory().await);
    let (request, trace) = request();
    let order = engine.sagas::<Order>().submit("k", 1).with_context(request.clone()).await.unwrap();
    drop(request);
    world.at_pivot.recv().await.unwrap();
    world.deps.open.add_permits(1);
    assert_eq!(order.outcome().await.unwrap(), Outcome::Completed(()));
    inventory.stop().await;
    engine.shutdown(Duration::from_secs(1)).await;
    assert_eq!(
        tree(trace),
        "request
  saga start order
    saga step place ! busy
    saga step place
      a query
    saga step reserve
      send inventory.commands
        process inventory.commands
          an update
          send shop.replies
            process shop.replies
    saga step pay
"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_undone_is_part_of_it_also_on_another_node() {
    let mut world = World::new(false);
    let inventory = world.inventory().await;
    let first = world.engine().await;
    let (request, trace) = request();
    let order = first.sagas::<Order>().submit("k", 1).with_context(request.clone()).await.unwrap().id();
    drop(request);
    world.at_pivot.recv().await.unwrap();
    first.kill().await;
    let second = world.engine().await;
    world.at_pivot.recv().await.unwrap();
    world.deps.open.add_permits(1);
    let outcome = second.sagas::<Order>().get(order).outcome().await.unwrap();
    assert!(matches!(outcome, Outcome::RolledBack(_)), "{outcome:?}");
    inventory.stop().await;
    second.shutdown(Duration::from_secs(1)).await;
    assert_eq!(
        tree(trace),
        "request
  saga start order
    saga step place ! busy
    saga step place
      a query
    saga step reserve
      send inventory.commands
        process inventory.commands
          an update
          send shop.replies
            process shop.replies
    saga step pay
    saga step pay ! declined
    saga compensate reserve
      send inventory.commands
        process inventory.commands
          send shop.replies
            process shop.replies
    saga compensate place
      another query
"
    );
}

#[tokio::test(start_paused = true)]
async fn the_answer_to_a_command_that_nobody_handles_is_part_of_it_too() {
    let world = World::new(true);
    let inventory = Participant::new("inventory", MemoryInbox::default(), ()).on_undo(release);
    let (engine, inventory) = (world.engine().await, inventory.start(world.wire.clone()).await.unwrap());
    let (request, trace) = request();
    let order = engine.sagas::<Order>().submit("k", 1).with_context(request.clone()).await.unwrap();
    drop(request);
    assert!(matches!(order.outcome().await.unwrap(), Outcome::RolledBack(_)));
    inventory.stop().await;
    engine.shutdown(Duration::from_secs(1)).await;
    assert_eq!(
        tree(trace),
        "request
  saga start order
    saga step place ! busy
    saga step place
      a query
    saga step reserve
      send inventory.commands
        send shop.replies
          process shop.replies
    saga compensate place
      another query
"
    );
}

async fn shipped(cx: EventCx<mpsc::UnboundedSender<()>>, _: &mut (), _: Shipped) -> Result<(), StepError> {
    drop(span("a mail"));
    cx.send(()).map_err(StepError::unknown)
}

#[tokio::test(start_paused = true)]
async fn an_event_is_part_of_what_it_was_created_in() {
    let world = World::new(true);
    let (sender, mut heard) = mpsc::unbounded_channel();
    let listener = Listener::new("notification", MemoryInbox::default(), sender).on(shipped);
    let listener = listener.start(world.wire.clone()).await.unwrap();
    let (request, trace) = request();
    let tracing = Tracing::default().over(world.wire.system());
    let mut message = Message::event("shop", Shipped::TYPE, "k", &Encoded::of(&Shipped(1)).unwrap());
    {
        let _request = request.attach();
        tracing.create(Shipped::TOPIC, &mut message);
    }
    // Later, in a relay that knows nothing but the row.
    let sending = tracing.forward(Shipped::TOPIC, &message);
    let published = world.wire.publish(&[Outgoing { topic: Shipped::TOPIC.into(), message }]).await;
    assert_eq!(published, [Ok(())]);
    drop(sending);
    heard.recv().await.unwrap();
    listener.stop().await;
    assert_eq!(
        tree(trace),
        "request
  create order.events
    send order.events
    process order.events
      a mail
"
    );
}

/// An inbox that does together what goes together.
struct Together;

#[async_trait::async_trait]
impl Inbox for Together {
    type Tx = ();

    async fn handle(&self, batch: &[Job<()>]) -> Result<Vec<Answer>, Unavailable> {
        let jobs: Vec<&Job<()>> = batch.iter().collect();
        match Job::work_together(&jobs, &mut ()).await {
            Worked::Returned(Ok(reply)) => Ok(vec![Answer::Success(reply); batch.len()]),
            failed => panic!("{failed:?}"),
        }
    }
}

async fn all_shipped(
    cx: BatchCx<mpsc::UnboundedSender<usize>>,
    _: &mut (),
    events: Vec<Shipped>,
) -> Result<(), StepError> {
    drop(span("a mail to all"));
    for event in cx.events() {
        let _event = event.context().clone().attach();
        drop(span("a mail"));
    }
    cx.send(events.len()).map_err(StepError::unknown)
}

#[tokio::test(start_paused = true)]
async fn each_of_many_events_has_a_span_in_its_own_trace() {
    let wire: Arc<dyn Transport> = Arc::new(LocalTransport::new(1));
    let requests = [request(), request()];
    let tracing = Tracing::default().over(wire.system());
    for (n, (request, _)) in requests.iter().enumerate() {
        let key = format!("k{n}");
        let mut message = Message::event("shop", Shipped::TYPE, key, &Encoded::of(&Shipped(1)).unwrap());
        {
            let _request = request.clone().attach();
            tracing.create(Shipped::TOPIC, &mut message);
        }
        let published = wire.publish(&[Outgoing { topic: Shipped::TOPIC.into(), message }]).await;
        assert_eq!(published, [Ok(())]);
    }
    let traces = requests.map(|(_, trace)| trace);
    let (sender, mut heard) = mpsc::unbounded_channel();
    let listener = Listener::new("notification", Together, sender).on_batch(all_shipped);
    let listener = listener.start(wire).await.unwrap();
    assert_eq!(heard.recv().await, Some(2));
    listener.stop().await;
    for trace in traces {
        assert_eq!(tree(trace), "request\n  create order.events\n    process order.events\n      a mail\n");
    }
}
