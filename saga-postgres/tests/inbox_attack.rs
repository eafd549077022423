//! Attacks on the barrier: handlers that break the rules, databases that refuse, nodes that freeze, answers that are lost at the worst moment.

mod participant;
#[path = "chaos/proxy.rs"]
#[allow(dead_code, reason = "the chaos tests use all of it")]
mod proxy;

use participant::{LONG, Tx, World, held, id, neighbours_are_done, one, success, undone, unknown_because};
use proxy::{Proxy, What, When};
use saga_core::{
    Encoded, StepError,
    message::{Answer, CommandId, Op},
    participant::{Inbox, Job},
    transport::Unavailable,
};
use saga_postgres::{PgInbox, testing};
use sqlx::{
    AssertSqlSafe, Connection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// A node whose connections have a setting of their own.
async fn node_with(world: &World, setting: (&str, &str)) -> PgInbox {
    let options: PgConnectOptions = world.url.parse().unwrap();
    let pool = PgPool::connect_with(options.options([setting])).await.unwrap();
    PgInbox::in_schema(pool, &world.schema).unwrap()
}

#[tokio::test]
async fn a_generation_of_any_size_is_kept_apart_and_done_once() {
    let world = World::start().await;
    let first = id();
    for generation in [i32::MAX as u32, i32::MAX as u32 + 1, u32::MAX - 1, u32::MAX] {
        let id = CommandId { generation, ..first.clone() };
        for _ in 0..2 {
            assert_eq!(one(&world.inbox, world.done(&id, "a")).await, success("a"));
        }
        for _ in 0..2 {
            assert_eq!(one(&world.inbox, world.undo(&id, "b")).await, undone());
        }
    }
    assert_eq!((world.effects("a").await, world.effects("b").await, world.rows().await), (4, 4, 4));
}

#[tokio::test]
async fn a_database_that_takes_no_writes_counts_against_nobody() {
    let world = World::start().await;
    let id = id();
    // As after a failover, when connections still lead to the server that was the primary.
    let standby = node_with(&world, ("default_transaction_read_only", "on")).await;
    let Err(Unavailable(reason)) = standby.handle(&[world.done(&id, "a")]).await else { panic!("it was answered") };
    assert!(reason.contains("read-only"), "{reason}");
    assert_eq!(one(&world.inbox, world.done(&id, "a")).await, success("a"));
}

#[tokio::test]
async fn rights_that_were_taken_away_count_against_nobody() {
    let world = World::start().await;
    let role = format!("poor_{}", &world.schema);
    world.sql(&format!("CREATE ROLE {role}; GRANT USAGE ON SCHEMA {{schema}} TO {role}")).await;
    let poor = node_with(&world, ("role", &role)).await;
    let answered = poor.handle(&[world.done(&id(), "a")]).await;
    world.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    let Err(Unavailable(reason)) = answered else { panic!("{answered:?}") };
    assert!(reason.contains("permission denied"), "{reason}");
}

#[tokio::test]
async fn the_barrier_holds_where_transactions_are_serializable_by_default() {
    let world = World::start().await;
    let id = id();
    let node = node_with(&world, ("default_transaction_isolation", "serializable")).await;
    let (slow, inside, go_on) = held(&world, &id, "slow");
    let first = tokio::spawn({
        let node = node.clone();
        async move { one(&node, slow).await }
    });
    inside.await.unwrap();
    let mut second = pin!(one(&node, world.done(&id, "fast")));
    assert!(timeout(Duration::from_millis(300), &mut second).await.is_err(), "it did not wait");
    go_on.notify_one();
    assert_eq!((first.await.unwrap(), second.await), (success("slow"), success("slow")));
}

#[tokio::test]
async fn a_command_waits_for_its_undo_on_another_node_and_is_refused() {
    let world = World::start().await;
    let (id, other) = (id(), world.another_node().await);
    let (slow, inside, go_on) = held(&world, &participant::id(), "neighbour");
    let batch = [world.undo(&id, "undone"), slow];
    let first = tokio::spawn({
        let inbox = world.inbox.clone();
        async move { inbox.handle(&batch).await.unwrap() }
    });
    inside.await.unwrap();
    let mut second = pin!(one(&other, world.done(&id, "done")));
    assert!(timeout(Duration::from_millis(300), &mut second).await.is_err(), "it did not wait for the undo");
    go_on.notify_one();
    assert_eq!((first.await.unwrap(), second.await), (vec![undone(), success("neighbour")], Answer::undone()));
    assert_eq!((world.effects("done").await, world.effects("undone").await), (0, 0));
}

#[tokio::test]
async fn a_handler_that_ends_the_transaction_ends_nothing_of_its_neighbours() {
    let world = World::start().await;
    for end in ["COMMIT", "COMMIT AND CHAIN", "BEGIN; SELECT 1; COMMIT", "ROLLBACK"] {
        let culprit = || {
            world.job(&id(), Op::Do, "culprit", move |tx, _| {
                Box::pin(async move {
                    sqlx::raw_sql(end).execute(tx).await?;
                    Ok(Encoded::null())
                })
            })
        };
        neighbours_are_done(&world, culprit(), unknown_because("ended the transaction")).await;
        // Nor of the undo before it, whose row was there already.
        let id = id();
        one(&world.inbox, world.done(&id, "done")).await;
        let answers = world.inbox.handle(&[world.undo(&id, "undone"), culprit()]).await.unwrap();
        assert_eq!((&answers[0], world.effects("undone").await), (&undone(), 1), "{end}");
        world.sql("TRUNCATE {schema}.effect").await;
    }
}

#[tokio::test]
async fn a_handler_that_leaves_a_transaction_of_its_own_open_is_not_taken_for_done() {
    let world = World::start().await;
    let culprit = world.job(&id(), Op::Do, "culprit", |tx, _| {
        Box::pin(async move {
            std::mem::forget(tx.begin().await?);
            Ok(Encoded::null())
        })
    });
    neighbours_are_done(&world, culprit, unknown_because("_sqlx_savepoint_1")).await;
}

#[tokio::test]
async fn a_handler_may_have_savepoints_of_its_own_and_give_up_in_them() {
    let world = World::start().await;
    let job = world.job(&id(), Op::Do, "kept", |tx, _| {
        Box::pin(async move {
            let mut inner = tx.begin().await?;
            assert!(sqlx::raw_sql("SELECT 1 / 0").execute(&mut *inner).await.is_err());
            inner.rollback().await?;
            drop(tx.begin().await?);
            let inner = tx.begin().await?;
            inner.commit().await?;
            Ok(Encoded::of(&"kept").unwrap())
        })
    });
    let batch = [world.done(&id(), "before"), job, world.done(&id(), "behind")];
    let expected = [success("before"), success("kept"), success("behind")];
    assert_eq!(world.inbox.handle(&batch).await.unwrap(), expected);
    assert_eq!((world.effects("before").await, world.effects("kept").await, world.effects("behind").await), (1, 1, 1));
}

#[tokio::test]
async fn what_a_handler_makes_of_a_lock_that_it_does_not_get_is_its_answer() {
    let world = World::start().await;
    world.sql("CREATE TABLE {schema}.stock (sku int PRIMARY KEY); INSERT INTO {schema}.stock VALUES (1)").await;
    let sql = format!("SELECT FROM {}.stock FOR UPDATE NOWAIT", world.schema);
    let mut blocker = world.pool.begin().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.clone())).execute(&mut *blocker).await.unwrap();
    let impatient = |class: fn(sqlx::Error) -> StepError| {
        let sql = sql.clone();
        world.job(&id(), Op::Do, "a", move |tx, _| {
            let sql = sql.clone();
            Box::pin(async move {
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(tx).await.map_err(class)?;
                Ok(Encoded::null())
            })
        })
    };
    let busy = one(&world.inbox, impatient(StepError::retry)).await;
    assert!(matches!(&busy, Answer::Retry(reason) if reason.contains("could not obtain lock")), "{busy:?}");
    let in_doubt = one(&world.inbox, impatient(StepError::from)).await;
    assert!(matches!(&in_doubt, Answer::Unknown(reason) if reason.contains("could not obtain lock")), "{in_doubt:?}");
    assert_eq!((world.effects("a").await, world.rows().await), (0, 0));
}

#[tokio::test]
async fn work_that_was_given_up_is_ended_at_the_server_even_if_the_pool_has_one_connection() {
    let world = World::start().await;
    let pool = PgPoolOptions::new().max_connections(1).connect(&world.url).await.unwrap();
    let inbox = PgInbox::in_schema(pool, &world.schema).unwrap();
    let culprit = Job::new(id(), Op::Do, Duration::from_millis(200), |tx: &mut Tx, _| {
        Box::pin(async move {
            sqlx::raw_sql("SELECT pg_sleep(600)").execute(tx).await?;
            Ok(Encoded::null())
        })
    });
    let batch = [world.done(&id(), "before"), culprit, world.done(&id(), "behind")];
    let answers =
        timeout(LONG, inbox.handle(&batch)).await.expect("it waits for the locks of what it gave up").unwrap();
    assert_eq!((&answers[0], &answers[2]), (&success("before"), &success("behind")));
    unknown_because("not done within 200ms")(&answers[1]);
}

#[tokio::test]
async fn a_node_that_freezes_in_its_work_does_not_hold_up_the_others_for_ever() {
    let world = World::start().await;
    let (id, other) = (id(), world.another_node().await);
    let (entered, inside) = tokio::sync::oneshot::channel();
    let entered = std::sync::Mutex::new(Some(entered));
    let job = Job::new(id.clone(), Op::Do, Duration::from_millis(500), move |_: &mut Tx, _| {
        if let Some(entered) = entered.lock().unwrap().take() {
            entered.send(()).unwrap();
        }
        Box::pin(std::future::pending())
    });
    let batch = [job];
    // Polled until it is in its work, and then never again: as a machine that was suspended.
    let mut frozen = world.inbox.handle(&batch);
    let mut inside = pin!(inside);
    poll_fn(|cx| {
        assert!(frozen.as_mut().poll(cx).is_pending());
        inside.as_mut().poll(cx).map(|inside| inside.unwrap())
    })
    .await;
    assert_eq!(one(&other, world.done(&id, "fast")).await, success("fast"));
    // It thaws, and hears what the other has done.
    assert_eq!(timeout(LONG, frozen).await.unwrap().unwrap(), [success("fast")]);
    assert_eq!((world.effects("fast").await, world.rows().await), (1, 1));
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_found_in_the_inbox() {
    let world = World::start().await;
    let port = world.url.parse::<PgConnectOptions>().unwrap().get_port();
    let proxy = Proxy::to(port).await;
    let options: PgConnectOptions = world.url.parse().unwrap();
    let pool = PgPool::connect_with(options.host("127.0.0.1").port(proxy.port)).await.unwrap();
    let inbox = PgInbox::in_schema(pool, &world.schema).unwrap();
    let cuts = [When::Answered, When::Sent, When::Uncommitted];
    for (round, when) in cuts.into_iter().cycle().take(30).enumerate() {
        let ids: Vec<CommandId> = (0..3).map(|_| id()).collect();
        let does = || ids.iter().map(|id| world.done(id, "done")).collect::<Vec<_>>();
        proxy.cut_next(What::Transaction, when);
        assert_eq!(
            inbox.handle(&does()).await.unwrap(),
            [success("done"), success("done"), success("done")],
            "{when:?}"
        );
        proxy.cut_next(What::Transaction, when);
        let undos: Vec<Job<Tx>> = ids.iter().map(|id| world.undo(id, "undone")).collect();
        assert_eq!(inbox.handle(&undos).await.unwrap(), [undone(), undone(), undone()], "{when:?}");
        let expected = 3 * (round as i64 + 1);
        assert_eq!((world.effects("done").await, world.effects("undone").await), (expected, expected), "{when:?}");
    }
    let made = proxy.made();
    assert_eq!(made.len(), 60);
    assert!(made.iter().filter(|(_, when)| *when == When::Answered).count() >= 10, "{made:?}");
}

/// A way to Postgres that is too narrow for long answers.
struct Narrow {
    port: u16,
    /// How many answers were too long.
    too_long: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, Debug)]
enum TooLong {
    IsSilent,
    IsCut,
}

impl Narrow {
    /// For answers of so many bytes. Ends with the test's runtime.
    async fn to(server: u16, most: usize, then: TooLong) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (port, too_long) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
        let counted = too_long.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass_on(client, server, most, then, counted.clone()));
            }
        });
        Self { port, too_long }
    }

    fn too_long(&self) -> usize {
        self.too_long.load(Ordering::SeqCst)
    }

    /// A node that comes along this way.
    async fn node(&self, world: &World) -> PgInbox {
        let options: PgConnectOptions = world.url.parse().unwrap();
        let pool = PgPool::connect_with(options.host("127.0.0.1").port(self.port)).await.unwrap();
        PgInbox::in_schema(pool, &world.schema).unwrap()
    }
}

async fn pass_on(
    mut client: TcpStream,
    server: u16,
    most: usize,
    then: TooLong,
    counted: Arc<AtomicUsize>,
) -> io::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", server)).await?;
    let (mut asked, mut answered) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut bytes = 0;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let read = read?;
                if read == 0 {
                    return Ok(());
                }
                bytes = 0;
                server.write_all(&asked[..read]).await?;
            }
            read = server.read(&mut answered) => {
                let read = read?;
                if read == 0 {
                    return Ok(());
                }
                bytes += read;
                if bytes > most {
                    counted.fetch_add(1, Ordering::SeqCst);
                    if let TooLong::IsSilent = then {
                        // Until the client gives it up.
                        while client.read(&mut asked).await? > 0 {}
                    }
                    return Ok(());
                }
                client.write_all(&answered[..read]).await?;
            }
        }
    }
}

/// As many commands as share a transaction, each with a long reply.
fn with_long_replies(world: &World, ids: &[CommandId]) -> Vec<Job<Tx>> {
    let reply = Encoded::of(&"x".repeat(100_000)).unwrap();
    let job = |id: &CommandId| {
        let reply = reply.clone();
        world.job(id, Op::Do, "done", move |_, _| {
            let reply = reply.clone();
            Box::pin(async move { Ok(reply) })
        })
    };
    ids.iter().map(job).collect()
}

#[tokio::test]
async fn what_was_kept_of_a_batch_and_does_not_come_through_is_read_one_by_one() {
    let world = World::start().await;
    let ids: Vec<CommandId> = (0..50).map(|_| id()).collect();
    let kept = world.inbox.handle(&with_long_replies(&world, &ids)).await.unwrap();
    assert!(kept.iter().all(|answer| matches!(answer, Answer::Success(_))));
    let port = world.url.parse::<PgConnectOptions>().unwrap().get_port();
    for then in [TooLong::IsSilent, TooLong::IsCut] {
        let way = Narrow::to(port, 1 << 20, then).await;
        let answers = way.node(&world).await.handle(&with_long_replies(&world, &ids)).await.unwrap();
        assert!(answers == kept, "{then:?}");
        assert_eq!(way.too_long(), 1, "{then:?}");
    }
    assert_eq!((world.effects("done").await, world.rows().await), (50, 50));
}

#[tokio::test]
async fn where_nothing_comes_through_a_batch_is_tried_twice_and_counts_against_nobody() {
    let world = World::start().await;
    let ids: Vec<CommandId> = (0..50).map(|_| id()).collect();
    world.inbox.handle(&with_long_replies(&world, &ids)).await.unwrap();
    let port = world.url.parse::<PgConnectOptions>().unwrap().get_port();
    let way = Narrow::to(port, 50_000, TooLong::IsCut).await;
    let answered = way.node(&world).await.handle(&with_long_replies(&world, &ids)).await;
    assert!(matches!(answered, Err(Unavailable(_))), "it was answered");
    assert_eq!(way.too_long(), 2);
}

#[tokio::test]
async fn a_command_and_its_undo_that_come_in_any_order_on_three_nodes_leave_nothing() {
    let world = World::start().await;
    let nodes = [world.inbox.clone(), world.another_node().await, world.another_node().await];
    for _ in 0..20 {
        let ids: Vec<CommandId> = (0..8).map(|_| id()).collect();
        let mut work = vec![];
        for node in &nodes {
            let mut batch: Vec<Job<Tx>> = ids
                .iter()
                .flat_map(|id| [world.done(id, "done"), world.undo(id, "undone"), world.done(id, "done")])
                .collect();
            fastrand::shuffle(&mut batch);
            let node = node.clone();
            work.push(tokio::spawn(async move { node.handle(&batch).await.unwrap() }));
        }
        for answers in futures::future::join_all(work).await {
            assert!(answers.unwrap().iter().all(Answer::is_final));
        }
    }
    assert_eq!(world.effects("done").await, world.effects("undone").await);
    assert_eq!(world.rows().await, 160);
    assert_eq!(world.count("SELECT count(*) FROM {schema}.saga_inbox WHERE NOT undone").await, 0);
}

#[tokio::test]
async fn rows_that_are_pruned_while_they_are_waited_for_are_entered_anew() {
    let world = World::start().await;
    let id = id();
    one(&world.inbox, world.done(&id, "old")).await;
    // The row is removed between the two statements of another node, which saw it in the first: after the retention it is a new command.
    world
        .sql(
            "CREATE FUNCTION {schema}.pause() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN PERFORM pg_advisory_xact_lock(4712); RETURN NULL; END $$;
             CREATE TRIGGER pause AFTER INSERT ON {schema}.saga_inbox EXECUTE FUNCTION {schema}.pause()",
        )
        .await;
    let other = world.another_node().await;
    let mut blocker = world.pool.acquire().await.unwrap();
    sqlx::raw_sql("SELECT pg_advisory_lock(4712)").execute(&mut *blocker).await.unwrap();
    let second = tokio::spawn({
        let job = world.done(&id, "new");
        async move { one(&other, job).await }
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = 4712";
    let began = std::time::Instant::now();
    while world.count(waits).await == 0 {
        assert!(began.elapsed() < LONG, "it did not come to the second statement");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.sql("DELETE FROM {schema}.saga_inbox").await;
    sqlx::raw_sql("SELECT pg_advisory_unlock(4712)").execute(&mut *blocker).await.unwrap();
    assert_eq!(second.await.unwrap(), success("new"));
    assert_eq!((world.effects("old").await, world.effects("new").await, world.rows().await), (1, 1, 1));
}

#[tokio::test]
async fn a_pool_that_is_in_use_is_waited_for_and_then_unavailable() {
    let postgres = testing::shared().await.unwrap();
    let world = World::on(postgres).await;
    let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(Duration::from_millis(200));
    let pool = pool.connect(&world.url).await.unwrap();
    let inbox = PgInbox::in_schema(pool.clone(), &world.schema).unwrap();
    let held = pool.acquire().await.unwrap();
    let Err(Unavailable(_)) = inbox.handle(&[world.done(&id(), "a")]).await else { panic!("there was no connection") };
    drop(held);
    assert_eq!(one(&inbox, world.done(&id(), "a")).await, success("a"));
}

#[tokio::test]
async fn batches_of_any_size_are_answered_one_by_one_and_in_order() {
    let world = World::start().await;
    for size in [0, 1, 49, 50, 51, 100, 120] {
        let works = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let batch: Vec<Job<Tx>> = (0..size)
            .map(|place| {
                let works = works.clone();
                Job::new(id(), Op::Do, LONG, move |_: &mut Tx, _| {
                    works.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    Box::pin(async move { Ok(Encoded::of(&place).unwrap()) })
                })
            })
            .collect();
        let expected: Vec<Answer> = (0..size).map(|place| Answer::Success(Encoded::of(&place).unwrap())).collect();
        assert_eq!(world.inbox.handle(&batch).await.unwrap(), expected);
        assert_eq!(works.load(std::sync::atomic::Ordering::SeqCst), size);
    }
    assert_eq!(world.count("SELECT count(*) FROM {schema}.saga_inbox_open").await, 0);
}
