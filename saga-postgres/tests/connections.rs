//! What the network, poolers, servers and roles do to connections, and what becomes of them.
#![cfg(all(feature = "testing", unix))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker;
mod common;
#[path = "chaos/proxy.rs"]
#[allow(dead_code, reason = "a part of it is used")]
mod cuts;
mod participant;
mod wire;

use broker::Broker;
use common::{Order, Setup, definition, entry, fresh, new_start, start};
use cuts::{Proxy, What, When};
use futures::future::join_all;
use participant::World;
use saga_core::{
    Cx, Encoded, Engine, Out, Outcome, Saga, SagaBuilder, SagaId, StepError, WorkerId,
    message::{CommandId, Op},
    participant::{Event, Inbox},
    store::{Appended, Hint, Mail, Ripe, Room, Store, StoreError},
};
use saga_postgres::{PgInbox, PgOutbox, PgStore, PgStoreOptions, SetupError, testing};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, postgres::PgPoolOptions};
use std::{
    future::poll_fn,
    pin::pin,
    task::Poll,
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};
use wire::Wire;

const LONG: Duration = Duration::from_secs(60);
/// Whatever is to happen happens within this time, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(20);
const SHORT: Duration = Duration::from_millis(200);

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Counted(u64);

impl Event for Counted {
    const TYPE: &'static str = "test.counted.v1";
    const TOPIC: &'static str = "counted";
}

/// A saga that never ends.
struct Endless;

impl Saga for Endless {
    const NAME: &'static str = "endless";
    const VERSION: u32 = 1;
    type Input = ();
    type Output = ();
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        saga.pivot("wait").run(wait)
    }
}

async fn wait(_: Cx<()>, (): ()) -> Result<(), StepError> {
    std::future::pending().await
}

async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        sleep(AGAIN).await;
    }
}

async fn run(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    // One after the other: some of them want no transaction.
    for statement in sql.split(";\n") {
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
}

/// The way to the shared server over a wire, in a schema that is migrated.
async fn wired() -> (PgStoreOptions, Wire, Setup) {
    let setup = fresh(|_, sql| sql).await;
    let wire = Wire::to(testing::shared().await.unwrap().port()).await;
    let url = wire.url(&setup.url, testing::shared().await.unwrap().port());
    (PgStore::options(&url).unwrap().schema(&setup.schema), wire, setup)
}

// Silence

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_dropped_on_silent_connections_take_no_place_with_them() {
    let (options, wire, _setup) = wired().await;
    let store = options.connections(3).connect().await.unwrap();
    join_all((0..3).map(|_| store.find("order", "k"))).await;
    wire.silence_existing();
    for _ in 0..4 {
        let calls = (0..6).map(|_| timeout(SHORT, store.find("order", "k")));
        join_all(calls).await;
    }
    eventually("it answers", async || matches!(timeout(SHORT, store.find("order", "k")).await, Ok(Ok(None)))).await;
    // All places are there.
    for found in join_all((0..3).map(|_| store.find("order", "k"))).await {
        found.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_hears_nothing_listens_anew() {
    let (options, wire, setup) = wired().await;
    let store = options.connect().await.unwrap();
    let mut hints = store.hints();
    let heard = async |hints: &mut tokio::sync::broadcast::Receiver<Hint>| {
        eventually("it hears the other", async || {
            setup.store.hint(Hint::Ended);
            matches!(timeout(SHORT, hints.recv()).await, Ok(Ok(Hint::Ended)))
        })
        .await;
        while hints.try_recv().is_ok() {}
    };
    heard(&mut hints).await;
    let before = wire.listeners();
    assert!(wire.silence_listeners() > 0);
    eventually("it listens anew", async || wire.listeners() > before).await;
    heard(&mut hints).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_have_nothing_to_say_say_little() {
    let setup = fresh(|_, sql| sql).await;
    let another = PgStore::options(&setup.url).unwrap().schema(&setup.schema).connect().await.unwrap();
    let mut heard = sqlx::postgres::PgListener::connect(&setup.url).await.unwrap();
    heard.listen(&format!("{}_hints", setup.schema)).await.unwrap();
    let (began, mut said) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(6) {
        if timeout(SHORT, heard.recv()).await.is_ok() {
            said += 1;
        }
    }
    // One word in one to two seconds, or two at the same moment.
    assert!((1..=14).contains(&said), "{said}");
    drop(another);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_in_time_when_nothing_answers() {
    let (options, wire, setup) = wired().await;
    let store = options.connect().await.unwrap();
    let builder = Engine::builder(store.clone()).register::<Endless>(()).unwrap();
    let engine = builder.configure(|config| config.patience = Duration::from_secs(1)).start().await.unwrap();
    let saga = engine.sagas::<Endless>().submit("k", ()).await.unwrap();
    let id = saga.id();
    eventually("it runs", async || setup.store.read(id).await.unwrap().is_some_and(|record| record.epoch == 1)).await;
    drop(saga);
    wire.silence();
    timeout(PATIENCE, engine.shutdown(Duration::from_secs(1))).await.expect("it waits for ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_takes_no_place_of_a_users_pool() {
    let (_, wire, setup) = wired().await;
    let url = wire.url(&setup.url, testing::shared().await.unwrap().port());
    let pool = PgPoolOptions::new().max_connections(2).connect(&url).await.unwrap();
    let inbox = PgInbox::in_schema(pool.clone(), &setup.schema).unwrap();
    let world = World { pool: pool.clone(), inbox, schema: setup.schema.clone(), url: setup.url.clone() };
    world.sql("CREATE TABLE {schema}.effect (name text PRIMARY KEY, count int NOT NULL)").await;
    let outbox = PgOutbox::options(pool.clone(), "tests").schema(&setup.schema).build().unwrap();
    let id = |step: &str| CommandId { saga: SagaId::generate(), step: step.into(), generation: 0 };
    let job = |name: &str| world.job(&id(name), Op::Do, name, |_, _| Box::pin(async { Ok(Encoded::null()) }));
    world.inbox.handle(&[job("before")]).await.unwrap();
    outbox.lag().await.unwrap();
    wire.silence_existing();
    for _ in 0..3 {
        let batches = [[job("lost")], [job("lost too")]];
        let _ = join_all(batches.iter().map(|batch| timeout(SHORT, world.inbox.handle(batch)))).await;
        let _ = timeout(SHORT, outbox.lag()).await;
        let _ = timeout(SHORT, world.inbox.prune()).await;
    }
    eventually("the inbox works", async || {
        let batch = [job("after")];
        matches!(timeout(Duration::from_secs(2), world.inbox.handle(&batch)).await, Ok(Ok(_)))
    })
    .await;
    let (one, two) = (timeout(PATIENCE, pool.acquire()).await, timeout(PATIENCE, pool.acquire()).await);
    assert!(one.is_ok_and(|one| one.is_ok()) && two.is_ok_and(|two| two.is_ok()));
}

// Dropped calls

/// Lets a call come to this many waits at most.
async fn for_so_many_waits<F: Future>(waits: usize, call: F) -> Option<F::Output> {
    let (mut call, mut left) = (pin!(call), waits);
    poll_fn(|cx| match call.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

async fn nothing_is_left_of_dropped_calls(options: impl Fn(PgStoreOptions) -> PgStoreOptions) {
    let Setup { url, schema, .. } = fresh(|_, sql| sql).await;
    // So that its sessions are told from those of other tests.
    let url = format!("{url}{}application_name={schema}", if url.contains('?') { '&' } else { '?' });
    let store = options(PgStore::options(&url).unwrap().schema(&schema).connections(1)).connect().await.unwrap();
    let worker = WorkerId::generate();
    store.join(worker, LONG, &[definition()]).await.unwrap();
    let saga = start(&store, "k", Some(worker)).await;
    for seq in 1..40 {
        let (waits, append) = (usize::try_from(seq).unwrap() - 1, entry(saga, 1, seq));
        if for_so_many_waits(waits, store.append(worker, std::slice::from_ref(&append))).await.is_none() {
            // It is sent again, on the one connection that there may be.
            eventually("it is written", async || {
                matches!(store.append(worker, std::slice::from_ref(&append)).await.as_deref(), Ok([Appended::Written]))
            })
            .await;
        }
        let begun = new_start(&format!("k{seq}"), None);
        let _ = for_so_many_waits(waits, store.start(std::slice::from_ref(&begun))).await;
        let again = async || store.start(std::slice::from_ref(&begun)).await;
        eventually("it is started", async || {
            again().await.is_ok_and(|started| started == [saga_core::store::Started::New])
        })
        .await;
        let mail = Mail { saga, message: format!("m{seq}"), body: b"{}".to_vec() };
        let _ = for_so_many_waits(waits, store.post(std::slice::from_ref(&mail))).await;
        let _ = for_so_many_waits(waits, store.mail(worker, &[definition()], 10)).await;
        let _ = for_so_many_waits(waits, store.read(saga)).await;
        let _ = for_so_many_waits(waits, store.beat(worker, LONG)).await;
        let _ = for_so_many_waits(waits, store.returned(WorkerId::generate())).await;
        let _ = for_so_many_waits(waits, store.sweep(10)).await;
        let _ = for_so_many_waits(waits, store.ready()).await;
        let other = WorkerId::generate();
        let _ = for_so_many_waits(waits, store.claim(other, &[definition()], Ripe::Due, Room::of(1))).await;
    }
    let record = store.read(saga).await.unwrap().unwrap();
    assert_eq!((record.journal.len(), record.epoch), (39, 1));
    // No transaction stays open, no session stays behind.
    let open = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{schema}' AND state LIKE 'idle in transaction%'"
    );
    let all = format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{schema}'");
    let direct = PgPool::connect(&url.replace("application_name=", "application_name=not_")).await.unwrap();
    for (what, at_most) in [(open, 0), (all, 4)] {
        eventually(&what, async || {
            let count: i64 = sqlx::query_scalar(AssertSqlSafe(what.clone())).fetch_one(&direct).await.unwrap();
            count <= at_most
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_dropped_at_any_wait_leaves_nothing_behind() {
    nothing_is_left_of_dropped_calls(|options| options).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_dropped_at_any_wait_leaves_nothing_behind_where_transactions_are_pooled() {
    nothing_is_left_of_dropped_calls(PgStoreOptions::transaction_pooler).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_unknown_and_is_resolved() {
    let Setup { url, schema, .. } = fresh(|_, sql| sql).await;
    let port = testing::shared().await.unwrap().port();
    for when in [When::Answered, When::Sent, When::Uncommitted] {
        let proxy = Proxy::to(port).await;
        let through = url.replace(&format!(":{port}/"), &format!(":{}/", proxy.port));
        let options = PgStore::options(&through).unwrap().schema(&schema).transaction_pooler();
        let store = options.direct(&url).connect().await.unwrap();
        let worker = WorkerId::generate();
        store.join(worker, LONG, &[definition()]).await.unwrap();
        let saga = start(&store, &format!("{when:?}"), Some(worker)).await;
        proxy.cut_next(What::Transaction, when);
        let append = [entry(saga, 1, 1)];
        let lost = store.append(worker, &append).await;
        assert!(matches!(lost, Err(StoreError::Unavailable(_))), "{when:?}: {lost:?}");
        eventually("it is written", async || {
            store.append(worker, &append).await.is_ok_and(|all| all == [Appended::Written])
        })
        .await;
        assert_eq!(store.append(worker, &append).await.unwrap(), [Appended::Written]);
        assert_eq!(store.read(saga).await.unwrap().unwrap().journal.len(), 1);
        proxy.cut_next(What::Transaction, when);
        let begun = [new_start(&format!("start {when:?}"), None)];
        assert!(matches!(store.start(&begun).await, Err(StoreError::Unavailable(_))));
        eventually("it is started", async || {
            store.start(&begun).await.is_ok_and(|all| all == [saga_core::store::Started::New])
        })
        .await;
    }
}

// The primary

#[tokio::test(flavor = "multi_thread")]
async fn a_former_primary_is_left_by_all() {
    let (former, new) = (testing::Postgres::private().await.unwrap(), testing::Postgres::private().await.unwrap());
    for server in [&former, &new] {
        PgStore::connect(&server.url()).await.unwrap().migrate().await.unwrap();
    }
    let wire = Wire::to(former.port()).await;
    let url = wire.url(&former.url(), former.port());
    let store = PgStore::connect(&url).await.unwrap();
    let pool = PgPoolOptions::new().max_connections(2).connect(&url).await.unwrap();
    let outbox = PgOutbox::options(pool, "tests").schema("saga").build().unwrap();
    let broker = Broker::new();
    let relay = outbox.relay(broker.clone()).poll(AGAIN).start().await.unwrap();
    let mut hints = store.hints();
    assert_eq!(store.find("order", "k").await.unwrap(), None);

    // A switch-over: connections stay where they are, and new ones come to the new primary.
    wire.lead_to(new.port());
    run(&former.url(), "ALTER SYSTEM SET default_transaction_read_only = on;\nSELECT pg_reload_conf()").await;
    let there = PgStore::connect(&new.url()).await.unwrap();
    let saga = start(&there, "k", None).await;
    eventually(
        "the store asks the new primary",
        async || matches!(store.find("order", "k").await, Ok(Some(found)) if found == saga),
    )
    .await;
    let pool = PgPool::connect(&new.url()).await.unwrap();
    let theirs = PgOutbox::options(pool.clone(), "tests").schema("saga").build().unwrap();
    let mut tx = pool.begin().await.unwrap();
    theirs.publish(&mut tx, "key", &Counted(1)).await.unwrap();
    tx.commit().await.unwrap();
    eventually("the relay looks there", async || !broker.log().is_empty()).await;
    while hints.try_recv().is_ok() {}
    eventually("it listens there", async || {
        there.hint(Hint::Mail);
        matches!(timeout(SHORT, hints.recv()).await, Ok(Ok(Hint::Mail)))
    })
    .await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_servers_the_primary_is_used() {
    let postgres = testing::Postgres::private().await.unwrap();
    let standby = testing::Postgres::private().await.unwrap();
    run(&standby.url(), "ALTER SYSTEM SET default_transaction_read_only = on;\nSELECT pg_reload_conf()").await;
    let closed = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap().port();
    let hosts = format!("127.0.0.1:{closed},127.0.0.1:{},127.0.0.1:{}/", standby.port(), postgres.port());
    let url = postgres.url().replace(&format!("127.0.0.1:{}/", postgres.port()), &hosts);
    let url = format!("{url}?target_session_attrs=read-write");
    let store = PgStore::connect(&url).await.unwrap();
    store.migrate().await.unwrap();
    start(&store, "k", None).await;
    let only_one = standby.url();
    eventually("it is read-only", async || {
        matches!(PgStore::connect(&only_one).await, Err(SetupError::ReadOnly { .. }))
    })
    .await;
}

#[tokio::test]
async fn what_leads_nowhere_is_said_at_once_and_in_words() {
    let postgres = testing::shared().await.unwrap();
    let (url, port) = (postgres.url(), postgres.port());
    let closed = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap().port();
    let database = url.split('?').next().unwrap().rsplit('/').next().unwrap().to_owned();
    for (url, said) in [
        (url.replace(&format!(":{port}/"), &format!(":{closed}/")), format!("127.0.0.1:{closed}")),
        (format!("postgres://nobody@no-such-host.invalid:{port}/postgres"), "no-such-host.invalid".into()),
        (url.replace(&format!("/{database}"), "/no_such_database"), "no_such_database".into()),
        (url.replace("postgres://", "mysql://"), "postgres://".into()),
        ("postgres://one:port/postgres".into(), "postgres://user:password@host:5432/database".into()),
    ] {
        let refused = timeout(PATIENCE, PgStore::connect(&url)).await.expect("not at once").unwrap_err().to_string();
        assert!(refused.contains(&said) && !refused.contains("pool timed out"), "{url}: {refused}");
    }
}

#[tokio::test]
async fn a_schema_that_is_not_there_is_said_at_the_start() {
    let postgres = testing::shared().await.unwrap();
    let store = PgStore::options(&postgres.url()).unwrap().schema(postgres.schema()).connect().await.unwrap();
    let refused = Engine::builder(store).register::<Order>(()).unwrap().start().await.err().unwrap().to_string();
    assert!(refused.contains("migrate"), "{refused}");
}

// Settings and rights

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_patience_is_no_pooler() {
    let postgres = testing::Postgres::private().await.unwrap();
    let url = as_role(&postgres, &[("idle_in_transaction_session_timeout", "1ms")]).await;
    for _ in 0..20 {
        PgStore::connect(&url).await.unwrap();
    }
}

async fn an_order_ends(store: &PgStore) {
    let engine = Engine::builder(store.clone()).register::<Order>(()).unwrap().start().await.unwrap();
    let order = engine.sagas::<Order>().submit("k", 4).await.unwrap();
    assert_eq!(timeout(PATIENCE, order.outcome()).await.unwrap().unwrap(), Outcome::Completed(8));
    engine.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_may_be_called_order() {
    let postgres = testing::Postgres::private().await.unwrap();
    let store = PgStore::options(&postgres.url()).unwrap().schema("order").connect().await.unwrap();
    store.migrate().await.unwrap();
    store.migrate().await.unwrap();
    an_order_ends(&store).await;
    let pool = PgPool::connect(&postgres.url()).await.unwrap();
    let outbox = PgOutbox::options(pool.clone(), "tests").schema("order").build().unwrap();
    outbox.migrate().await.unwrap();
    let broker = Broker::new();
    let relay = outbox.relay(broker.clone()).start().await.unwrap();
    let mut tx = outbox_tx(&pool).await;
    outbox.publish(&mut tx, "key", &Counted(1)).await.unwrap();
    outbox.commit(tx).await.unwrap();
    eventually("it is published", async || broker.log().len() == 1).await;
    relay.stop().await;
    let inbox = PgInbox::in_schema(pool, "order").unwrap();
    inbox.migrate().await.unwrap();
    inbox.ready().await.unwrap();
    inbox.prune().await.unwrap();
}

async fn outbox_tx(pool: &PgPool) -> sqlx::Transaction<'static, sqlx::Postgres> {
    pool.begin().await.unwrap()
}

/// A role of its own on a private server, which has been given a database.
async fn as_role(postgres: &testing::Postgres, settings: &[(&str, &str)]) -> String {
    let mut sql = "CREATE ROLE app LOGIN;\nCREATE DATABASE app OWNER app".to_owned();
    for (name, value) in settings {
        sql += &format!(";\nALTER ROLE app SET {name} = '{value}'");
    }
    run(&postgres.url(), &sql).await;
    format!("postgres://app@127.0.0.1:{}/app", postgres.port())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_role_has_set_changes_nothing() {
    let postgres = testing::Postgres::private().await.unwrap();
    let hostile = [
        ("default_transaction_isolation", "serializable"),
        ("default_transaction_deferrable", "on"),
        ("statement_timeout", "400ms"),
        ("lock_timeout", "1ms"),
        ("idle_session_timeout", "400ms"),
        ("idle_in_transaction_session_timeout", "1ms"),
        ("synchronous_commit", "off"),
        ("row_security", "on"),
        ("search_path", ""),
        ("plan_cache_mode", "force_custom_plan"),
        ("timezone", "Asia/Kathmandu"),
        ("datestyle", "German"),
        ("bytea_output", "escape"),
        ("standard_conforming_strings", "off"),
    ];
    let url = as_role(&postgres, &hostile).await;
    let store = PgStore::options(&url).unwrap().connections(3).connect().await.unwrap();
    store.migrate().await.unwrap();
    an_order_ends(&store).await;
    join_all((0..3).map(|_| store.find("order", "k"))).await;
    sleep(3 * SHORT).await;
    // Longer than the role may, and all as it should be.
    let asked = "DO $$ BEGIN
        PERFORM pg_sleep(0.5);
        IF current_setting('transaction_isolation') <> 'read committed' OR current_setting('synchronous_commit') <> 'on' OR current_setting('row_security') <> 'off'
            OR current_setting('lock_timeout') <> '100ms' OR current_setting('idle_session_timeout') <> '0'
        THEN RAISE EXCEPTION 'not as it should be'; END IF; END $$";
    store.meddle(asked).await.unwrap();
    let pooled = PgStore::options(&url).unwrap().transaction_pooler().connect().await.unwrap();
    let worker = WorkerId::generate();
    pooled.join(worker, LONG, &[definition()]).await.unwrap();
    let saga = start(&pooled, "pooled", Some(worker)).await;
    assert_eq!(pooled.append(worker, &[entry(saga, 1, 1)]).await.unwrap(), [Appended::Written]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_policy_hides_are_an_error_at_the_start() {
    let postgres = testing::Postgres::private().await.unwrap();
    let owner = format!("postgres://postgres@127.0.0.1:{}/app", postgres.port());
    let url = as_role(&postgres, &[]).await;
    PgStore::connect(&owner).await.unwrap().migrate().await.unwrap();
    let start = async || {
        let store = PgStore::connect(&url).await.unwrap();
        Engine::builder(store).register::<Order>(()).unwrap().start().await.map(drop).map_err(|error| error.to_string())
    };
    assert!(start().await.unwrap_err().contains("rights"), "it may not even use the schema");
    let grants =
        "GRANT USAGE ON SCHEMA saga TO app;\nGRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA saga TO app";
    run(&owner, grants).await;
    start().await.unwrap();
    run(&owner, "ALTER TABLE saga.saga ENABLE ROW LEVEL SECURITY").await;
    let refused = start().await.unwrap_err();
    assert!(refused.contains("row level security"), "{refused}");
    run(&owner, "ALTER TABLE saga.saga DISABLE ROW LEVEL SECURITY;\nREVOKE DELETE ON saga.saga_worker FROM app").await;
    assert!(start().await.unwrap_err().contains("saga_worker"));
}

#[tokio::test]
async fn whoever_may_not_create_schemas_migrates_one_that_is_up_to_date() {
    let postgres = testing::Postgres::private().await.unwrap();
    let url = as_role(&postgres, &[]).await;
    let owner = format!("postgres://postgres@127.0.0.1:{}/app", postgres.port());
    run(&owner, "CREATE SCHEMA saga AUTHORIZATION app;\nALTER DATABASE app OWNER TO postgres;\nREVOKE CREATE ON DATABASE app FROM app").await;
    let store = PgStore::connect(&url).await.unwrap();
    store.migrate().await.unwrap();
    store.migrate().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_no_pooler_however_few_connections_it_has() {
    let postgres = testing::Postgres::private().await.unwrap();
    let url = as_role(&postgres, &[]).await;
    PgStore::connect(&url).await.unwrap().migrate().await.unwrap();
    for limit in 1..=4 {
        eventually("the last ones have left", async || {
            let mut connection = PgConnection::connect(&postgres.url()).await.unwrap();
            let there = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'");
            there.fetch_one(&mut connection).await.unwrap() == 0
        })
        .await;
        run(&postgres.url(), &format!("ALTER ROLE app CONNECTION LIMIT {limit}")).await;
        let store = PgStore::options(&url).unwrap().connections(1).connect().await;
        let store = store.unwrap_or_else(|error| panic!("with {limit} connections: {error}"));
        // One for the store, one for the heart, two for hints.
        if limit == 4 {
            an_order_ends(&store).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_less_room_than_was_asked_for_is_used_as_it_is() {
    let postgres = testing::Postgres::private().await.unwrap();
    let url = as_role(&postgres, &[]).await;
    PgStore::connect(&url).await.unwrap().migrate().await.unwrap();
    run(&postgres.url(), "ALTER ROLE app CONNECTION LIMIT 6").await;
    let store = PgStore::options(&url).unwrap().connections(12).connect().await.unwrap();
    let engine = Engine::builder(store.clone()).register::<Order>(()).unwrap().start().await.unwrap();
    let orders = engine.sagas::<Order>();
    let order = async |n: i32| {
        let order = orders.submit(n.to_string(), n).await.unwrap();
        // Callers ask for connections of their own beside it.
        assert!(orders.find(&n.to_string()).await.unwrap().is_some());
        order.outcome().await.unwrap()
    };
    for outcome in join_all((0..200).map(order)).await {
        assert!(matches!(outcome, Outcome::Completed(_)), "{outcome:?}");
    }
    engine.shutdown(Duration::from_secs(60)).await;
    // Where there is none at all, the server's own words say so.
    drop(store);
    run(&postgres.url(), "ALTER ROLE app CONNECTION LIMIT 0").await;
    let refused = PgStore::connect(&url).await.unwrap_err().to_string();
    assert!(refused.contains("too many connections"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_way_with_room_for_one_is_no_pooler_in_transaction_mode() {
    let Setup { url, schema, .. } = fresh(|_, sql| sql).await;
    let port = testing::shared().await.unwrap().port();
    // Whoever comes second waits until the first one leaves, as at a pooler in session mode.
    let wire = Wire::with_places(port, 1).await;
    let options = PgStore::options(&wire.url(&url, port)).unwrap().schema(schema).connections(1);
    options.connect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_works_over_a_socket() {
    let postgres = testing::Postgres::builder().setting("listen_addresses", "").start().await;
    // Where the server cannot be waited for without a port, the same one is asked at its socket.
    let postgres = match postgres {
        Ok(postgres) => postgres,
        Err(_) => testing::Postgres::private().await.unwrap(),
    };
    let store = PgStore::connect(&postgres.socket_url_for("postgres")).await.unwrap();
    store.migrate().await.unwrap();
    an_order_ends(&store).await;
}

/// Planned for an empty table, a statement may read all of it for each row that it looks up. Such a plan would stay until
/// the table is analyzed.
#[tokio::test]
async fn a_plan_that_was_made_while_a_table_was_empty_is_not_kept_when_it_has_grown() {
    const ROWS: i64 = 20_000;
    let Setup { store, url, schema } = fresh(|_, sql| sql).await;
    run(&url, &format!("ALTER TABLE {schema}.saga SET (autovacuum_enabled = off)")).await;
    run(&url, &format!("VACUUM {schema}.saga")).await;
    let post = async || {
        let mail = || Mail { saga: SagaId::generate(), message: "m".into(), body: b"{}".to_vec() };
        store.post(&[mail(), mail(), mail()]).await.unwrap();
    };
    post().await;
    let fill = format!(
        "INSERT INTO {schema}.saga (id, name, version, key, input, status) \
         SELECT gen_random_uuid(), 'order', 1, n::text, '1', 3 FROM generate_series(1, {ROWS}) n"
    );
    run(&url, &fill).await;
    let mut looking = PgConnection::connect(&url).await.unwrap();
    let mut read = async || -> i64 {
        let sql = format!("SELECT idx_tup_fetch FROM pg_stat_user_tables WHERE relid = '{schema}.saga'::regclass");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut looking).await.unwrap()
    };
    eventually("it reads few rows", async || {
        let before = read().await;
        // For longer than the server takes to count what was read.
        for _ in 0..30 {
            post().await;
            sleep(Duration::from_millis(50)).await;
        }
        read().await - before < ROWS
    })
    .await;
}
