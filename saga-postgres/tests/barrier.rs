//! The barrier for commands that come over HTTP, from a server that listens, and from a saga in the same process.

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
};
use opentelemetry::{Context, context::FutureExt};
use reqwest::{Client, Response, StatusCode};
use saga_core::{
    Class, Encoded, SagaId, StepError,
    message::{Answer, CommandId, Op},
    participant::{Command, CommandCx, Inbox, Job},
    trace::TraceContext,
};
use saga_postgres::{Barrier, PgInbox, testing};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, postgres::PgPoolOptions};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, sync::Notify, task::AbortHandle, time::timeout};

const PATIENCE: Duration = Duration::from_secs(20);

/// What the handlers of a test share.
struct Shop {
    schema: String,
    /// How often a work was begun.
    begun: AtomicU32,
    /// Told when a work that waits has begun.
    inside: Notify,
    /// Lets it go on.
    go_on: Notify,
    /// Told when the server has done with a request, answered or not.
    gone: Notify,
}

struct TellsWhenGone(Arc<Shop>);

impl Drop for TellsWhenGone {
    fn drop(&mut self) {
        self.0.gone.notify_one();
    }
}

/// And its trace is the request's, as an instrumented server has it.
async fn tell_when_gone(State(shop): State<Arc<Shop>>, request: Request, next: Next) -> axum::response::Response {
    let _tells = TellsWhenGone(shop);
    let traceparent = request.headers().get("traceparent").and_then(|value| value.to_str().ok()).map(Into::into);
    let trace = TraceContext { traceparent, ..TraceContext::default() };
    next.run(request).with_context(trace.context()).await
}

#[derive(Serialize, Deserialize)]
struct Charge {
    cents: i64,
    /// How it ends.
    ends: Ends,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ends {
    Well,
    Fail,
    Retry,
    Unknown,
    Panic,
    Waiting,
    WithTrace,
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct Charged {
    receipt: String,
}

impl Command for Charge {
    const TYPE: &'static str = "payment.charge.v1";
    const TOPIC: &'static str = "payment.commands";
    type Reply = Charged;
}

#[derive(Serialize, Deserialize)]
struct Refund;

impl Command for Refund {
    const TYPE: &'static str = "payment.refund.v1";
    const TOPIC: &'static str = "payment.commands";
    type Reply = ();
}

impl Shop {
    async fn book(&self, db: &mut PgConnection, cents: i64, what: &str) -> Result<(), sqlx::Error> {
        let sql = format!("INSERT INTO {}.booking (cents, what) VALUES ($1, $2)", self.schema);
        sqlx::query(AssertSqlSafe(sql)).bind(cents).bind(what).execute(db).await?;
        Ok(())
    }
}

async fn charge(cx: CommandCx<Shop>, db: &mut PgConnection, command: Charge) -> Result<Charged, StepError> {
    let count = cx.begun.fetch_add(1, Ordering::SeqCst) + 1;
    cx.book(db, -command.cents, "charged").await?;
    match command.ends {
        Ends::Well => Ok(Charged { receipt: format!("{} by call {count}", cx.idempotency_key()) }),
        Ends::Fail => Err(StepError::fail("no money")),
        Ends::Retry => Err(StepError::retry("busy")),
        Ends::Unknown => Err(StepError::unknown("the bank does not answer")),
        Ends::Panic => panic!("a bug"),
        Ends::Waiting => {
            cx.inside.notify_one();
            cx.go_on.notified().await;
            Ok(Charged { receipt: "at last".into() })
        }
        Ends::WithTrace => {
            let headers: String = cx.headers().iter().map(|(name, value)| format!("{name}={value} ")).collect();
            let current = TraceContext::of(&Context::current()).traceparent;
            Ok(Charged { receipt: format!("{headers}current={}", current.unwrap_or_default()) })
        }
    }
}

/// Says in its booking what it was told of the charge.
async fn refund(cx: CommandCx<Shop>, db: &mut PgConnection, _: Refund) -> Result<(), StepError> {
    let kept: Option<Charged> = cx.kept()?;
    let Charged { receipt } = kept.ok_or_else(|| StepError::fail("nothing was kept"))?;
    Ok(cx.book(db, 5, &format!("refunded {receipt}")).await?)
}

/// A payment service that listens.
struct World {
    pool: PgPool,
    shop: Arc<Shop>,
    barrier: Barrier<Shop>,
    http: Client,
    url: String,
    server: AbortHandle,
}

impl Drop for World {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl World {
    async fn start() -> Self {
        let postgres = testing::shared().await.unwrap();
        let (pool, schema) = (PgPool::connect(&postgres.url()).await.unwrap(), postgres.schema());
        let inbox = PgInbox::in_schema(pool.clone(), &schema).unwrap();
        inbox.migrate().await.unwrap();
        let sql = format!("CREATE TABLE {schema}.booking (cents bigint NOT NULL, what text NOT NULL)");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&pool).await.unwrap();
        Self::listen(inbox, pool, schema).await
    }

    async fn listen(inbox: PgInbox, pool: PgPool, schema: String) -> Self {
        let [inside, go_on, gone] = [(); 3].map(|()| Notify::new());
        let shop = Arc::new(Shop { schema, begun: AtomicU32::new(0), inside, go_on, gone });
        let barrier = Barrier::new(inbox, shop.clone());
        let routes = Router::new()
            .route("/charges", barrier.on(charge))
            .route("/charges/refund", barrier.on_undo(refund))
            .layer(from_fn_with_state(shop.clone(), tell_when_gone));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, routes).await }).abort_handle();
        Self { pool, shop, barrier, http: Client::new(), url, server }
    }

    /// Another node of the same service.
    async fn another_node(&self) -> Self {
        let pool = PgPoolOptions::new().connect_with((*self.pool.connect_options()).clone()).await.unwrap();
        let inbox = PgInbox::in_schema(pool.clone(), &self.shop.schema).unwrap();
        Self::listen(inbox, pool, self.shop.schema.clone()).await
    }

    async fn post(&self, path: &str, key: &str, body: impl Into<reqwest::Body>) -> Response {
        let request = self.http.post(format!("{}{path}", self.url)).header("Idempotency-Key", key);
        request.body(body).timeout(PATIENCE).send().await.unwrap()
    }

    async fn charge(&self, key: &str, ends: &str) -> Response {
        self.post("/charges", key, json!({ "cents": 5, "ends": ends }).to_string()).await
    }

    async fn refund(&self, key: &str) -> Response {
        self.post("/charges/refund", key, "").await
    }

    async fn bookings(&self) -> Vec<String> {
        let sql = format!("SELECT what FROM {}.booking ORDER BY what", self.shop.schema);
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&self.pool).await.unwrap()
    }

    async fn rows(&self) -> i64 {
        let sql = format!("SELECT count(*) FROM {}.saga_inbox", self.shop.schema);
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap()
    }

    fn begun(&self) -> u32 {
        self.shop.begun.load(Ordering::SeqCst)
    }
}

fn key() -> String {
    format!("{}/charge", SagaId::generate())
}

/// The status and the body of a success.
async fn done(response: Response) -> Value {
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "application/json");
    response.json().await.unwrap()
}

/// The reason that a problem gives.
async fn refused(response: Response, status: StatusCode) -> String {
    assert_eq!(response.status(), status);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["status"], status.as_u16());
    assert_eq!(problem["title"], status.canonical_reason().unwrap());
    assert_eq!(problem["detail"], problem["error"]);
    problem["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_request_that_comes_again_gets_the_same_reply_and_is_not_done_again() {
    let world = World::start().await;
    let key = key();
    let reply = done(world.charge(&key, "well").await).await;
    assert_eq!(reply, json!({ "receipt": format!("{key} by call 1") }));
    assert_eq!(done(world.charge(&key, "well").await).await, reply);
    assert_eq!((world.bookings().await, world.begun()), (vec!["charged".to_owned()], 1));
}

#[tokio::test]
async fn a_no_is_409_and_kept_and_nothing_of_it_stands() {
    let world = World::start().await;
    let key = key();
    for ends in ["fail", "well"] {
        assert_eq!(refused(world.charge(&key, ends).await, StatusCode::CONFLICT).await, "no money");
    }
    assert_eq!((world.bookings().await.len(), world.begun(), world.rows().await), (0, 1, 1));
}

#[tokio::test]
async fn what_may_work_later_is_503_with_a_hint_when_and_works_later() {
    let world = World::start().await;
    let key = key();
    let response = world.charge(&key, "retry").await;
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(refused(response, StatusCode::SERVICE_UNAVAILABLE).await, "busy");
    assert_eq!((world.bookings().await.len(), world.rows().await), (0, 0));
    done(world.charge(&key, "well").await).await;
}

#[tokio::test]
async fn what_is_in_doubt_is_500_and_leaves_nothing() {
    let world = World::start().await;
    let key = key();
    for (ends, reason) in [("unknown", "the bank does not answer"), ("panic", "it panicked: a bug")] {
        let response = world.charge(&key, ends).await;
        assert!(!response.headers().contains_key("retry-after"));
        assert_eq!(refused(response, StatusCode::INTERNAL_SERVER_ERROR).await, reason);
        assert_eq!((world.bookings().await.len(), world.rows().await), (0, 0));
    }
    done(world.charge(&key, "well").await).await;
}

#[tokio::test]
async fn an_undo_under_the_same_key_is_told_the_reply_and_happens_once() {
    let world = World::start().await;
    let key = key();
    done(world.charge(&key, "well").await).await;
    assert_eq!(done(world.refund(&key).await).await, Value::Null);
    assert_eq!(done(world.refund(&format!("{key}/undo")).await).await, Value::Null);
    assert_eq!(world.bookings().await, ["charged".to_owned(), format!("refunded {key} by call 1")]);
}

#[tokio::test]
async fn a_request_that_comes_after_its_undo_is_409() {
    let world = World::start().await;
    let key = key();
    assert_eq!(done(world.refund(&key).await).await, Value::Null);
    let reason = refused(world.charge(&key, "well").await, StatusCode::CONFLICT).await;
    assert_eq!(reason, "it was undone before it came");
    assert_eq!((world.bookings().await.len(), world.begun()), (0, 0));
}

#[tokio::test]
async fn another_generation_is_another_command() {
    let world = World::start().await;
    let key = key();
    refused(world.charge(&key, "fail").await, StatusCode::CONFLICT).await;
    done(world.charge(&format!("{key}/1"), "well").await).await;
    assert_eq!(done(world.refund(&format!("{key}/1/undo")).await).await, Value::Null);
    assert_eq!(world.bookings().await.len(), 2);
}

#[tokio::test]
async fn without_a_key_that_is_a_steps_nothing_happens_and_nothing_is_remembered() {
    let world = World::start().await;
    let key = key();
    for wrong in ["order-7", "/charge", &format!("{key}/x"), &format!("{key}/undo"), &format!("{key}/1/2/3"), ""] {
        let reason = refused(world.charge(wrong, "well").await, StatusCode::BAD_REQUEST).await;
        assert!(reason.contains("is not the idempotency key of a step to do: that is <saga>/<step>"), "{reason}");
    }
    let url = format!("{}/charges", world.url);
    let missing = world.http.post(&url).body("{}").send().await.unwrap();
    assert!(refused(missing, StatusCode::BAD_REQUEST).await.contains("is missing"));
    let twice = world.http.post(&url).header("Idempotency-Key", &key).header("Idempotency-Key", &key);
    assert!(refused(twice.send().await.unwrap(), StatusCode::BAD_REQUEST).await.contains("more than once"));
    let not_posted = world.http.get(&url).header("Idempotency-Key", &key).send().await.unwrap();
    assert_eq!(not_posted.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!((world.begun(), world.rows().await), (0, 0));
}

#[tokio::test]
async fn a_payload_that_cannot_be_read_is_refused_for_good() {
    let world = World::start().await;
    for unreadable in ["", "{", r#"{"cents":"five"}"#] {
        let key = key();
        let reason = refused(world.post("/charges", &key, unreadable).await, StatusCode::CONFLICT).await;
        assert!(reason.starts_with("the payload is no payment.charge.v1: "), "{reason}");
        assert_eq!(refused(world.charge(&key, "well").await, StatusCode::CONFLICT).await, reason);
    }
    assert_eq!(world.begun(), 0);
}

#[tokio::test]
async fn the_trace_goes_to_the_handler_and_other_headers_do_not() {
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let world = World::start().await;
    let body = json!({ "cents": 5, "ends": "with_trace" }).to_string();
    let request = world.http.post(format!("{}/charges", world.url)).header("Idempotency-Key", key()).body(body);
    let request = request.header("traceparent", trace).header("authorization", "secret");
    assert_eq!(
        done(request.send().await.unwrap()).await,
        json!({ "receipt": format!("traceparent={trace} current={trace}") })
    );
}

#[tokio::test]
async fn two_nodes_that_get_a_request_at_once_do_it_once() {
    let world = World::start().await;
    let (other, key) = (world.another_node().await, key());
    let first = world.charge(&key, "waiting");
    let second = async {
        world.shop.inside.notified().await;
        let mut second = std::pin::pin!(other.charge(&key, "well"));
        assert!(timeout(Duration::from_millis(300), &mut second).await.is_err(), "it did not wait");
        world.shop.go_on.notify_one();
        second.await
    };
    let (first, second) = tokio::join!(first, second);
    let (first, second) = (done(first).await, done(second).await);
    assert_eq!((&first, &second), (&json!({ "receipt": "at last" }), &first));
    assert_eq!((world.begun(), other.begun(), world.bookings().await.len()), (1, 0, 1));
}

#[tokio::test]
async fn a_caller_that_hangs_up_finds_the_reply_when_it_asks_again() {
    let world = World::start().await;
    let key = key();
    tokio::select! {
        _ = world.charge(&key, "waiting") => panic!("nobody let it go on"),
        () = world.shop.inside.notified() => {}
    }
    timeout(PATIENCE, world.shop.gone.notified()).await.expect("the server did not notice that its caller hung up");
    world.shop.go_on.notify_one();
    assert_eq!(done(world.charge(&key, "well").await).await, json!({ "receipt": "at last" }));
    assert_eq!((world.begun(), world.bookings().await.len()), (1, 1));
}

#[tokio::test]
async fn a_database_that_is_away_is_500_since_nothing_is_known() {
    let nobody = PgPoolOptions::new().acquire_timeout(Duration::from_millis(100));
    let pool = nobody.connect_lazy("postgres://nobody@127.0.0.1:1/nothing").unwrap();
    let world = World::listen(PgInbox::new(pool.clone()), pool, "saga".into()).await;
    let response = world.charge(&key(), "well").await;
    assert!(!response.headers().contains_key("retry-after"));
    refused(response, StatusCode::INTERNAL_SERVER_ERROR).await;
    let local = world.barrier.run(&key(), charge, &Charge { cents: 5, ends: Ends::Well }).await;
    assert_eq!(local.unwrap_err().class(), Some(Class::Unknown));
}

#[tokio::test]
async fn a_command_in_this_process_is_done_and_undone_once() {
    let world = World::start().await;
    let (key, command) = (key(), Charge { cents: 5, ends: Ends::Well });
    for _ in 0..2 {
        let charged = world.barrier.run(&key, charge, &command).await.unwrap();
        assert_eq!(charged, Charged { receipt: format!("{key} by call 1") });
    }
    for _ in 0..2 {
        world.barrier.undo(&key, refund, &Refund).await.unwrap();
    }
    assert_eq!(world.bookings().await, ["charged".to_owned(), format!("refunded {key} by call 1")]);
}

#[tokio::test]
async fn a_command_in_this_process_that_comes_after_its_undo_fails() {
    let world = World::start().await;
    let (key, command) = (key(), Charge { cents: 5, ends: Ends::Well });
    world.barrier.undo(&key, refund, &Refund).await.unwrap();
    let error = world.barrier.run(&key, charge, &command).await.unwrap_err();
    assert_eq!((error.class(), error.to_string()), (Some(Class::Fail), "it was undone before it came".into()));
    assert_eq!(world.begun(), 0);
}

#[tokio::test]
async fn a_step_gets_the_class_that_its_participant_gave() {
    let world = World::start().await;
    let ends = [
        (Ends::Fail, Class::Fail),
        (Ends::Retry, Class::Retry),
        (Ends::Unknown, Class::Unknown),
        (Ends::Panic, Class::Unknown),
    ];
    for (ends, class) in ends {
        let error = world.barrier.run(&key(), charge, &Charge { cents: 5, ends }).await.unwrap_err();
        assert_eq!(error.class(), Some(class));
    }
    let no_key = world.barrier.run("order-7", charge, &Charge { cents: 5, ends: Ends::Well }).await.unwrap_err();
    assert_eq!(no_key.class(), Some(Class::Fail));
    assert_eq!((world.bookings().await.len(), world.rows().await), (0, 1));
}

#[tokio::test]
async fn one_command_over_three_ways_is_done_once() {
    let world = World::start().await;
    let id = CommandId { saga: SagaId::generate(), step: "charge".into(), generation: 3 };
    let first = done(world.charge(&id.key(), "well").await).await;
    let local = world.barrier.once(id.clone(), Op::Do, charge, &Charge { cents: 5, ends: Ends::Well }).await.unwrap();
    assert_eq!(local, Answer::Success(Encoded::of(&first).unwrap()));
    // As a participant over Kafka would have it.
    let inbox = PgInbox::in_schema(world.pool.clone(), &world.shop.schema).unwrap();
    let job = Job::new(id, Op::Do, PATIENCE, |_: &mut PgConnection, _| Box::pin(async { Ok(Encoded::null()) }));
    assert_eq!(inbox.handle(&[job]).await.unwrap(), [local]);
    assert_eq!((world.begun(), world.bookings().await.len()), (1, 1));
}
