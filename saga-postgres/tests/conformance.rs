//! The store in Postgres keeps every promise of a store, and each of its rules is needed for that.
#![cfg(all(feature = "testing", unix))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use futures::{StreamExt, stream};
use saga_core::testing::conformance;
use saga_postgres::{PgStore, testing};

/// Changes one statement, by its name.
type Edit = fn(&str, String) -> String;

/// A store in a schema of its own.
async fn fresh(edit: Edit) -> PgStore {
    let postgres = testing::shared().await.unwrap();
    let options = PgStore::options(&postgres.url()).unwrap().schema(postgres.schema());
    let store = options.connections(4).edit_sql(edit).connect().await.unwrap();
    store.migrate().await.unwrap();
    store
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_postgres_store_conforms() {
    conformance::store(async || fresh(|_, sql| sql).await).await;
}

/// What goes wrong without a rule: the statement, the change, and the case that notices.
const MUTANTS: &[(&str, Edit, &str)] = &[
    ("append checks the owner only", without_the_epoch, "append::what_a_worker_sends_under_its_former_claim_is_lost"),
    ("append checks the epoch only", without_the_owner, "append::an_append_by_somebody_else_is_lost"),
    (
        "append checks without a lock",
        without_locks,
        "append::an_append_that_races_with_a_takeover_is_written_before_it_or_lost",
    ),
    (
        "a refused append reads mail",
        |name, sql| {
            replaced(name, sql, "append", "IN (SELECT id FROM locked WHERE mine)", "IN (SELECT id FROM locked)")
        },
        "mailbox::a_lost_append_reads_nothing",
    ),
    (
        "a refused append keeps its snapshot",
        |name, sql| replaced(name, sql, "append", "FROM locked WHERE mine AND snapshot", "FROM locked WHERE snapshot"),
        "claim::a_snapshot_of_an_append_that_is_refused_is_not_kept",
    ),
    (
        "a claim is not weighed",
        |name, sql| replaced(name, sql, "claim_due", "weighed.bytes_before < $5::bigint", "$5::bigint IS NOT NULL"),
        "claim::a_claim_takes_no_more_than_there_is_room_for_but_one_at_least",
    ),
    (
        "suspects are claimed",
        |name, sql| replaced(name, sql, "claim_due", "lapses - coalesce", "$6::integer - coalesce"),
        "claim::a_claim_leaves_what_lapsed_more_often_than_it_was_asked",
    ),
    (
        "suspects are claimed for their mail",
        |name, sql| replaced(name, sql, "claim_mailed", "lapses - coalesce", "$6::integer - coalesce"),
        "claim::a_claim_leaves_what_lapsed_more_often_than_it_was_asked",
    ),
    (
        "the oldest mail comes first, whosever it is",
        |name, sql| replaced(name, sql, "mail", "    ORDER BY u.turn, u.heavy, u.place\n", "    ORDER BY u.position\n"),
        "mailbox::a_saga_with_much_mail_keeps_no_other_from_its_own",
    ),
    (
        "mail is read in all sagas",
        |name, sql| replaced(name, sql, "append", "m.saga_id = r.saga_id AND m.message", "m.message"),
        "mailbox::a_message_is_read_by_the_append_that_folds_it",
    ),
    (
        "a claim keeps the epoch",
        |name, sql| replaced(name, sql, "claim_due", "epoch = s.epoch + 1, ", ""),
        "claim::the_epoch_grows_with_every_claim",
    ),
    (
        "claims do not lock what they choose",
        |name, sql| replaced(name, sql, "claim_due", "FOR NO KEY UPDATE SKIP LOCKED", ""),
        "claim::of_two_claims_at_the_same_time_each_gets_sagas_of_its_own",
    ),
    (
        "mail steals owned sagas",
        |name, sql| replaced(name, sql, "claim_mailed", "owner IS NULL AND ", ""),
        "mailbox::mail_does_not_steal_an_owned_saga",
    ),
    (
        "mail wakes the dead",
        |name, sql| replaced(name, sql, "claim_mailed", " AND status < 3", ""),
        "append::an_ended_saga_is_not_claimable_even_with_mail",
    ),
    (
        "names and versions are matched apart",
        |name, sql| {
            let sql = replaced(name, sql, "claim_mailed", "AND version = d.version AND read_at", "AND read_at");
            let (both, one) = ("(name, version) IN (SELECT name, version FROM", "name IN (SELECT name FROM");
            replaced(name, sql, "claim_mailed", both, one)
        },
        "claim::only_the_given_definitions_are_claimed",
    ),
    (
        "a sweep counts no lapse",
        |name, sql| replaced(name, sql, "sweep", ", lapses = s.lapses + 1", ""),
        "lease::every_lapse_is_counted_once",
    ),
    (
        "a disowned saga keeps its epoch, a claim as well",
        |name, sql| match name {
            "disown" => replaced(name, sql, "disown", ", epoch = s.epoch + 1", ""),
            _ => replaced(name, sql, "claim_due", "epoch = s.epoch + 1, ", ""),
        },
        "lease::a_disowned_saga_that_its_worker_claims_again_has_another_epoch",
    ),
    (
        "a sweep does not say who was lost",
        |name, sql| replaced(name, sql, "sweep", "THEN s.owner END", "THEN NULL::uuid END"),
        "lease::a_lapse_is_survived_by_a_worker_that_comes_back",
    ),
    (
        "everybody's sagas are disowned",
        |name, sql| replaced(name, sql, "disown", "s.owner = $1 AND", "$1::uuid IS NOT NULL AND"),
        "lease::only_what_a_worker_owns_is_disowned",
    ),
    (
        "a later claim is disowned as well",
        |name, sql| replaced(name, sql, "disown", " AND s.epoch = i.claimed", ""),
        "lease::a_disown_that_comes_late_takes_no_saga_from_a_later_claim",
    ),
];

/// The three forms of an append.
fn appends(name: &str, sql: String, all: (&str, &str), one: (&str, &str)) -> String {
    match name {
        "append" => replaced(name, sql, "append", all.0, all.1),
        "append_one" | "change_one" => replaced(name, sql, name, one.0, one.1),
        _ => sql,
    }
}

fn without_the_epoch(name: &str, sql: String) -> String {
    appends(name, sql, (" AND s.epoch = i.claimed AS mine", " AS mine"), ("epoch = $3", "$3::bigint IS NOT NULL"))
}

fn without_the_owner(name: &str, sql: String) -> String {
    appends(name, sql, ("s.owner = $1 AND s.epoch", "s.epoch"), ("owner = $1 AND epoch", "epoch"))
}

/// It takes its time between the check and the write, or it would be noticed on some days only.
fn without_locks(name: &str, sql: String) -> String {
    let slow = ("AS mine", "AS mine, pg_sleep(0.05) AS dawdled");
    let sql = match name {
        "append" => sql.replacen(slow.0, slow.1, 1),
        _ => appends(name, sql, slow, slow),
    };
    let locks = ("FOR NO KEY UPDATE OF s SKIP LOCKED", "");
    appends(name, sql, locks, ("FOR NO KEY UPDATE SKIP LOCKED", ""))
}

fn replaced(name: &str, sql: String, statement: &str, from: &str, to: &str) -> String {
    if name != statement {
        return sql;
    }
    assert!(sql.contains(from), "{statement} does not say {from:?} any more: change the mutant with it");
    sql.replace(from, to)
}

/// Some of the cases are races: a mutant may get through once, but not every time.
async fn is_noticed(edit: Edit, case: &str) -> bool {
    for _ in 0..10 {
        if let Err(broken) = conformance::case(case).unwrap().try_on(fresh(edit).await).await {
            println!("{case}\n    {broken}");
            return true;
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_a_rule_a_promise_is_broken() {
    let unnoticed: Vec<&str> = stream::iter(MUTANTS)
        .map(async |(mutant, edit, case)| (!is_noticed(*edit, case).await).then_some(*mutant))
        .buffer_unordered(6)
        .filter_map(async |unnoticed| unnoticed)
        .collect()
        .await;
    assert!(unnoticed.is_empty(), "nobody noticed that {unnoticed:?}");
}
