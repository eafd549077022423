//! The barrier: a command twice, late, after its undo; an undo without its command; two at once on two nodes; and everything that can go wrong in between.

mod participant;

use participant::{LONG, Tx, World, held, id, neighbours_are_done, one, success, undone, unknown_because};
use saga_core::{
    Encoded, StepError,
    message::{Answer, CommandId, Op},
    participant::{Inbox, Job},
    transport::Unavailable,
};
use saga_postgres::{PgInbox, testing, testing::Postgres};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, postgres::PgPoolOptions};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{Barrier, Notify},
    time::timeout,
};

#[tokio::test]
async fn a_command_that_comes_again_is_answered_again_and_not_done_again() {
    let world = World::start().await;
    let id = id();
    assert_eq!(one(&world.inbox, world.done(&id, "first")).await, success("first"));
    assert_eq!(one(&world.inbox, world.done(&id, "second")).await, success("first"));
    assert_eq!((world.effects("first").await, world.effects("second").await), (1, 0));
}

#[tokio::test]
async fn a_command_that_is_in_a_batch_twice_is_done_once() {
    let world = World::start().await;
    let id = id();
    let batch = [world.done(&id, "first"), world.done(&id, "second")];
    assert_eq!(world.inbox.handle(&batch).await.unwrap(), [success("first"), success("first")]);
    assert_eq!((world.effects("first").await, world.effects("second").await), (1, 0));
}

#[tokio::test]
async fn a_no_is_kept_without_what_was_written_before_it() {
    let world = World::start().await;
    let id = id();
    let no = world.ending(&id, "a", || StepError::fail("out of stock"));
    assert_eq!(one(&world.inbox, no).await, Answer::Fail("out of stock".into()));
    assert_eq!(one(&world.inbox, world.done(&id, "a")).await, Answer::Fail("out of stock".into()));
    assert_eq!((world.effects("a").await, world.rows().await), (0, 1));
}

#[tokio::test]
async fn what_is_not_final_leaves_nothing_and_may_be_done_later() {
    let world = World::start().await;
    for error in [|| StepError::retry("busy"), || StepError::unknown("timed out")] {
        let id = id();
        let answer = one(&world.inbox, world.ending(&id, "a", error)).await;
        assert!(matches!(answer, Answer::Retry(_) | Answer::Unknown(_)), "{answer:?}");
        assert_eq!((world.effects("a").await, world.rows().await), (0, 0));
        assert_eq!(one(&world.inbox, world.done(&id, "b")).await, success("b"));
        world.sql("TRUNCATE {schema}.saga_inbox").await;
    }
    assert_eq!(world.effects("b").await, 2);
}

#[tokio::test]
async fn an_undo_is_done_once_and_a_command_after_it_is_answered_as_before() {
    let world = World::start().await;
    let id = id();
    one(&world.inbox, world.done(&id, "done")).await;
    assert_eq!(one(&world.inbox, world.undo(&id, "undone")).await, undone());
    assert_eq!(one(&world.inbox, world.undo(&id, "undone")).await, undone());
    assert_eq!(one(&world.inbox, world.done(&id, "done")).await, success("done"));
    assert_eq!((world.effects("done").await, world.effects("undone").await), (1, 1));
}

#[tokio::test]
async fn an_undo_that_does_not_succeed_is_not_kept() {
    let world = World::start().await;
    let id = id();
    one(&world.inbox, world.done(&id, "done")).await;
    let failing = world.job(&id, Op::Undo, "undone", |_, _| Box::pin(async { Err(StepError::fail("not now")) }));
    assert_eq!(one(&world.inbox, failing).await, Answer::Fail("not now".into()));
    assert_eq!(world.effects("undone").await, 0);
    assert_eq!(one(&world.inbox, world.undo(&id, "undone")).await, undone());
    assert_eq!(world.effects("undone").await, 1);
}

#[tokio::test]
async fn an_undo_without_its_command_does_nothing_and_the_command_is_refused_when_it_comes() {
    let world = World::start().await;
    let id = id();
    assert_eq!(one(&world.inbox, world.undo(&id, "undone")).await, undone());
    assert_eq!(one(&world.inbox, world.done(&id, "done")).await, Answer::undone());
    assert_eq!(one(&world.inbox, world.undo(&id, "undone")).await, undone());
    assert_eq!((world.effects("done").await, world.effects("undone").await), (0, 0));
}

#[tokio::test]
async fn an_undo_of_what_failed_does_nothing() {
    let world = World::start().await;
    let id = id();
    one(&world.inbox, world.ending(&id, "done", || StepError::fail("no"))).await;
    assert_eq!(one(&world.inbox, world.undo(&id, "undone")).await, undone());
    assert_eq!(one(&world.inbox, world.done(&id, "done")).await, Answer::Fail("no".into()));
    assert_eq!(world.effects("undone").await, 0);
}

#[tokio::test]
async fn command_undo_and_command_in_one_batch_happen_in_that_order() {
    let world = World::start().await;
    let (a, b) = (id(), id());
    let batch = [
        world.done(&a, "done"),
        world.undo(&a, "undone"),
        world.undo(&b, "undone"),
        world.done(&b, "done"),
        world.done(&a, "done"),
    ];
    let expected = [success("done"), undone(), undone(), Answer::undone(), success("done")];
    assert_eq!(world.inbox.handle(&batch).await.unwrap(), expected);
    assert_eq!((world.effects("done").await, world.effects("undone").await), (1, 1));
}

#[tokio::test]
async fn another_generation_is_another_command() {
    let world = World::start().await;
    let first = id();
    let second = CommandId { generation: 1, ..first.clone() };
    one(&world.inbox, world.ending(&first, "a", || StepError::fail("no"))).await;
    assert_eq!(one(&world.inbox, world.done(&second, "a")).await, success("a"));
}

#[tokio::test]
async fn two_nodes_that_have_a_command_at_once_do_it_once() {
    let world = World::start().await;
    let (id, other) = (id(), world.another_node().await);
    let (slow, inside, go_on) = held(&world, &id, "slow");
    let first = tokio::spawn({
        let inbox = world.inbox.clone();
        async move { one(&inbox, slow).await }
    });
    inside.await.unwrap();
    let mut second = tokio::spawn({
        let job = world.done(&id, "fast");
        async move { one(&other, job).await }
    });
    assert!(timeout(Duration::from_millis(300), &mut second).await.is_err(), "it did not wait for the other node");
    go_on.notify_one();
    assert_eq!((first.await.unwrap(), second.await.unwrap()), (success("slow"), success("slow")));
    assert_eq!((world.effects("slow").await, world.effects("fast").await), (1, 0));
}

#[tokio::test]
async fn an_undo_waits_for_its_command_on_another_node_and_undoes_it() {
    let world = World::start().await;
    let (id, other) = (id(), world.another_node().await);
    let (slow, inside, go_on) = held(&world, &id, "done");
    let command = tokio::spawn({
        let inbox = world.inbox.clone();
        async move { one(&inbox, slow).await }
    });
    inside.await.unwrap();
    let mut undo = tokio::spawn({
        let job = world.undo(&id, "undone");
        async move { one(&other, job).await }
    });
    assert!(timeout(Duration::from_millis(300), &mut undo).await.is_err(), "it did not wait for its command");
    go_on.notify_one();
    assert_eq!((command.await.unwrap(), undo.await.unwrap()), (success("done"), undone()));
    assert_eq!((world.effects("done").await, world.effects("undone").await), (1, 1));
}

#[tokio::test]
async fn a_node_that_dies_in_its_work_leaves_the_command_to_the_next() {
    let world = World::start().await;
    let (id, other) = (id(), world.another_node().await);
    let (slow, inside, _) = held(&world, &id, "slow");
    let dying = tokio::spawn({
        let inbox = world.inbox.clone();
        async move { one(&inbox, slow).await }
    });
    inside.await.unwrap();
    dying.abort();
    assert_eq!(one(&other, world.done(&id, "fast")).await, success("fast"));
    assert_eq!((world.effects("slow").await, world.effects("fast").await), (0, 1));
}

#[tokio::test]
async fn a_job_that_fails_takes_nothing_of_its_neighbours_with_it() {
    let world = World::start().await;
    let culprit = world.ending(&id(), "culprit", || StepError::fail("no"));
    neighbours_are_done(&world, culprit, |answer| assert_eq!(answer, &Answer::Fail("no".into()))).await;
    assert_eq!(world.rows().await, 3);
}

#[tokio::test]
async fn a_job_that_panics_takes_nothing_of_its_neighbours_with_it() {
    let world = World::start().await;
    let culprit = world.job(&id(), Op::Do, "culprit", |_, _| Box::pin(async { panic!("a bug") }));
    neighbours_are_done(&world, culprit, unknown_because("it panicked: a bug")).await;
    assert_eq!(world.rows().await, 2);
}

#[tokio::test]
async fn a_job_that_takes_too_long_takes_nothing_of_its_neighbours_with_it() {
    let world = World::start().await;
    let culprit = Job::new(id(), Op::Do, Duration::from_millis(50), |tx: &mut Tx, _| {
        Box::pin(async move {
            sqlx::raw_sql("SELECT pg_sleep(600)").execute(tx).await?;
            Ok(Encoded::null())
        })
    });
    neighbours_are_done(&world, culprit, unknown_because("not done within 50ms")).await;
}

#[tokio::test]
async fn a_job_that_passes_over_an_error_of_the_database_is_not_taken_for_done() {
    let world = World::start().await;
    let culprit = world.job(&id(), Op::Do, "culprit", |tx, _| {
        Box::pin(async move {
            let _ = sqlx::raw_sql("SELECT 1 / 0").execute(tx).await;
            Ok(Encoded::null())
        })
    });
    neighbours_are_done(&world, culprit, unknown_because("one of its statements had failed")).await;
}

#[tokio::test]
async fn a_job_that_kills_its_connection_takes_nothing_of_its_neighbours_with_it() {
    let world = World::start().await;
    let culprit = world.job(&id(), Op::Do, "culprit", |tx, _| {
        Box::pin(async move {
            sqlx::raw_sql("SELECT pg_terminate_backend(pg_backend_pid())").execute(tx).await?;
            Ok(Encoded::null())
        })
    });
    neighbours_are_done(&world, culprit, unknown_because("its connection ended each time")).await;
}

#[tokio::test]
async fn a_job_that_ends_the_transaction_is_told_not_to() {
    let world = World::start().await;
    for end in ["COMMIT", "ROLLBACK"] {
        let job = world.job(&id(), Op::Do, "x", move |tx, _| {
            Box::pin(async move {
                sqlx::raw_sql(end).execute(tx).await?;
                Ok(Encoded::null())
            })
        });
        unknown_because("ended the transaction")(&one(&world.inbox, job).await);
    }
}

#[tokio::test]
async fn a_constraint_that_is_checked_at_the_commit_hits_its_own_job_alone() {
    let world = World::start().await;
    world.sql("CREATE TABLE {schema}.late (n int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)").await;
    let sql = format!("INSERT INTO {0}.late VALUES (1); INSERT INTO {0}.late VALUES (1)", world.schema);
    let culprit = world.job(&id(), Op::Do, "culprit", move |tx, _| {
        let sql = sql.clone();
        Box::pin(async move {
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(tx).await?;
            Ok(Encoded::null())
        })
    });
    neighbours_are_done(&world, culprit, unknown_because("late_pkey")).await;
}

#[tokio::test]
async fn batches_that_deadlock_over_the_participants_own_tables_are_all_done() {
    let world = World::start().await;
    world.sql("CREATE TABLE {schema}.stock (sku int PRIMARY KEY, free int); INSERT INTO {schema}.stock VALUES (1, 0), (2, 0)").await;
    let take = |sku: i32| {
        let sql = format!("UPDATE {}.stock SET free = free - 1 WHERE sku = {sku}", world.schema);
        world.job(&id(), Op::Do, "taken", move |tx, _| {
            let sql = sql.clone();
            Box::pin(async move {
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(tx).await?;
                Ok(Encoded::null())
            })
        })
    };
    // The one takes 1 and then 2, the other 2 and then 1, again and again.
    let batches: Vec<Vec<Job<Tx>>> =
        (0..20).map(|n| if n % 2 == 0 { vec![take(1), take(2)] } else { vec![take(2), take(1)] }).collect();
    let work = batches.into_iter().map(|batch| {
        let inbox = world.inbox.clone();
        tokio::spawn(async move { inbox.handle(&batch).await.unwrap() })
    });
    for answers in futures::future::join_all(work).await {
        assert_eq!(answers.unwrap(), vec![undone(); 2]);
    }
    assert_eq!(world.count("SELECT sum(free)::bigint FROM {schema}.stock").await, -40);
    assert_eq!(world.effects("taken").await, 40);
}

/// Postgres looks for a deadlock after `deadlock_timeout` only, which is a minute here.
#[tokio::test]
async fn batches_in_each_others_way_do_not_wait_until_their_deadlock_is_found() {
    let postgres = Postgres::builder().setting("deadlock_timeout", "1min").start().await.unwrap();
    let world = World::on(&postgres).await;
    world.sql("CREATE TABLE {schema}.stock (sku int PRIMARY KEY, free int); INSERT INTO {schema}.stock VALUES (1, 0), (2, 0)").await;
    let both_hold_one = Arc::new(Barrier::new(2));
    let take = |sku: i32, meets: bool| {
        let sql = format!("UPDATE {}.stock SET free = free - 1 WHERE sku = {sku}", world.schema);
        let (barrier, meets) = (both_hold_one.clone(), Arc::new(AtomicBool::new(meets)));
        world.job(&id(), Op::Do, &format!("{sku} {meets:?}"), move |tx, _| {
            let (sql, barrier, meets) = (sql.clone(), barrier.clone(), meets.clone());
            Box::pin(async move {
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(tx).await?;
                if meets.swap(false, Ordering::Relaxed) {
                    barrier.wait().await;
                }
                Ok(Encoded::null())
            })
        })
    };
    let (here, there) = ([take(1, true), take(2, false)], [take(2, true), take(1, false)]);
    let both = async { tokio::join!(world.inbox.handle(&here), world.inbox.handle(&there)) };
    let (here, there) = timeout(LONG, both).await.unwrap();
    assert_eq!([here.unwrap(), there.unwrap()], [vec![undone(); 2], vec![undone(); 2]]);
    assert_eq!(world.count("SELECT sum(free)::bigint FROM {schema}.stock").await, -4);
    postgres.stop().await;
}

#[tokio::test]
async fn a_batch_that_is_impatient_does_not_make_a_no_of_it() {
    let world = World::start().await;
    world.sql("CREATE TABLE {schema}.stock (free int); INSERT INTO {schema}.stock VALUES (0)").await;
    let mut other = world.pool.begin().await.unwrap();
    let take = format!("UPDATE {}.stock SET free = free - 1", world.schema);
    sqlx::raw_sql(AssertSqlSafe(take.clone())).execute(&mut *other).await.unwrap();
    let tries = Arc::new(AtomicU32::new(0));
    let (counted, again) = (tries.clone(), Arc::new(Notify::new()));
    let told = again.clone();
    let no = world.job(&id(), Op::Do, "taken", move |tx, _| {
        let (take, counted, told) = (take.clone(), counted.clone(), told.clone());
        Box::pin(async move {
            if counted.fetch_add(1, Ordering::Relaxed) == 1 {
                told.notify_one();
            }
            sqlx::raw_sql(AssertSqlSafe(take)).execute(tx).await.map_err(StepError::fail)?;
            Ok(Encoded::null())
        })
    });
    let batch = [world.done(&id(), "before"), no];
    let release = async {
        // Once the batch has given up, and it runs by itself.
        again.notified().await;
        other.commit().await.unwrap();
    };
    let both = async { tokio::join!(world.inbox.handle(&batch), release) };
    let (answers, ()) = timeout(LONG, both).await.unwrap();
    assert_eq!(answers.unwrap(), [success("before"), undone()]);
    assert_eq!(tries.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_batch_has_no_more_patience_for_locks_than_its_connections() {
    let world = World::start().await;
    let patience = |name: &'static str| {
        world.job(&id(), Op::Do, name, |tx, _| {
            Box::pin(async move {
                let set: String = sqlx::query_scalar("SELECT current_setting('lock_timeout')").fetch_one(tx).await?;
                Ok(Encoded::of(&set)?)
            })
        })
    };
    for (set, alone, together) in [("0", "0", "250ms"), ("100ms", "100ms", "100ms"), ("2s", "2s", "250ms")] {
        let options = world.pool.connect_options().as_ref().clone().options([("lock_timeout", set)]);
        let pool = PgPool::connect_with(options).await.unwrap();
        let inbox = PgInbox::in_schema(pool, &world.schema).unwrap();
        assert_eq!(one(&inbox, patience("a")).await, success(alone));
        assert_eq!(
            inbox.handle(&[patience("b"), patience("c")]).await.unwrap(),
            [success(together), success(together)]
        );
    }
}

/// A session that nobody listens to any more would wait on, one for each time that the command comes again.
#[tokio::test]
async fn a_job_alone_gives_up_a_row_that_somebody_holds_and_leaves_nobody_in_the_queue_for_it() {
    let world = World::start().await;
    let id = id();
    one(&world.inbox, world.done(&id, "done")).await;
    let mut somebody = world.pool.begin().await.unwrap();
    let holder: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *somebody).await.unwrap();
    let hold = format!("SELECT FROM {}.saga_inbox FOR UPDATE", world.schema);
    sqlx::raw_sql(AssertSqlSafe(hold)).execute(&mut *somebody).await.unwrap();
    let again = tokio::spawn({
        let (inbox, job) = (world.another_node().await, world.done(&id, "again"));
        async move { one(&inbox, job).await }
    });
    let queue = format!(
        "SELECT (extract(epoch FROM xact_start) * 1000000)::bigint FROM pg_stat_activity
         WHERE {holder} = ANY (pg_blocking_pids(pid))"
    );
    let (mut tries, began) = (BTreeSet::new(), Instant::now());
    while tries.len() < 2 {
        let waiting: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(queue.clone())).fetch_all(&world.pool).await.unwrap();
        assert!(waiting.len() <= 1, "who was given up waits on");
        tries.extend(waiting);
        assert!(!again.is_finished() && began.elapsed() < LONG, "it does not try again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    somebody.rollback().await.unwrap();
    assert_eq!(again.await.unwrap(), success("done"));
    assert_eq!((world.effects("done").await, world.effects("again").await), (1, 0));
}

#[tokio::test]
async fn a_database_that_is_away_counts_against_nobody() {
    let world = World::start().await;
    let nobody = PgPoolOptions::new().acquire_timeout(Duration::from_millis(100));
    let inbox = PgInbox::new(nobody.connect_lazy("postgres://nobody@127.0.0.1:1/nothing").unwrap());
    let Err(Unavailable(_)) = inbox.handle(&[world.done(&id(), "a")]).await else { panic!("there is no database") };
}

#[tokio::test]
async fn a_database_that_crashes_in_the_middle_of_a_batch_has_its_effects_once() {
    let mut postgres = Postgres::private().await.unwrap();
    let world = World::on(&postgres).await;
    let (first, second) = (id(), id());
    let (slow, inside, go_on) = held(&world, &second, "second");
    let batch = [world.done(&first, "first"), slow];
    let again = async {
        loop {
            match world.inbox.handle(&batch).await {
                Ok(answers) if answers.iter().all(Answer::is_final) => return answers,
                _ => {}
            }
        }
    };
    let crash = async {
        inside.await.unwrap();
        postgres.crash().await.unwrap();
        go_on.notify_one();
    };
    let (answers, ()) = timeout(LONG, async { tokio::join!(again, crash) }).await.unwrap();
    assert_eq!(answers, [success("first"), success("second")]);
    assert_eq!((world.effects("first").await, world.effects("second").await), (1, 1));
}

#[tokio::test]
async fn connections_that_are_cut_at_any_moment_neither_lose_nor_repeat_an_effect() {
    let postgres = Postgres::private().await.unwrap();
    let world = World::on(&postgres).await;
    let killer = tokio::spawn({
        let pool = PgPool::connect(&world.url).await.unwrap();
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' AND xact_start IS NOT NULL";
        async move {
            let mut cut = 0;
            loop {
                let killed: Result<i64, _> = sqlx::query_scalar(sql).fetch_one(&pool).await;
                cut += killed.unwrap_or(0);
                if cut >= 60 {
                    return cut;
                }
                tokio::time::sleep(Duration::from_millis(7)).await;
            }
        }
    });
    let mut handled = 0;
    while !killer.is_finished() {
        let ids: Vec<CommandId> = (0..10).map(|_| id()).collect();
        // The answers are lost to the caller now and then as well, and the same batch comes again.
        for _ in 0..2 {
            loop {
                let batch: Vec<Job<Tx>> = ids.iter().map(|id| world.done(id, "counted")).collect();
                match world.inbox.handle(&batch).await {
                    Ok(answers) if answers.iter().all(Answer::is_final) => break,
                    _ => {}
                }
            }
        }
        handled += 10;
    }
    assert!(killer.await.unwrap() >= 60);
    assert_eq!(world.effects("counted").await, handled);
    assert_eq!(world.rows().await, handled);
}

#[tokio::test]
async fn what_is_old_is_forgotten_and_what_is_young_is_not() {
    let world = World::start().await;
    let batch: Vec<Job<Tx>> = (0..120).map(|_| world.done(&id(), "a")).collect();
    world.inbox.handle(&batch).await.unwrap();
    world.sql("UPDATE {schema}.saga_inbox SET received_at = now() - interval '8 days'").await;
    one(&world.inbox, world.done(&id(), "a")).await;
    let inbox = world.inbox.clone().keep_for(7 * DAY);
    assert_eq!(inbox.prune().await.unwrap(), 120);
    assert_eq!(world.rows().await, 1);
}

/// An inbox with one connection, as a user's, and what the statistics of the server say of its table.
struct Counted {
    inbox: PgInbox,
    pool: PgPool,
    schema: String,
}

impl Counted {
    async fn on(world: &World) -> Self {
        let pool = PgPoolOptions::new().max_connections(1).connect(&world.url).await.unwrap();
        let inbox = PgInbox::in_schema(pool.clone(), &world.schema).unwrap();
        Self { inbox, pool, schema: world.schema.clone() }
    }

    async fn number(&self, sql: &str) -> i64 {
        // What this connection has counted so far.
        sqlx::raw_sql("SELECT pg_stat_force_next_flush()").execute(&self.pool).await.unwrap();
        let sql = sql.replace("{schema}", &self.schema);
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap()
    }

    /// How many rows were read so far.
    async fn rows(&self) -> i64 {
        let rows = "SELECT (coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_user_tables WHERE relid = '{schema}.saga_inbox'::regclass";
        self.number(rows).await
    }

    /// How many entries of the index of times were read so far.
    async fn entries(&self) -> i64 {
        let entries = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelid = '{schema}.saga_inbox_received_at'::regclass";
        self.number(entries).await
    }
}

/// Old rows lie among young ones, as they do where space was used again.
#[tokio::test]
async fn what_is_old_is_forgotten_without_a_look_at_what_is_young() {
    let world = World::start().await;
    world
        .sql(
            "INSERT INTO {schema}.saga_inbox (saga_id, step, generation, outcome, received_at)
             SELECT gen_random_uuid(), 'step', 0, 0,
                    now() - n * interval '1 second' - CASE WHEN n % 20 = 0 THEN interval '60 days' ELSE interval '0' END
             FROM generate_series(1, 50000) n",
        )
        .await;
    world.sql("VACUUM ANALYZE {schema}.saga_inbox").await;
    let counted = Counted::on(&world).await;
    let before = counted.rows().await;
    assert_eq!(counted.inbox.prune().await.unwrap(), 2_500);
    let read = counted.rows().await - before;
    assert!(read <= 3 * 2_500, "{read} rows were read to remove 2500");
    world.sql("VACUUM {schema}.saga_inbox").await;
    let before = counted.rows().await;
    assert_eq!(counted.inbox.prune().await.unwrap(), 0);
    let read = counted.rows().await - before;
    assert!(read < 100, "{read} rows were read to remove none");
}

/// Behind somebody's long transaction no entry of an index goes away.
#[tokio::test]
async fn what_was_just_forgotten_is_not_passed_again() {
    let world = World::start().await;
    world
        .sql(
            "INSERT INTO {schema}.saga_inbox (saga_id, step, generation, outcome, received_at)
             SELECT gen_random_uuid(), 'step', 0, 0, now() - interval '60 days' - n * interval '1 second'
             FROM generate_series(1, 10000) n",
        )
        .await;
    let mut long = PgConnection::connect(&world.url).await.unwrap();
    let mut long = long.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    sqlx::raw_sql("SELECT count(*) FROM pg_class").execute(&mut *long).await.unwrap();
    let counted = Counted::on(&world).await;
    let before = counted.entries().await;
    assert_eq!(counted.inbox.prune().await.unwrap(), 10_000);
    let read = counted.entries().await - before;
    assert!(read < 20_000, "{read} entries were read to remove 10000 rows");
    long.rollback().await.unwrap();
}

const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test]
async fn an_inbox_that_forgets_before_its_topic_is_told_so() {
    let inbox = World::start().await.inbox.keep_for(9 * DAY);
    inbox.check_retention(Some(7 * DAY), 2 * DAY).unwrap();
    let error = inbox.check_retention(Some(7 * DAY), 3 * DAY).unwrap_err().to_string();
    assert!(error.contains("keeps its rows for 777600s, and a command may come again for 864000s"), "{error}");
    assert!(inbox.check_retention(None, DAY).unwrap_err().to_string().contains("may come again for ever"));
}

#[tokio::test]
async fn without_its_tables_it_says_what_to_do() {
    let postgres = testing::shared().await.unwrap();
    let pool = PgPool::connect(&postgres.url()).await.unwrap();
    let inbox = PgInbox::in_schema(pool, "not_there").unwrap();
    let job = Job::new(id(), Op::Do, LONG, |_: &mut Tx, _| Box::pin(async { Ok(Encoded::null()) }));
    let Err(Unavailable(reason)) = inbox.handle(&[job]).await else { panic!("there are no tables") };
    assert!(reason.contains("was `PgInbox::migrate` run on this database?"), "{reason}");
}
