//! Every statement is one that Postgres can prepare, and the ones that are sent all the time use the indexes made for them, by the
//! very plans that the store uses.

mod common;

use common::{Order, Setup, fresh};
use saga_core::{Engine, WorkerId, store::Store};
use saga_postgres::{InTransaction, PgStore};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

#[tokio::test]
async fn postgres_can_prepare_every_statement() {
    let Setup { store, .. } = fresh(|_, sql| sql).await;
    let mut connection = store.pool().acquire().await.unwrap();
    for (name, sql) in store.statements() {
        let prepared =
            sqlx::raw_sql(AssertSqlSafe(format!("PREPARE prepared_{name} AS {sql}"))).execute(&mut *connection).await;
        assert!(prepared.is_ok(), "{name}: {prepared:?}");
    }
}

/// The plan of a statement on many sagas, as the store's connections make it.
async fn plan(name: &str, arguments: &str) -> String {
    let Setup { store, schema, .. } = fresh(|_, sql| sql).await;
    fill(&store, &schema).await;
    let sql = store.statements().into_iter().find(|(other, _)| *other == name).unwrap().1;
    let mut connection = store.pool().acquire().await.unwrap();
    let prepare = format!("PREPARE statement AS {sql}");
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut *connection).await.unwrap();
    let explain = format!("EXPLAIN (ANALYZE, COSTS off, TIMING off) EXECUTE statement{arguments}");
    let rows = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(&mut *connection).await.unwrap();
    rows.iter().map(|row| row.get::<String, _>(0) + "\n").collect()
}

/// Twenty thousand sagas: most have ended, some are due, some later, some are owned, some have mail. And as many commands,
/// one a day.
async fn fill(store: &PgStore, schema: &str) {
    let owner = WorkerId::generate();
    let sql = format!(
        "INSERT INTO {schema}.saga (id, name, version, key, status, input, owner, due_at)
         SELECT gen_random_uuid(), 'order', 1 + n % 2, n::text, CASE WHEN n % 10 < 7 THEN 3 ELSE 0 END, '1',
                CASE WHEN n % 10 = 7 THEN '{owner}'::uuid END,
                CASE WHEN n % 10 > 7 THEN now() + (n % 200 - 100) * interval '1 second' END
         FROM generate_series(1, 20000) n;
         INSERT INTO {schema}.saga_journal (saga_id, seq, writer, entry)
         SELECT id, seq, '{owner}', '[]' FROM {schema}.saga, generate_series(1, 3) seq;
         INSERT INTO {schema}.saga_mailbox (saga_id, message, body, read_at, name, version)
         SELECT id, 'm', '{{}}', CASE WHEN key LIKE '%99' THEN NULL ELSE now() END, name, version FROM {schema}.saga;
         INSERT INTO {schema}.saga_inbox (saga_id, step, generation, outcome, received_at)
         SELECT id, 'step', 0, 0, now() - key::integer * interval '1 day' FROM {schema}.saga;
         ANALYZE {schema}.saga, {schema}.saga_journal, {schema}.saga_mailbox, {schema}.saga_inbox;"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(store.pool()).await.unwrap();
}

const WORKER: &str = "'00000000-0000-4000-8000-000000000001'";

#[tokio::test]
async fn a_claim_walks_the_index_of_due_work_in_its_order_and_stops_at_its_limit() {
    let plan = plan("claim_due", &format!("({WORKER}, '{{order}}', '{{1}}', 50, 1000000, 9, 'infinity', 10)")).await;
    assert!(plan.contains("Index Scan using saga_due"), "{plan}");
    assert!(!plan.contains("Seq Scan"), "{plan}");
    // The rows come out of the index in order: there is no sort below the lock, and no more rows are locked than are claimed.
    let (lock, weighed) = (plan.find("LockRows").unwrap(), plan.find("Subquery Scan on weighed").unwrap());
    assert!(!plan[lock..weighed].contains("Sort"), "{plan}");
    assert!(plan.contains("LockRows (actual rows=50"), "{plan}");
}

#[tokio::test]
async fn a_claim_for_mail_looks_at_unread_mail_only() {
    let plan = plan("claim_mailed", &format!("({WORKER}, '{{order}}', '{{1}}', 50, 1000000, 9, 0)")).await;
    assert!(plan.contains("saga_mailbox_for") && plan.contains("saga_pkey"), "{plan}");
    assert!(!plan.contains("Seq Scan"), "{plan}");
}

/// How many pages a statement reads, as the store's connections plan it, beside somebody's long transaction.
async fn pages(store: &PgStore, name: &str, arguments: &str) -> u64 {
    let sql = store.statements().into_iter().find(|(other, _)| *other == name).unwrap().1;
    let mut connection = store.pool().acquire().await.unwrap();
    let prepare = format!("PREPARE counted AS {sql}");
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut *connection).await.unwrap();
    let explain = format!("EXPLAIN (ANALYZE, BUFFERS, TIMING off) EXECUTE counted{arguments}");
    let rows = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(&mut *connection).await.unwrap();
    sqlx::raw_sql("DEALLOCATE counted").execute(&mut *connection).await.unwrap();
    let plan: String = rows.iter().map(|row| row.get::<String, _>(0) + "\n").collect();
    // Of the first node, which counts those of all others.
    let buffers = plan.lines().find(|line| line.contains("Buffers: shared")).unwrap_or_else(|| panic!("{plan}"));
    let pages = buffers.split_whitespace().filter_map(|word| word.strip_prefix("hit=").or(word.strip_prefix("read=")));
    pages.map(|pages| pages.parse::<u64>().unwrap()).sum()
}

/// Twenty thousand sagas were due and have ended since, and no vacuum can remove what is left of that.
#[tokio::test]
async fn a_look_for_due_sagas_does_not_read_what_was_claimed_before() {
    let Setup { store, url, schema } = fresh(|_, sql| sql).await;
    let mut long = PgConnection::connect(&url).await.unwrap();
    let mut tx = long.begin().await.unwrap();
    sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1").execute(&mut *tx).await.unwrap();
    let past = format!(
        "INSERT INTO {schema}.saga (id, name, version, key, input, due_at)
         SELECT gen_random_uuid(), 'order', 1, n::text, '1', now() - interval '1 minute' FROM generate_series(1, 20000) n;
         UPDATE {schema}.saga SET due_at = NULL, status = 3;
         ANALYZE {schema}.saga"
    );
    sqlx::raw_sql(AssertSqlSafe(past)).execute(store.pool()).await.unwrap();
    let look = |from: &str| format!("({WORKER}, '{{order}}', '{{1}}', 50, 1000000, 9, '{from}', 10)");
    let (full, short) =
        (pages(&store, "claim_due", &look("-infinity")).await, pages(&store, "claim_due", &look("infinity")).await);
    assert!(short < 50 && full > 20 * short, "{short} of {full} pages");
    tx.rollback().await.unwrap();
}

/// Twenty thousand letters wait for a version that nobody runs.
#[tokio::test]
async fn letters_to_strangers_cost_nothing() {
    let Setup { store, schema, .. } = fresh(|_, sql| sql).await;
    let letters = format!(
        "INSERT INTO {schema}.saga (id, name, version, key, input, owner, epoch)
         SELECT gen_random_uuid(), 'order', 1 + n % 2, n::text, '1', CASE WHEN n % 2 = 0 AND n <= 400 THEN {WORKER}::uuid END, 1
         FROM generate_series(1, 40000) n;
         INSERT INTO {schema}.saga_mailbox (saga_id, message, body, name, version)
         SELECT id, 'm', '{{}}', name, version FROM {schema}.saga WHERE version = 2 OR key IN ('2', '4');
         ANALYZE {schema}.saga, {schema}.saga_mailbox"
    );
    sqlx::raw_sql(AssertSqlSafe(letters)).execute(store.pool()).await.unwrap();
    let claim = pages(&store, "claim_mailed", &format!("({WORKER}, '{{order}}', '{{1}}', 50, 1000000, 9, 0)")).await;
    assert!(claim < 50, "{claim} pages");
    // A few for each of the two that have some.
    let mail = pages(&store, "mail", &format!("({WORKER}, '{{order}}', '{{1}}', 1000, 1000000, 0)")).await;
    assert!(mail < 50, "{mail} pages");
}

/// There are more letters before them than are looked at in one go.
#[tokio::test]
async fn letters_to_a_saga_that_has_ended_are_dropped_behind_any_number_of_others() {
    let Setup { store, schema, .. } = fresh(|_, sql| sql).await;
    let fill = format!(
        "INSERT INTO {schema}.saga (id, name, version, key, status, input)
         SELECT ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'order', 1, n::text, CASE WHEN n > 12000 THEN 3 ELSE 0 END, '1'
         FROM generate_series(1, 12001) n;
         INSERT INTO {schema}.saga_mailbox (saga_id, message, body, name, version)
         SELECT id, 'm', '{{}}', name, version FROM {schema}.saga"
    );
    sqlx::raw_sql(AssertSqlSafe(fill)).execute(store.pool()).await.unwrap();
    for _ in 0..3 {
        store.sweep(10).await.unwrap();
    }
    let left = format!("SELECT count(*) FROM {schema}.saga_mailbox");
    let left: i64 = sqlx::query_scalar(AssertSqlSafe(left)).fetch_one(store.pool()).await.unwrap();
    assert_eq!(left, 12_000);
}

#[tokio::test]
async fn what_an_inbox_forgets_is_walked_by_its_time_and_no_further_than_the_limit() {
    let plan = plan("inbox_prune", "(86400, 50, '-infinity')").await;
    assert!(plan.contains("Index Scan using saga_inbox_received_at") && plan.contains("Tid Scan"), "{plan}");
    assert!(!plan.contains("Seq Scan") && !plan.contains("Sort"), "{plan}");
    assert!(plan.contains("LockRows (actual rows=50"), "{plan}");
}

#[tokio::test]
async fn a_census_reads_no_more_than_what_is_parked_and_one_saga_of_each_name() {
    let plan = plan("census", "('{order}')").await;
    assert!(plan.contains("saga_parked"), "{plan}");
    assert!(plan.contains("saga_unfinished on saga s_1 (actual rows=1 loops=1)"), "{plan}");
    assert!(!plan.contains("Seq Scan") && !plan.contains("Sort"), "{plan}");
}

#[tokio::test]
async fn an_append_finds_its_rows_by_their_keys() {
    let arguments = format!(
        "({WORKER}, ARRAY[gen_random_uuid()], '{{1}}', '{{1}}', ARRAY['x'::bytea], '{{3}}', '{{f}}', '{{0}}', ARRAY[gen_random_uuid()], '{{m}}', '{{0}}', ARRAY['s'::bytea])"
    );
    let plan = plan("append", &arguments).await;
    assert!(plan.contains("Index Scan using saga_pkey") && plan.contains("saga_mailbox_pkey"), "{plan}");
    assert!(!plan.contains("Seq Scan"), "{plan}");
}

#[tokio::test]
async fn the_searches_for_what_is_rare_look_at_that_alone() {
    let swept = plan("returned_swept", &format!("({WORKER}, 10)")).await;
    assert!(swept.contains("saga_lost_with") && !swept.contains("Seq Scan"), "{swept}");
    let left = plan("returned_left", &format!("({WORKER})")).await;
    assert!(left.contains("saga_owner") && left.contains("saga_lost_with") && !left.contains("Seq Scan"), "{left}");
    let set_back = plan("set_back", "(10)").await;
    assert!(set_back.contains("saga_due_since") && !set_back.contains("Seq Scan"), "{set_back}");
    let unclaimable = plan("unclaimable", "").await;
    assert!(unclaimable.contains("saga_due") && !unclaimable.contains("Seq Scan on saga "), "{unclaimable}");
}

#[tokio::test]
async fn the_search_for_orphans_looks_at_owned_sagas_only() {
    let plan = plan("orphans", "").await;
    assert!(plan.contains("saga_owner"), "{plan}");
    assert!(!plan.contains("Seq Scan on saga "), "{plan}");
}

/// How many rows of these tables this connection has read by scans of the whole table.
async fn scanned(connection: &mut PgConnection) -> i64 {
    let sql = "SELECT sum(seq_tup_read)::bigint FROM pg_stat_xact_user_tables WHERE relname IN ('saga', 'saga_mailbox', 'saga_inbox')";
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

/// What is sent on a user's connection is planned by the user's settings, and may be planned while the tables are known to be empty: the worst time for it.
#[tokio::test]
async fn a_users_connection_reads_no_whole_table_later_on() {
    let Setup { store, url, schema } = fresh(|_, sql| sql).await;
    let engine = Engine::builder(store.clone()).start().await.unwrap();
    let orders = engine.sagas::<Order>();
    let mut users = PgConnection::connect(&url).await.unwrap();
    let vacuum = format!("VACUUM {schema}.saga, {schema}.saga_mailbox, {schema}.saga_inbox");
    sqlx::raw_sql(AssertSqlSafe(vacuum)).execute(&mut users).await.unwrap();
    // One command is answered for good, one is not.
    let behind_the_barrier = format!(
        "SELECT {schema}.saga_inbox_enter(ARRAY[{WORKER}::uuid, {WORKER}], '{{step,other}}', '{{0,0}}');
         SELECT {schema}.saga_inbox_keep(ARRAY[{WORKER}::uuid, {WORKER}], '{{step,other}}', '{{0,0}}', '{{0,NULL}}', ARRAY['x'::bytea, NULL], '{{f,f}}')"
    );
    for round in 0..9 {
        if round == 8 {
            let fill = format!(
                "INSERT INTO {schema}.saga (id, name, version, key, input, due_at)
                 SELECT gen_random_uuid(), 'order', 1, n::text, '1', now() FROM generate_series(1, 20000) n;
                 INSERT INTO {schema}.saga_mailbox (saga_id, message, body) SELECT id, 'm', '{{}}' FROM {schema}.saga;
                 INSERT INTO {schema}.saga_inbox (saga_id, step, generation, outcome)
                 SELECT gen_random_uuid(), 'step', 0, 0 FROM generate_series(1, 20000)"
            );
            sqlx::raw_sql(AssertSqlSafe(fill)).execute(&mut users).await.unwrap();
        }
        let mut tx = users.begin().await.unwrap();
        let before = scanned(&mut tx).await;
        let order = orders.submit_in(&store, &mut tx, "k", 1).await.unwrap().id();
        orders.submit_in(&store, &mut tx, "k", 1).await.unwrap();
        orders.cancel_in(&store, &mut tx, order, "changed my mind").await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(behind_the_barrier.clone())).execute(&mut *tx).await.unwrap();
        // In an empty table there is nothing to be seen by.
        assert!(round < 8 || scanned(&mut tx).await == before);
        tx.commit().await.unwrap();
    }
}

#[tokio::test]
async fn migrations_can_be_run_twice_and_at_once_and_printed() {
    let Setup { store, url, schema } = fresh(|_, sql| sql).await;
    let at_once = (0..4).map(|_| store.migrate());
    for migrated in futures::future::join_all(at_once).await {
        migrated.unwrap();
    }
    let other = format!("{schema}_b").split_off(4).replace(|c: char| !c.is_ascii_alphanumeric(), "");
    let other = format!("printed_{}", &other[..20]);
    sqlx::raw_sql(AssertSqlSafe(PgStore::migrations(&other))).execute(store.pool()).await.unwrap();
    let printed = PgStore::options(&url).unwrap().schema(&other).connections(2).connect().await.unwrap();
    printed.migrate().await.unwrap();
    let newer = format!("INSERT INTO {other}.saga_migration (version) VALUES (99)");
    sqlx::raw_sql(AssertSqlSafe(newer)).execute(store.pool()).await.unwrap();
    let error = printed.migrate().await.unwrap_err().to_string();
    assert!(error.contains("upgrade the library"), "{error}");
}

#[tokio::test]
async fn a_schema_name_that_needs_quoting_is_refused() {
    for name in ["", "Sales", "a-b", "1st", "x; DROP TABLE saga", "a_name_that_is_longer_than_forty_characters_in_all"]
    {
        let options = PgStore::options("postgres://postgres@127.0.0.1:1/none").unwrap();
        let error = options.schema(name).connect().await.unwrap_err();
        assert!(error.to_string().contains("cannot be the name of a schema"), "{error}");
    }
}

#[tokio::test]
async fn the_view_shows_journals_as_json() {
    let Setup { store, schema, .. } = fresh(|_, sql| sql).await;
    fill(&store, &schema).await;
    let sql = format!("SELECT status, events::text FROM {schema}.saga_history WHERE key = '1' AND seq = 1");
    let (status, events): (String, String) = sqlx::query_as(AssertSqlSafe(sql)).fetch_one(store.pool()).await.unwrap();
    assert_eq!((status.as_str(), events.as_str()), ("completed", "[]"));
}

/// The second limit of the benchmark is the group-commit statement alone. It has to be that very statement.
#[test]
fn the_benchmark_measures_the_statement_that_is_sent() {
    let append = include_str!("../src/sql/append.sql");
    let script = include_str!("../examples/throughput/limit_b.sql");
    let body: Vec<&str> = append.lines().filter(|line| !line.starts_with("--")).collect();
    let (result, body) = body.split_last().unwrap();
    assert_eq!(*result, "SELECT id, coalesce(mine, false) AS mine FROM locked");
    for step in 0..4 {
        let last = step == 3;
        let filled = [
            ("$12", "array_fill(NULL::bytea, ARRAY[200])".to_owned()),
            ("$11", "array_fill(0::bigint, ARRAY[200])".to_owned()),
            ("$10", "'{}'".to_owned()),
            ("$9", "'{}'".to_owned()),
            ("$8", "array_fill(NULL::bigint, ARRAY[200])".to_owned()),
            ("$7", format!("array_fill({last}, ARRAY[200])")),
            ("$6", format!("array_fill({}::smallint, ARRAY[200])", if last { "3" } else { "NULL" })),
            ("$5", format!(r#"array_fill('[{{"succeeded":{{"step": {step},"output": null}}}}]'::bytea, ARRAY[200])"#)),
            ("$4", format!("array_fill({}, ARRAY[200])", step + 1)),
            ("$3", "array_fill(1::bigint, ARRAY[200])".to_owned()),
            ("$2", ":ids".to_owned()),
            ("$1", "'00000000-0000-4000-8000-000000000001'".to_owned()),
        ];
        let sql = filled.iter().fold(body.join("\n"), |sql, (parameter, value)| sql.replace(parameter, value));
        assert!(script.contains(&sql), "limit_b.sql, step {step}, is not append.sql any more:\n{sql}");
    }
}
