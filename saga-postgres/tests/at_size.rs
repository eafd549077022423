//! Every statement of the store, the inbox and the outbox at size: how many pages it reads among a million rows of each
//! table, and with two hundred thousand dead entries more in front of each queue, behind somebody's long transaction;
//! and by which indexes, which have to be those that its comment names.

mod common;

use common::{Setup, fresh};
use saga_postgres::{PgOutbox, PgStore};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use std::{collections::BTreeSet, fmt::Write as _};

/// A worker that owns two thousand sagas, and another one that owns ten thousand and is dead.
const WORKER: &str = "'00000000-0000-4000-8000-000000000001'";
const DEAD: &str = "'00000000-0000-4000-8000-000000000002'";
/// Nobody knows it.
const NEW: &str = "'00000000-0000-4000-8000-000000000003'";
/// How many rows a statement is sent with that takes a batch.
const BATCH: usize = 200;

/// A statement with its arguments, and the pages that it may read.
struct Case {
    name: &'static str,
    arguments: String,
    /// Among a million rows, and with dead entries as well.
    pages: [u64; 2],
}

fn case(name: &'static str, arguments: String, pages: u64) -> Case {
    Case { name, arguments, pages: [pages; 2] }
}

/// One that reads the dead entries, too. Why that is no harm?
fn reads_the_dead(name: &'static str, arguments: String, pages: [u64; 2], _because: &str) -> Case {
    Case { name, arguments, pages }
}

/// The id of a saga.
fn id(number: usize) -> String {
    format!("00000000-0000-7000-8000-{number:012x}")
}

/// An array of so many.
fn each(values: impl Fn(usize) -> String) -> String {
    format!("'{{{}}}'", (0..BATCH).map(values).collect::<Vec<_>>().join(","))
}

fn all(value: &str) -> String {
    each(|_| value.to_owned())
}

fn ids(first: usize) -> String {
    each(|n| id(first + n))
}

/// What the tables hold:
///
/// | sagas, by number | |
/// |---|---|
/// | 1 to 900,000 | have ended |
/// | .. 950,000 | are due in an hour |
/// | .. 951,000 | are due |
/// | .. 952,000 | are parked |
/// | .. 954,000 | are owned |
/// | .. 964,000 | are owned by one who is dead |
/// | .. 975,000 | wait for mail; the first hundred have some |
/// | .. 1,000,000 | of a version that nobody runs: each has two unread letters |
const FILL: &str = "
    SET LOCAL session_replication_role = replica;
    INSERT INTO {schema}.saga (id, name, version, key, status, input, owner, epoch, due_at, due_from)
    SELECT ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'order', CASE WHEN n > 975000 THEN 2 ELSE 1 END, n::text,
           CASE WHEN n <= 900000 THEN 3 WHEN n BETWEEN 951001 AND 952000 THEN 2 ELSE 0 END, '1',
           CASE WHEN n BETWEEN 952001 AND 954000 THEN {worker}::uuid WHEN n BETWEEN 954001 AND 964000 THEN {dead}::uuid END, 1,
           CASE WHEN n BETWEEN 900001 AND 950000 THEN now() + interval '1 hour' WHEN n BETWEEN 950001 AND 951000 THEN now() - interval '1 minute' END,
           CASE WHEN n BETWEEN 900001 AND 951000 THEN now() - interval '1 minute' END
    FROM generate_series(1, 1000000) n;
    INSERT INTO {schema}.saga_journal (saga_id, seq, writer, entry) SELECT id, 1, {worker}, '[]' FROM {schema}.saga;
    ALTER TABLE {schema}.saga_mailbox ALTER COLUMN position RESTART WITH 1000000;
    INSERT INTO {schema}.saga_mailbox (saga_id, message, body, read_at, name, version)
    SELECT id, 'm', '{}', CASE WHEN key::integer > 975000 OR key::integer BETWEEN 952001 AND 952100 OR key::integer BETWEEN 964001 AND 964100 THEN NULL ELSE now() END, name, version
    FROM {schema}.saga ORDER BY id;
    INSERT INTO {schema}.saga_mailbox (saga_id, message, body, name, version) SELECT id, 'n', '{}', name, version FROM {schema}.saga WHERE version = 2;
    INSERT INTO {schema}.saga_worker (id, expires_at, lease_ms, names, versions, reads) VALUES ({worker}, now() + interval '1 day', 15000, '{order}', '{1}', 1);
    INSERT INTO {schema}.saga_definition (name, version, fingerprint) VALUES ('order', 1, 'x'), ('order', 2, 'x');
    INSERT INTO {schema}.saga_inbox (saga_id, step, generation, outcome) SELECT id, 'step', 0, 0 FROM {schema}.saga;
    INSERT INTO {schema}.saga_outbox (shard, id, aggregatetype, aggregateid, type, source, time, content_type, payload)
    SELECT n % 64, gen_random_uuid(), 'away', (n % 1000)::text, 't', 's', now(), 'c', 'x' FROM generate_series(1, 1000000) n;
    INSERT INTO {schema}.saga_outbox_parked (shard, seq, id, aggregatetype, aggregateid, type, source, time, content_type, payload, created_at, reason)
    SELECT n % 64, 2000000 + n, ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'parked', n::text, 't', 's', now(), 'c', 'x', now(), 'no' FROM generate_series(1, 1000) n";

/// Two hundred thousand sagas more were due, were owned, had mail, and have ended; as many events went out, as many
/// commands were handled; the worker has lived for hours.
const CHURN: &str = "
    SET LOCAL session_replication_role = replica;
    UPDATE {schema}.saga SET due_at = now() - interval '1 hour', due_from = now() - interval '1 hour', status = 0,
           started_at = now() - interval '1 day' WHERE key::integer <= 200000;
    UPDATE {schema}.saga SET due_at = NULL, due_from = NULL, owner = {worker} WHERE key::integer <= 200000;
    UPDATE {schema}.saga SET owner = NULL, status = 3 WHERE key::integer <= 200000;
    INSERT INTO {schema}.saga_mailbox (saga_id, message, position, body, name, version) OVERRIDING SYSTEM VALUE
    SELECT id, 'o', key::bigint, '{}', name, version FROM {schema}.saga WHERE key::integer <= 200000;
    UPDATE {schema}.saga_mailbox SET read_at = now() WHERE message = 'o';
    INSERT INTO {schema}.saga_inbox (saga_id, step, generation, outcome, received_at)
    SELECT id, 'other', 0, 0, now() - interval '1 year' FROM {schema}.saga WHERE key::integer <= 200000;
    DELETE FROM {schema}.saga_inbox WHERE step = 'other';
    INSERT INTO {schema}.saga_outbox (shard, id, aggregatetype, aggregateid, type, source, time, content_type, payload)
    SELECT n % 64, gen_random_uuid(), 'orders', (n % 1000)::text, 't', 's', now(), 'c', 'x' FROM generate_series(1, 200000) n;
    DELETE FROM {schema}.saga_outbox WHERE aggregatetype = 'orders';
    DO $$ BEGIN FOR n IN 1..1000 LOOP UPDATE {schema}.saga_worker SET expires_at = expires_at; END LOOP; END $$";

/// Where the queues begin: a number of the letters and one of the events.
#[derive(Clone, Copy)]
struct Heads {
    letters: i64,
    events: i64,
}

fn cases(heads: Heads) -> Vec<Case> {
    let batch = |pages: u64| BATCH as u64 * pages;
    let (own, known, next) = (ids(952_001), ids(1), ids(2_000_001));
    let (letters, events) = (heads.letters, heads.events);
    // Of the topics that have events up to there, one is left alone and nothing is known of others.
    let look = format!("'{{0,1,2,3}}', {events}, '{{}}', '{{}}', '{{}}', '{{away}}', '{{}}', '{{}}'");
    let due = format!("{WORKER}, '{{order}}', '{{1}}', 50, 1000000, 9");
    let mail = format!("{WORKER}, '{{order}}', '{{1}}', 1000, 1000000");
    let full_look = "a full look, for a twentieth of the time at most";
    let event = "0, gen_random_uuid(), 'orders', 'k', 't', 's', NULL, now(), 'c', NULL, NULL, NULL, 'x'";
    vec![
        case(
            "append",
            format!(
                "{WORKER}, {own}, {}, {}, {}, {}, {}, {}, {own}, {}, {}, {}",
                all("1"),
                all("2"),
                all("x"),
                all("NULL"),
                all("t"),
                all("60000"),
                all("m"),
                all("0"),
                all("s"),
            ),
            batch(80),
        ),
        case("append_one", format!("{WORKER}, '{}', 1, 2, 'x'", id(952_001)), 30),
        case("change_one", format!("{WORKER}, '{}', 1, 2, 'x', 3, true, NULL, 0", id(952_001)), 60),
        case("append_written", format!("{own}, {}", all("1")), batch(10)),
        case(
            "start",
            format!(
                "{next}, {}, {}, {}, {}, {}, {}, {}, {}",
                all("order"),
                all("1"),
                each(|n| format!("new {n}")),
                all("1"),
                all("NULL"),
                all("NULL"),
                all("NULL"),
                all("NULL"),
            ),
            batch(40),
        ),
        case("start_one", format!("'{}', 'order', 1, 'new', '1', NULL, NULL, NULL, NULL", id(2_000_001)), 60),
        case("start_existing", format!("{}, {}", all("order"), each(|n| (n + 1).to_string())), batch(10)),
        case("claim_due", format!("{due}, 'infinity', 10"), 60),
        reads_the_dead("claim_due", format!("{due}, '-infinity', 10"), [50 * 60, 450_000], full_look),
        case("claim_mailed", format!("{due}, {letters}"), 60),
        reads_the_dead("claim_mailed", format!("{due}, 0"), [50 * 80, 450_000], full_look),
        case("journals", format!("{own}, {}, 1000000", all("0")), batch(10)),
        case("unread", format!("{own}, 1000000"), batch(10)),
        reads_the_dead(
            "owned",
            WORKER.to_string(),
            [2_200, 450_000],
            "what this worker has owned, once every half lease",
        ),
        case("disown", format!("{WORKER}, {own}, {}", all("1")), batch(60)),
        case("mail", format!("{mail}, {letters}"), 60),
        reads_the_dead("mail", format!("{mail}, 0"), [200 * 20, 450_000], full_look),
        case("post", format!("{own}, {}, {}", all("new"), all("x")), batch(40)),
        reads_the_dead(
            "drop_dead_mail",
            "'00000000-0000-0000-0000-000000000000', 5000".to_string(),
            [40_000, 500_000],
            "what had been read, the first time of each walk through all unread letters",
        ),
        case("letters_numbered", String::new(), 30),
        case("letters_writers", String::new(), 30),
        case("join", format!("{NEW}, 15000, '{{order}}', '{{1}}', 1"), 60),
        case("beat", format!("{WORKER}, 15000"), 60),
        case("leave", NEW.to_string(), 30),
        case("workers", String::new(), 60),
        case("bury", "'{}', '{}'".to_string(), 60),
        case("orphans", String::new(), 60),
        case("sweep", format!("ARRAY[{DEAD}::uuid], 200, false"), batch(60)),
        case("set_back", "500".to_string(), 30),
        case("returned_swept", format!("{WORKER}, 500"), 60),
        case("returned_left", NEW.to_string(), 60),
        case("readers", "'order', 1".to_string(), 60),
        case("register", "'order', 1, 'x'".to_string(), 30),
        case("registered", "'order', 1".to_string(), 30),
        reads_the_dead("census", "'{order}'".to_string(), [1_100, 900_000], "what had not ended, every 15 seconds"),
        reads_the_dead("unclaimable", String::new(), [60, 900_000], "what was due, every 15 seconds"),
        case("find", "'order', '7'".to_string(), 30),
        case("statuses", known.clone(), batch(10)),
        case("read", format!("'{}'", id(7)), 30),
        case("notify", "'channel', 'x'".to_string(), 30),
        case("inbox_enter", format!("{next}, {}, {}", all("step"), all("0")), batch(20)),
        case(
            "inbox_keep",
            format!("{known}, {}, {}, {}, {}, {}", all("step"), all("0"), all("0"), all("x"), all("f")),
            batch(20),
        ),
        case("inbox_end", "0, '1'".to_string(), 30),
        reads_the_dead(
            "inbox_prune",
            "86400, 500, '-infinity'".to_string(),
            [60, 8_000],
            "what was removed before, once in each call",
        ),
        case("publish", event.to_string(), 60),
        case(
            "publish_all",
            format!(
                "{}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}",
                all("0"),
                ids(1),
                all("orders"),
                all("k"),
                all("t"),
                all("s"),
                all("NULL"),
                all("2026-01-01"),
                all("c"),
                all("NULL"),
                all("NULL"),
                all("NULL"),
                all("x"),
            ),
            batch(20),
        ),
        case("numbered", String::new(), 30),
        case("writers", String::new(), 30),
        reads_the_dead(
            "heads",
            format!("'{{0,1,2,3}}', {events}, '{{}}', '{{}}'"),
            [200, 20_000],
            "where topics begin, for a twentieth of the time at most",
        ),
        case("work", look.clone(), 60),
        case("read_events", format!("{look}, '{{}}', '{{}}', 500, 1000000, 500"), 60),
        case("lock", "'{0,1,2,3}'".to_string(), 10),
        case("sent", format!("{}, {}", each(|n| ((n + 1) % 64).to_string()), each(|n| (n + 1).to_string())), batch(10)),
        case(
            "park",
            format!("{}, {}, {}", each(|n| ((n + 1) % 64).to_string()), each(|n| (n + 1).to_string()), all("no")),
            batch(60),
        ),
        case("free", "'{parked}', '{7}'".to_string(), 90),
        case("lock_parked", format!("'{}'", id(7)), 30),
        case("lock_shard", "0".to_string(), 10),
        case("parked", "100".to_string(), 600),
        case("unpark", format!("'{}'", id(7)), 90),
        case("unpark_topic", "7, 'parked', 0, 500".to_string(), 1_000),
        case("discard", format!("'{}'", id(7)), 30),
        reads_the_dead("lag", String::new(), [30_000, 300_000], "counts what waits, for who asks"),
    ]
}

/// What a statement did, as a connection of the store planned it.
#[derive(Default)]
struct Done {
    /// How many pages it read and wrote.
    pages: u64,
    /// Tables that it read as a whole.
    scans: Vec<String>,
    /// Indexes that it read by.
    indexes: BTreeSet<String>,
    /// Where in its plan most of them were.
    most: String,
}

async fn prepare(connection: &mut PgConnection, name: &str, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(format!("PREPARE sized_{name} AS {sql}"))).execute(connection).await.unwrap();
}

/// What a relay sends: its sessions read by the order of their indexes alone.
const OF_A_RELAY: [&str; 9] = ["heads", "work", "read_events", "lock", "sent", "park", "free", "numbered", "writers"];

/// What was prepared keeps the plan that is made when it is executed first.
async fn done(connection: &mut PgConnection, name: &str, arguments: &str) -> Done {
    let mut tx = connection.begin().await.unwrap();
    if OF_A_RELAY.contains(&name) {
        sqlx::raw_sql("SET LOCAL enable_bitmapscan = off").execute(&mut *tx).await.unwrap();
    }
    let arguments = if arguments.is_empty() { String::new() } else { format!("({arguments})") };
    let explain = format!("EXPLAIN (ANALYZE, BUFFERS, TIMING off, FORMAT JSON) EXECUTE sized_{name}{arguments}");
    let explained = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_one(&mut *tx).await;
    let explained = explained.unwrap_or_else(|error| panic!("{name}: {error}"));
    let explained: Value = serde_json::from_str(&explained.get_unchecked::<String, _>(0)).unwrap();
    tx.rollback().await.unwrap();
    let mut done = Done::default();
    done.adds(&explained[0]["Plan"], true);
    done
}

impl Done {
    /// A part of a plan. What writes beside the rest is not counted with it.
    fn adds(&mut self, plan: &Value, top: bool) {
        let number = |kind: &str| plan[kind].as_u64().unwrap_or_default();
        let word = |kind: &str| plan[kind].as_str().unwrap_or_default().to_owned();
        let pages = number("Shared Hit Blocks") + number("Shared Read Blocks");
        if top || (word("Node Type") == "ModifyTable" && plan["Subplan Name"].is_string()) {
            self.pages += pages;
        }
        if word("Node Type") == "Seq Scan" {
            self.scans.push(word("Relation Name"));
        }
        let ours = Some(word("Index Name")).filter(|index| index.starts_with("saga_"));
        self.indexes.extend(ours);
        if pages > 1_000 {
            let (node, index, condition) = (word("Node Type"), word("Index Name"), word("Index Cond"));
            let _ =
                write!(self.most, "\n    {node} {index} {condition}: {pages} pages, {} times", number("Actual Loops"));
        }
        let parts = plan["Plans"].as_array().map(Vec::as_slice).unwrap_or_default();
        parts.iter().for_each(|part| self.adds(part, false));
    }
}

/// The indexes that a statement's comment names: `Served by saga_pkey and saga_due.`
fn served_by(sql: &str) -> BTreeSet<String> {
    let comment: Vec<&str> = sql.lines().map_while(|line| line.strip_prefix("--")).collect();
    let comment = comment.concat();
    let served = comment.split_once("Served by ").and_then(|(_, served)| served.split('.').next());
    let words = served.unwrap_or_default().split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("saga_")).map(str::to_owned).collect()
}

async fn run(connection: &mut PgConnection, schema: &str, sql: &str) {
    let sql = sql.replace("{schema}", schema).replace("{worker}", WORKER).replace("{dead}", DEAD);
    let mut tx = connection.begin().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
}

/// Small tables, which are read as a whole.
const SMALL: [&str; 3] = ["saga_worker", "saga_definition", "saga_outbox_parked"];

#[tokio::test]
async fn every_statement_reads_few_pages_among_a_million_rows_and_behind_a_long_transaction() {
    let Setup { store, url, schema } = fresh(|_, sql| sql).await;
    let outbox = PgOutbox::options(store.pool().clone(), "/at-size").schema(&schema).build().unwrap();
    let mut statements = store.statements();
    let named = |name| if name == "read" { "read_events" } else { name };
    statements.extend(outbox.statements().into_iter().map(|(name, sql)| (named(name), sql)));
    // No plan is made for what is not a query.
    statements.retain(|(name, _)| *name != "vacuum");
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let (mut wrong, mut stores) = (String::new(), store.pool().acquire().await.unwrap());

    // No statistics: the tables were filled a moment ago. What was planned while they were empty is planned anew, as it is
    // on the store's own connections.
    sqlx::raw_sql("SET statement_timeout = 0").execute(&mut *stores).await.unwrap();
    for table in TABLES {
        run(&mut connection, &schema, &format!("ALTER TABLE {{schema}}.saga{table} SET (autovacuum_enabled = off)"))
            .await;
    }
    for (name, sql) in &statements {
        prepare(&mut stores, name, sql).await;
    }
    for Case { name, arguments, .. } in cases(Heads { letters: 0, events: 0 }) {
        done(&mut stores, name, &arguments).await;
    }
    run(&mut connection, &schema, FILL).await;
    sqlx::raw_sql("DISCARD PLANS").execute(&mut *stores).await.unwrap();
    for Case { name, arguments, pages: [most, _] } in cases(heads(&store, &schema).await) {
        // The first time, it reads the catalogue as well.
        done(&mut stores, name, &arguments).await;
        let done = done(&mut stores, name, &arguments).await;
        println!("no statistics: {name}: {} pages", done.pages);
        if done.pages > most {
            let (pages, where_most) = (done.pages, &done.most);
            let _ = writeln!(wrong, "no statistics: {name}: {pages} pages, where {most} are enough{where_most}");
        }
    }
    sqlx::raw_sql("DEALLOCATE ALL").execute(&mut *stores).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(tables("VACUUM (ANALYZE)", &schema))).execute(&mut connection).await.unwrap();

    for (round, dead) in ["no dead entries", "dead entries"].into_iter().enumerate() {
        let mut long = PgConnection::connect(&url).await.unwrap();
        let mut long = long.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
        if round == 1 {
            sqlx::raw_sql("SELECT 1").execute(&mut *long).await.unwrap();
            run(&mut connection, &schema, CHURN).await;
        }
        let cases = cases(heads(&store, &schema).await);
        let missing: Vec<_> =
            statements.iter().filter(|(name, _)| cases.iter().all(|case| case.name != *name)).collect();
        assert!(missing.is_empty(), "statements without a case: {missing:?}");
        for Case { name, arguments, pages: most } in &cases {
            let sql = &statements.iter().find(|(other, _)| other == name).unwrap().1;
            prepare(&mut stores, name, sql).await;
            // The first time, it reads the catalogue as well.
            done(&mut stores, name, arguments).await;
            let done = done(&mut stores, name, arguments).await;
            sqlx::raw_sql("DEALLOCATE ALL").execute(&mut *stores).await.unwrap();
            println!("{dead}: {name}: {} pages", done.pages);
            if done.pages > most[round] {
                let (pages, where_most) = (done.pages, &done.most);
                let _ = writeln!(wrong, "{dead}: {name}: {pages} pages, where {} are enough{where_most}", most[round]);
            }
            let named = served_by(sql);
            // Plans do not show by which index an insert meets another row, nor what a function does.
            let shows_all = !sql.contains("ON CONFLICT") && !done.indexes.is_empty();
            if !done.indexes.is_subset(&named) || (shows_all && done.indexes != named) {
                let _ = writeln!(wrong, "{dead}: {name}: read by {:?}, where it names {named:?}", done.indexes);
            }
            let is_small = |table: &str| table.starts_with("pg_") || SMALL.contains(&table);
            for scan in done.scans.iter().filter(|table| !is_small(table)) {
                let _ = writeln!(wrong, "{dead}: {name}: reads all of {scan}");
            }
        }
        long.rollback().await.unwrap();
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

const TABLES: [&str; 9] =
    ["", "_journal", "_snapshot", "_mailbox", "_worker", "_definition", "_inbox", "_outbox", "_outbox_parked"];

fn tables(verb: &str, schema: &str) -> String {
    format!("{verb} {}", TABLES.map(|name| format!("{schema}.saga{name}")).join(", "))
}

/// As the store and a relay know them.
async fn heads(store: &PgStore, schema: &str) -> Heads {
    let sql = format!(
        "SELECT (SELECT max(position) FROM {schema}.saga_mailbox), (SELECT last_value FROM {schema}.saga_outbox_seq_seq)"
    );
    let (letters, events) = sqlx::query_as(AssertSqlSafe(sql)).fetch_one(store.pool()).await.unwrap();
    Heads { letters, events }
}
