//! The rules of one writer, one fence and one mailbox, each with the interleaving that it is there for: first with the rule, then
//! without it, to show what it holds up.

mod common;

use common::{Setup, WAITS, definition, entry, fresh, start};
use saga_core::{
    WorkerId,
    machine::Status,
    store::{Append, Appended, Mail, Posted, Ripe, Room, Started, Store, StoreError, Then},
};
use sqlx::{Connection, PgConnection};
use std::time::{Duration, Instant};

const LEASE: Duration = Duration::from_secs(60);
/// The advisory lock at which an edited statement waits, between its snapshot and its row locks.
const PAUSE: i64 = 4711;

/// Makes the appends wait at [`PAUSE`].
fn paused(name: &str, sql: String) -> String {
    match name {
        "append" => sql.replace("    FROM unnest($2", &format!("    FROM {WAITS} AS pause, unnest($2")),
        "append_one" | "change_one" => sql.replace("WHERE id = $2", &format!("WHERE id = $2 AND {WAITS} IS NOT NULL")),
        _ => sql,
    }
}

fn paused_without_the_fence(name: &str, sql: String) -> String {
    let paused = paused(name, sql);
    match name {
        "append" => paused.replace("    FOR NO KEY UPDATE OF s SKIP LOCKED\n", ""),
        "append_one" | "change_one" => paused.replace("FOR NO KEY UPDATE SKIP LOCKED", ""),
        _ => paused,
    }
}

fn ended(append: Append) -> Append {
    Append { status: Some(Status::Completed), then: Then::Release { due_in: None }, ..append }
}

/// A former owner's append has its snapshot; then the saga changes hands; then the append goes on. It adds an entry or
/// is the end, and goes alone or with another one.
async fn append_of_a_zombie(edit: fn(&str, String) -> String, is_end: bool, alone: bool) -> (Appended, usize) {
    let Setup { store, url, .. } = fresh(edit).await;
    let (zombie, heir) = (WorkerId::generate(), WorkerId::generate());
    store.join(zombie, LEASE, &[definition()]).await.unwrap();
    store.join(heir, LEASE, &[definition()]).await.unwrap();
    let (saga, other) = (start(&store, "k", Some(zombie)).await, start(&store, "other", Some(zombie)).await);
    let append = if is_end { ended(entry(saga, 1, 1)) } else { entry(saga, 1, 1) };
    let batch = if alone { vec![append] } else { vec![append, entry(other, 1, 1)] };
    let mut gate = PgConnection::connect(&url).await.unwrap();
    sqlx::query("SELECT pg_advisory_lock($1)").bind(PAUSE).execute(&mut gate).await.unwrap();
    let append = tokio::spawn({
        let store = store.clone();
        async move { store.append(zombie, &batch).await.unwrap()[0] }
    });
    common::until_somebody_waits_for_an_advisory_lock(&mut gate).await;
    store.leave(zombie).await.unwrap();
    assert_eq!(store.sweep(10).await.unwrap(), 2);
    assert_eq!(store.claim(heir, &[definition()], Ripe::Due, Room::of(10)).await.unwrap().len(), 2);
    sqlx::query("SELECT pg_advisory_unlock($1)").bind(PAUSE).execute(&mut gate).await.unwrap();
    let answer = append.await.unwrap();
    (answer, store.read(saga).await.unwrap().unwrap().journal.len())
}

#[tokio::test]
async fn rule_1_what_a_former_owner_sends_does_not_count() {
    for (is_end, alone) in [(false, false), (false, true), (true, false), (true, true)] {
        assert_eq!(append_of_a_zombie(paused, is_end, alone).await, (Appended::Lost, 0), "{is_end} {alone}");
    }
}

#[tokio::test]
async fn without_rule_1_a_join_on_owner_and_epoch_lets_a_zombie_through() {
    for (is_end, alone) in [(false, false), (false, true), (true, false), (true, true)] {
        let through = append_of_a_zombie(paused_without_the_fence, is_end, alone).await;
        assert_eq!(through, (Appended::Written, 1), "{is_end} {alone}");
    }
}

#[tokio::test]
async fn rule_1_a_row_that_another_transaction_holds_is_busy_and_holds_up_no_neighbour() {
    let Setup { store, url, schema } = fresh(|_, sql| sql).await;
    let worker = WorkerId::generate();
    store.join(worker, LEASE, &[definition()]).await.unwrap();
    let (held, free) = (start(&store, "held", Some(worker)).await, start(&store, "free", Some(worker)).await);
    let mut other = PgConnection::connect(&url).await.unwrap();
    let mut tx = other.begin().await.unwrap();
    let lock = format!("SELECT FROM {schema}.saga WHERE id = $1 FOR UPDATE");
    sqlx::query(sqlx::AssertSqlSafe(lock)).bind(held.as_uuid()).execute(&mut *tx).await.unwrap();
    let batch = [entry(held, 1, 1), entry(free, 1, 1)];
    assert_eq!(store.append(worker, &batch).await.unwrap(), [Appended::Busy, Appended::Written]);
    assert_eq!(store.append(worker, &batch[..1]).await.unwrap(), [Appended::Busy], "alone as well");
    assert_eq!(store.append(worker, &[ended(batch[0].clone())]).await.unwrap(), [Appended::Busy], "and its end");
    tx.rollback().await.unwrap();
    assert_eq!(store.append(worker, &batch[..1]).await.unwrap(), [Appended::Written]);
}

fn mail_that_locks(name: &str, sql: String) -> String {
    match name {
        "post" => sql.replace("    ORDER BY i.n\n    ON CONFLICT", "    FOR UPDATE OF s\n    ON CONFLICT"),
        _ => sql,
    }
}

/// Somebody's transaction has posted a message, and stays open. What becomes of the owner's append?
async fn append_beside_open_mail(edit: fn(&str, String) -> String) -> Appended {
    let Setup { store, url, .. } = fresh(edit).await;
    let worker = WorkerId::generate();
    store.join(worker, LEASE, &[definition()]).await.unwrap();
    let saga = start(&store, "k", Some(worker)).await;
    let mut user = PgConnection::connect(&url).await.unwrap();
    let mut tx = user.begin().await.unwrap();
    let post = store.statements().into_iter().find(|(name, _)| *name == "post").unwrap().1;
    let posted = sqlx::query(sqlx::AssertSqlSafe(post)).bind(vec![saga.as_uuid()]).bind(vec!["m"]).bind(vec![b"{}"]);
    posted.execute(&mut *tx).await.unwrap();
    store.append(worker, &[entry(saga, 1, 1)]).await.unwrap()[0]
}

#[tokio::test]
async fn rule_2_an_open_transaction_with_mail_in_it_holds_up_nobody() {
    assert_eq!(append_beside_open_mail(|_, sql| sql).await, Appended::Written);
}

#[tokio::test]
async fn without_rule_2_mail_that_touches_the_row_holds_up_its_owner() {
    assert_eq!(append_beside_open_mail(mail_that_locks).await, Appended::Busy);
}

fn claims_by_due_time_only(name: &str, sql: String) -> String {
    if name == "claim_mailed" { sql.replace("owner IS NULL", "false") } else { sql }
}

/// Mail is posted, but not committed; the owner sees none, and releases the saga; then the mail is committed. Who finds it?
async fn claims_after_a_late_commit(edit: fn(&str, String) -> String) -> usize {
    let Setup { store, url, .. } = fresh(edit).await;
    let worker = WorkerId::generate();
    store.join(worker, LEASE, &[definition()]).await.unwrap();
    let saga = start(&store, "k", Some(worker)).await;
    let mut user = PgConnection::connect(&url).await.unwrap();
    let mut tx = user.begin().await.unwrap();
    let post = store.statements().into_iter().find(|(name, _)| *name == "post").unwrap().1;
    let posted = sqlx::query(sqlx::AssertSqlSafe(post)).bind(vec![saga.as_uuid()]).bind(vec!["m"]).bind(vec![b"{}"]);
    posted.execute(&mut *tx).await.unwrap();
    assert_eq!(store.mail(worker, &[definition()], 10).await.unwrap(), []);
    let release = Append { then: Then::Release { due_in: None }, ..entry(saga, 1, 1) };
    assert_eq!(store.append(worker, &[release]).await.unwrap(), [Appended::Written]);
    tx.commit().await.unwrap();
    let claimed = store.claim(worker, &[definition()], Ripe::Mailed, Room::of(10)).await.unwrap();
    assert!(claimed.iter().all(|record| record.mail.len() == 1));
    claimed.len()
}

#[tokio::test]
async fn rule_3_mail_that_commits_just_after_a_release_is_found() {
    assert_eq!(claims_after_a_late_commit(|_, sql| sql).await, 1);
}

/// Letters of others come and go meanwhile, and looks read on after them.
#[tokio::test]
async fn rule_3_mail_whose_transaction_is_open_for_long_is_found_by_the_next_look() {
    let Setup { store, url, .. } = fresh(|_, sql| sql).await;
    let worker = WorkerId::generate();
    store.join(worker, LEASE, &[definition()]).await.unwrap();
    let (saga, busy) = (start(&store, "k", Some(worker)).await, start(&store, "busy", Some(worker)).await);
    let release = Append { then: Then::Release { due_in: None }, ..entry(saga, 1, 1) };
    assert_eq!(store.append(worker, &[release]).await.unwrap(), [Appended::Written]);
    let post = store.statements().into_iter().find(|(name, _)| *name == "post").unwrap().1;
    let mut user = PgConnection::connect(&url).await.unwrap();
    let mut tx = user.begin().await.unwrap();
    let late = sqlx::query(sqlx::AssertSqlSafe(post)).bind(vec![saga.as_uuid()]).bind(vec!["late"]).bind(vec![b"{}"]);
    late.execute(&mut *tx).await.unwrap();
    let began = Instant::now();
    let mut seq = 0;
    while began.elapsed() < Duration::from_secs(3) {
        seq += 1;
        let mail = Mail { saga: busy, message: format!("m{seq}"), body: b"{}".to_vec() };
        assert_eq!(store.post(std::slice::from_ref(&mail)).await.unwrap(), [Posted::Accepted]);
        assert!(store.mail(worker, &[definition()], 10).await.unwrap().contains(&mail));
        let read = Append { read: vec![mail.message], ..entry(busy, 1, seq) };
        assert_eq!(store.append(worker, &[read]).await.unwrap(), [Appended::Written]);
        assert!(store.claim(worker, &[definition()], Ripe::Mailed, Room::of(10)).await.unwrap().is_empty());
    }
    tx.commit().await.unwrap();
    let claimed = store.claim(worker, &[definition()], Ripe::Mailed, Room::of(10)).await.unwrap();
    assert_eq!(claimed.iter().map(|record| record.saga).collect::<Vec<_>>(), [saga]);
}

#[tokio::test]
async fn without_rule_3_a_release_that_trusts_its_look_into_the_mailbox_loses_the_wake_up() {
    assert_eq!(claims_after_a_late_commit(claims_by_due_time_only).await, 0);
}

#[tokio::test]
async fn rule_3_mail_never_steals_a_live_claim() {
    let Setup { store, .. } = fresh(|_, sql| sql).await;
    let (owner, other) = (WorkerId::generate(), WorkerId::generate());
    store.join(owner, LEASE, &[definition()]).await.unwrap();
    store.join(other, LEASE, &[definition()]).await.unwrap();
    let saga = start(&store, "k", Some(owner)).await;
    let mail = Mail { saga, message: "m".into(), body: b"{}".to_vec() };
    assert_eq!(store.post(std::slice::from_ref(&mail)).await.unwrap(), [Posted::Accepted]);
    for ripe in [Ripe::Mailed, Ripe::Due] {
        assert!(store.claim(other, &[definition()], ripe, Room::of(10)).await.unwrap().is_empty());
    }
    assert_eq!(store.mail(owner, &[definition()], 10).await.unwrap(), [mail]);
}

fn buries_by_an_old_look(name: &str, sql: String) -> String {
    match name {
        "bury" => "SELECT 1".into(),
        "orphans" => sql.replace("saga_worker UNION ALL", "saga_worker WHERE expires_at > now() UNION ALL"),
        _ => sql,
    }
}

/// A heartbeat is under way, in time but not committed, while another node looks for dead workers.
async fn swept_beside_a_heartbeat(edit: fn(&str, String) -> String) -> usize {
    let Setup { store, url, schema } = fresh(edit).await;
    let worker = WorkerId::generate();
    store.join(worker, Duration::from_millis(300), &[definition()]).await.unwrap();
    start(&store, "k", Some(worker)).await;
    let mut late = PgConnection::connect(&url).await.unwrap();
    let mut tx = late.begin().await.unwrap();
    let beat = store.statements().into_iter().find(|(name, _)| *name == "beat").unwrap().1;
    let beating = sqlx::query(sqlx::AssertSqlSafe(beat)).bind(worker.as_uuid()).bind(60_000_i64);
    assert_eq!(beating.fetch_all(&mut *tx).await.unwrap().len(), 1);
    common::until(&store, &format!("SELECT expires_at <= now() FROM {schema}.saga_worker")).await;
    let sweep = tokio::spawn({
        let store = store.clone();
        async move {
            loop {
                // It waits for the heartbeat for no longer than its lock timeout, and then looks again.
                match store.sweep(10).await {
                    Err(StoreError::Contention(_)) => {}
                    swept => return swept.unwrap(),
                }
            }
        }
    });
    if edit("bury", String::new()).is_empty() {
        common::until(&store, "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)").await;
        tx.commit().await.unwrap();
        return sweep.await.unwrap();
    }
    let swept = sweep.await.unwrap();
    tx.commit().await.unwrap();
    swept
}

#[tokio::test]
async fn rule_3_a_heartbeat_under_way_keeps_the_worker_alive() {
    assert_eq!(swept_beside_a_heartbeat(|_, sql| sql).await, 0);
}

#[tokio::test]
async fn without_the_lock_on_the_workers_row_a_living_worker_is_robbed() {
    assert_eq!(swept_beside_a_heartbeat(buries_by_an_old_look).await, 1);
}

fn forgets_who_wrote(name: &str, sql: String) -> String {
    if name == "append_written" { sql.replace("j.writer", "NULL::uuid AS writer") } else { sql }
}

/// The append that ended the saga was committed, its answer was lost, and it is sent again.
async fn append_sent_again(edit: fn(&str, String) -> String) -> Appended {
    let Setup { store, .. } = fresh(edit).await;
    let worker = WorkerId::generate();
    store.join(worker, LEASE, &[definition()]).await.unwrap();
    let saga = start(&store, "k", Some(worker)).await;
    let last = ended(entry(saga, 1, 1));
    assert_eq!(store.append(worker, std::slice::from_ref(&last)).await.unwrap(), [Appended::Written]);
    store.append(worker, &[last]).await.unwrap()[0]
}

#[tokio::test]
async fn rule_5_an_append_whose_answer_was_lost_is_recognised() {
    assert_eq!(append_sent_again(|_, sql| sql).await, Appended::Written);
}

#[tokio::test]
async fn without_rule_5_an_end_that_was_committed_counts_as_lost() {
    assert_eq!(append_sent_again(forgets_who_wrote).await, Appended::Lost);
}

#[tokio::test]
async fn rule_5_the_first_statement_that_is_still_under_way_does_not_write_twice() {
    let Setup { store, url, .. } = fresh(paused).await;
    let worker = WorkerId::generate();
    store.join(worker, LEASE, &[definition()]).await.unwrap();
    let saga = start(&store, "k", Some(worker)).await;
    let mut gate = PgConnection::connect(&url).await.unwrap();
    sqlx::query("SELECT pg_advisory_lock($1)").bind(PAUSE).execute(&mut gate).await.unwrap();
    let both: Vec<_> = (0..2)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.append(worker, &[entry(saga, 1, 1)]).await.unwrap()[0] })
        })
        .collect();
    common::until_somebody_waits_for_an_advisory_lock(&mut gate).await;
    sqlx::query("SELECT pg_advisory_unlock($1)").bind(PAUSE).execute(&mut gate).await.unwrap();
    for append in both {
        // Busy is tried again by the engine; it is never a second entry, and never a loss.
        assert!(matches!(append.await.unwrap(), Appended::Written | Appended::Busy));
    }
    assert_eq!(store.append(worker, &[entry(saga, 1, 1)]).await.unwrap(), [Appended::Written]);
    assert_eq!(store.read(saga).await.unwrap().unwrap().journal.len(), 1);
}

#[tokio::test]
async fn rule_10_a_refused_entry_is_told_apart_from_a_lost_connection() {
    let Setup { store, schema, .. } = fresh(|_, sql| sql).await;
    let worker = WorkerId::generate();
    store.join(worker, LEASE, &[definition()]).await.unwrap();
    let check = format!("ALTER TABLE {schema}.saga_journal ADD CHECK (octet_length(entry) < 100)");
    sqlx::query(sqlx::AssertSqlSafe(check)).execute(store.pool()).await.unwrap();
    let (good, bad) = (start(&store, "good", Some(worker)).await, start(&store, "bad", Some(worker)).await);
    let oversized = Append { entry: Some(vec![b' '; 200]), ..entry(bad, 1, 1) };
    let batch = [entry(good, 1, 1), oversized];
    assert!(matches!(store.append(worker, &batch).await, Err(StoreError::Rejected(_))));
    assert_eq!(store.append(worker, &batch[..1]).await.unwrap(), [Appended::Written]);
}

#[tokio::test]
async fn rule_13_an_existing_key_is_read_in_a_second_statement() {
    let Setup { store, url, schema } = fresh(|_, sql| sql).await;
    let mut first = PgConnection::connect(&url).await.unwrap();
    let insert = |id: &str| {
        format!(
            "INSERT INTO {schema}.saga (id, name, version, key, input) VALUES ('{id}', 'order', 1, 'k', '1') ON CONFLICT DO NOTHING RETURNING id"
        )
    };
    let mut tx = first.begin().await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(insert("00000000-0000-7000-8000-000000000001"))).execute(&mut *tx).await.unwrap();
    // With the rule: the insert waits, and the second statement sees what it waited for.
    let submitted = tokio::spawn({
        let store = store.clone();
        async move {
            let start = common::new_start("k", None);
            loop {
                // It waits for no longer than its lock timeout, and is sent again.
                match store.start(std::slice::from_ref(&start)).await {
                    Err(StoreError::Contention(_)) => {}
                    answer => return answer,
                }
            }
        }
    });
    // Without: one statement that inserts or reads has a snapshot from before.
    let mut naive = PgConnection::connect(&url).await.unwrap();
    let in_one = format!(
        "WITH new AS ({}) SELECT id FROM new UNION ALL SELECT id FROM {schema}.saga WHERE name = 'order' AND key = 'k'",
        insert("00000000-0000-7000-8000-000000000002")
    );
    let naive =
        tokio::spawn(
            async move { sqlx::query(sqlx::AssertSqlSafe(in_one)).fetch_all(&mut naive).await.unwrap().len() },
        );
    common::until(&store, "SELECT count(*) = 2 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'").await;
    tx.commit().await.unwrap();
    assert!(matches!(submitted.await.unwrap().unwrap()[..], [Started::Existing { same_input: true, .. }]));
    assert_eq!(naive.await.unwrap(), 0, "neither inserted nor found");
}

#[tokio::test]
async fn rule_13_waiting_for_somebodys_open_transaction_ends_in_a_typed_error() {
    let Setup { store, url, schema } = fresh(|_, sql| sql).await;
    let mut first = PgConnection::connect(&url).await.unwrap();
    let mut tx = first.begin().await.unwrap();
    let insert = format!(
        "INSERT INTO {schema}.saga (id, name, version, key, input) VALUES (gen_random_uuid(), 'order', 1, 'k', '1')"
    );
    sqlx::query(sqlx::AssertSqlSafe(insert)).execute(&mut *tx).await.unwrap();
    assert!(matches!(store.start(&[common::new_start("k", None)]).await, Err(StoreError::Contention(_))));
    assert_eq!(store.start(&[common::new_start("another", None)]).await.unwrap(), [Started::New]);
}

#[tokio::test]
async fn rule_13_a_key_that_somebodys_open_transaction_holds_delays_no_other_start() {
    let Setup { store, url, .. } = fresh(|_, sql| sql).await;
    let engine = saga_core::Engine::builder(store.clone()).start().await.unwrap();
    let orders = engine.sagas::<common::Order>();
    let mut user = PgConnection::connect(&url).await.unwrap();
    let mut tx = user.begin().await.unwrap();
    let held = common::start_in(&store, &mut tx, "held").await.unwrap();
    let waiting = tokio::spawn({
        let orders = orders.clone();
        // It has its own patience, which ends in contention.
        async move {
            loop {
                match orders.submit("held", 1).await {
                    Err(saga_core::Error::Store(StoreError::Contention(_))) => {}
                    submitted => break submitted,
                }
            }
        }
    });
    let began = Instant::now();
    let others = (0..200).map(|n| orders.submit(format!("other {n}"), 1));
    for other in futures::future::join_all(others).await {
        other.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(!waiting.is_finished());
    tx.commit().await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().id(), held.id());
}

#[tokio::test]
async fn rule_13_a_serialization_failure_in_the_users_transaction_is_a_typed_error() {
    let Setup { store, url, schema } = fresh(|_, sql| sql).await;
    let mut user = PgConnection::connect(&url).await.unwrap();
    let mut tx = user.begin().await.unwrap();
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *tx).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("SELECT FROM {schema}.saga"))).execute(&mut *tx).await.unwrap();
    start(&store, "k", None).await;
    let error = common::start_in(&store, &mut tx, "k").await.unwrap_err();
    assert!(matches!(error, saga_core::Error::Store(StoreError::Contention(_))), "{error}");
}
