//! Where the queue begins: what a look for work need not pass again.
//!
//! A row that was deleted stays in the indexes for as long as somebody's old transaction might still see it. A look
//! that began at the very first number would pass all of them, and all that waits for a topic that is away. So a lane
//! remembers two things, and looks them up anew every now and then:
//!
//! - a number that is [*settled*](crate::settled): all who were given it, or a lower one, have ended;
//! - the *heads*: each topic that has an event of a settled number, with the lowest such number.
//!
//! A look reads a topic with a head from there on, and any other from the settled number on.
//!
//! # Why nothing is overtaken
//!
//! A lower number may be committed after a higher one. If a look passed over it and not over the higher one, an order
//! could break: not that of two transactions at once, which have none, but that of a second one that began after the
//! first had committed. So no look passes over a number that may still appear. Which may?
//!
//! - *One whose transaction is open.* Its number is not settled.
//! - *One that comes back from the parked ones*, whoever gives it back, with whatever release. It was in one table or
//!   in the other when the heads were read, in one statement. So its topic has a head, and no higher one.
//!
//! A topic may begin with many events of a key that is left alone. They are passed over too, until that key's time has
//! come. If the key is then left alone again, they are passed over again, without a look at the heads. So heads are read
//! without the keys that are being asked for again just now. And when a key is left alone that the heads know nothing
//! of, they are read as soon as the looks have taken as much time as that takes.
//!
//! What has a settled number by no rule of ours (a row that somebody inserted with a number of his own) is found when
//! the heads are next read.
//!
//! A transaction that has published and stays open keeps the settled number where it was. As long as it lasts, a look
//! passes what was written since.

use super::{plan::Key, queries::OutboxQueries, topics::Limits};
use crate::{
    connection::in_time,
    settled::{Settled, Writers},
};
use sqlx::{PgConnection, Postgres, Row as _, SqlStr, postgres::PgArguments, query::Query};
use std::{collections::HashSet, time::Duration};
use tokio::time::Instant;

/// How long heads are good for, at least.
const PAUSE: Duration = Duration::from_secs(1);
/// As long as nothing is settled, every look begins at the first number.
const SOON: Duration = Duration::from_millis(50);
/// They are read for so small a part of the time: where there are many dead rows, that takes its time. When keys are left
/// alone that they know nothing of, for half of it at most.
const REST: u32 = 20;

/// What a lane knows of the beginning of its shards' queues.
#[derive(Debug, Default)]
pub(super) struct Heads {
    numbers: Settled,
    /// As of when the heads were read: no lower number, nor this one, appears any more but as a head.
    pub(super) settled: i64,
    /// The heads, column by column: the shards,
    pub(super) shards: Vec<i16>,
    /// the topics,
    pub(super) topics: Vec<String>,
    /// the lowest number of each,
    first: Vec<i64>,
    /// and the lowest one without those of keys that were left alone then, or asked for again just then,
    open: Vec<i64>,
    /// which are these.
    passed: HashSet<Key>,
    read_next: Option<Instant>,
    /// How long it took to read them,
    cost: Duration,
    /// and how long all looks took since.
    pub(super) spent: Duration,
}

impl Heads {
    /// Reads the heads, if it is time to. Each statement has to see what was committed before it.
    pub(super) async fn look(
        &mut self,
        connection: &mut PgConnection,
        queries: &OutboxQueries,
        named: bool,
        shards: &[i16],
        limits: &Limits,
    ) -> Result<(), sqlx::Error> {
        let is_news =
            self.settled > 0 && self.spent >= self.cost && !left_alone(limits).all(|key| self.passed.contains(&key));
        if self.read_next.is_some_and(|next| Instant::now() < next) && !is_news {
            return Ok(());
        }
        let began = Instant::now();
        let query =
            |sql: &SqlStr| -> Query<'static, Postgres, PgArguments> { sqlx::query(sql.clone()).persistent(named) };
        let numbered = in_time(query(&queries.numbered).fetch_one(&mut *connection)).await?;
        // The number first, then who may have been given it.
        let numbered: i64 = numbered.try_get::<Option<i64>, _>("numbered")?.unwrap_or_default();
        let writers = Writers::of(&in_time(query(&queries.writers).fetch_all(&mut *connection)).await?)?;
        if !self.numbers.saw(numbered, &writers) {
            *self = Self { numbers: std::mem::take(&mut self.numbers), ..Self::default() };
        }
        let settled = self.numbers.number();
        if settled == 0 {
            self.read_next = Some(Instant::now() + SOON);
            return Ok(());
        }
        let keys = limits.keys.0.iter().chain(&limits.others.0).cloned();
        let passed: Vec<Key> = keys.zip(limits.keys.1.iter().chain(&limits.others.1).cloned()).collect();
        let (of, keys): (Vec<&str>, Vec<&str>) = passed.iter().map(|(topic, key)| (&**topic, &**key)).unzip();
        let read = query(&queries.heads).bind(shards.to_vec()).bind(settled).bind(of).bind(keys);
        let rows = in_time(read.fetch_all(&mut *connection)).await?;
        let (mut shards, mut topics, mut first, mut open) = (vec![], vec![], vec![], vec![]);
        for row in rows {
            shards.push(row.try_get("shard")?);
            topics.push(row.try_get("topic")?);
            first.push(row.try_get("first")?);
            open.push(row.try_get("open")?);
        }
        (self.settled, self.shards, self.topics, self.first, self.open) = (settled, shards, topics, first, open);
        self.passed = passed.into_iter().collect();
        (self.cost, self.spent) = (began.elapsed(), Duration::ZERO);
        self.read_next = Some(Instant::now() + PAUSE.max(self.cost * REST));
        Ok(())
    }

    /// Where each of the topics is to be read from: behind the events of keys that are left alone, as long as all those
    /// still are.
    pub(super) fn from(&self, limits: &Limits) -> Vec<i64> {
        let left_alone: HashSet<Key> = left_alone(limits).collect();
        let passed = self.passed.iter();
        let back: HashSet<&str> = passed.filter(|key| !left_alone.contains(key)).map(|(topic, _)| &**topic).collect();
        let topics = self.topics.iter().zip(self.first.iter().zip(&self.open));
        topics.map(|(topic, (first, open))| *if back.contains(topic.as_str()) { first } else { open }).collect()
    }
}

fn left_alone(limits: &Limits) -> impl Iterator<Item = Key> {
    limits.keys.0.iter().cloned().zip(limits.keys.1.iter().cloned())
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::{PgOutbox, connection::Settings, testing};
    use saga_core::{Encoded, message::Message};
    use sqlx::{AssertSqlSafe, Connection, PgPool, postgres::PgPoolOptions};

    struct Setup {
        outbox: PgOutbox,
        pool: PgPool,
        schema: String,
        looking: PgConnection,
        heads: Heads,
        limits: Limits,
    }

    async fn fresh() -> Setup {
        let postgres = testing::shared().await.unwrap();
        let (url, schema) = (postgres.url(), postgres.schema());
        let pool = PgPoolOptions::new().max_connections(3).connect(&url).await.unwrap();
        let outbox = PgOutbox::options(pool.clone(), "tests").schema(&schema).build().unwrap();
        outbox.migrate().await.unwrap();
        let looking = PgConnection::connect(&url).await.unwrap();
        Setup { outbox, pool, schema, looking, heads: Heads::default(), limits: Limits::default() }
    }

    impl Setup {
        async fn publish(&self, connection: &mut PgConnection, topic: &str) {
            self.publish_for("a", connection, topic).await;
        }

        async fn publish_for(&self, key: &str, connection: &mut PgConnection, topic: &str) {
            let message = Message::event("tests", "t", key, &Encoded::null());
            self.outbox.publish_message(connection, topic, &message).await.unwrap();
        }

        async fn look(&mut self) {
            let Self { outbox, looking, heads, limits, .. } = self;
            heads.read_next = None;
            heads.look(looking, &outbox.inner.queries, true, &(0..64).collect::<Vec<_>>(), limits).await.unwrap();
        }

        /// What is known: the settled number, and each topic's head.
        fn known(&self) -> (i64, Vec<(&str, i64)>) {
            let topics = self.heads.topics.iter().map(String::as_str);
            let mut heads: Vec<_> = topics.zip(self.heads.first.iter().copied()).collect();
            heads.sort_unstable();
            (self.heads.settled, heads)
        }

        async fn run(&self, sql: &str) {
            let sql = sql.replace("{schema}", &self.schema);
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.pool).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_topic_is_read_in_its_order_and_no_further_than_where_it_begins() {
        let mut setup = fresh().await;
        setup
            .run(
                "INSERT INTO {schema}.saga_outbox
                     (shard, id, aggregatetype, aggregateid, type, source, time, content_type, payload)
                 SELECT n % 64, gen_random_uuid(), 'away', n::text, 't', 's', now(), 'c', 'x'
                 FROM generate_series(1, 20000) n",
            )
            .await;
        setup.run("ANALYZE {schema}.saga_outbox").await;
        Settings::of_a_relay(Duration::from_secs(60)).set(&mut setup.looking).await.unwrap();
        let heads = setup.outbox.inner.queries.heads.as_str();
        let shards = (0..64).map(|shard| shard.to_string()).collect::<Vec<_>>().join(",");
        let explain = format!(
            "PREPARE heads AS {heads};
             EXPLAIN (ANALYZE, BUFFERS, SUMMARY off, FORMAT JSON)
             EXECUTE heads('{{{shards}}}', 20000, '{{away}}', '{{1}}')"
        );
        let plan = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_one(&mut setup.looking).await.unwrap();
        let plan: serde_json::Value = serde_json::from_str(&plan.get_unchecked::<String, _>(0)).unwrap();
        let pages = |kind: &str| plan[0]["Plan"][kind].as_u64().unwrap();
        let read = pages("Shared Hit Blocks") + pages("Shared Read Blocks");
        // All of it is in some six hundred pages, each of which has events of every shard.
        assert!(read < 64 * 20, "{read} pages");
    }

    #[tokio::test]
    async fn a_number_is_settled_when_all_have_ended_that_may_have_it_or_a_lower_one() {
        let mut setup = fresh().await;
        setup.look().await;
        assert_eq!(setup.known(), (0, vec![]));
        let mut early = setup.pool.begin().await.unwrap();
        setup.publish(&mut early, "early").await;
        let mut later = setup.pool.begin().await.unwrap();
        setup.publish(&mut later, "later").await;
        later.commit().await.unwrap();
        for _ in 0..3 {
            setup.look().await;
            assert_eq!(setup.known(), (0, vec![]), "the first one may still commit");
        }
        // Not for ever: others may come, without end.
        let mut other = setup.pool.begin().await.unwrap();
        setup.publish(&mut other, "other").await;
        early.commit().await.unwrap();
        setup.look().await;
        assert_eq!(setup.known(), (2, vec![("early", 1), ("later", 2)]));
        other.rollback().await.unwrap();
        setup.run("DELETE FROM {schema}.saga_outbox").await;
        setup.look().await;
        assert_eq!(setup.known(), (3, vec![]));
    }

    #[tokio::test]
    async fn what_is_parked_may_come_back_so_its_topic_has_a_head() {
        let mut setup = fresh().await;
        let mut connection = setup.pool.acquire().await.unwrap();
        for topic in ["parked", "parked", "gone"] {
            setup.publish(&mut connection, topic).await;
        }
        let columns =
            "shard, seq, id, aggregatetype, aggregateid, type, source, time, content_type, created_at, payload";
        let park = "INSERT INTO {schema}.saga_outbox_parked (COLUMNS, reason) SELECT COLUMNS, 'no' FROM {schema}.saga_outbox WHERE seq = 1";
        setup.run(&park.replace("COLUMNS", columns)).await;
        setup.run("DELETE FROM {schema}.saga_outbox WHERE seq <> 2").await;
        setup.look().await;
        assert_eq!(setup.known(), (3, vec![("parked", 1)]));
    }

    #[tokio::test]
    async fn where_numbers_say_nothing_nothing_is_settled() {
        let mut setup = fresh().await;
        let mut connection = setup.pool.acquire().await.unwrap();
        setup.publish(&mut connection, "events").await;
        setup.look().await;
        assert_eq!(setup.known(), (1, vec![("events", 1)]));
        setup.run("ALTER SEQUENCE {schema}.saga_outbox_seq_seq CACHE 10").await;
        setup.look().await;
        assert_eq!(setup.known(), (0, vec![]));
        setup.run("ALTER SEQUENCE {schema}.saga_outbox_seq_seq CACHE 1 RESTART WITH 1").await;
        setup.look().await;
        assert_eq!(setup.known(), (0, vec![]));
    }

    #[tokio::test]
    async fn what_is_left_alone_is_passed_over_until_its_time_has_come() {
        let mut setup = fresh().await;
        let mut connection = setup.pool.acquire().await.unwrap();
        // Two keys of one shard.
        for key in ["a", "a", "a", "other-62", "a"] {
            setup.publish_for(key, &mut connection, "events").await;
        }
        setup.publish(&mut connection, "others").await;
        let waiting = |topic: &str| Limits { keys: (vec![topic.into()], vec!["a".into()]), ..Limits::default() };
        setup.limits = waiting("others");
        setup.look().await;
        let from = |setup: &Setup, limits: &Limits| {
            let mut from: Vec<_> = setup.heads.topics.iter().cloned().zip(setup.heads.from(limits)).collect();
            from.sort();
            from.iter().map(|(_, from)| *from).collect::<Vec<_>>()
        };
        // The topic begins anew when all has been left alone so far.
        assert_eq!(from(&setup, &waiting("others")).last(), Some(&7));
        assert_eq!(from(&setup, &Limits::default()).last(), Some(&6));
        // Also when its time has just come as the heads are read: it may be left alone again.
        let just_back = Limits { others: waiting("events").keys, ..Limits::default() };
        for limits in [waiting("events"), just_back] {
            setup.limits = limits;
            setup.look().await;
            let alone = from(&setup, &waiting("events"));
            assert_eq!(alone.iter().max(), Some(&7), "{alone:?}");
            assert!(!alone.contains(&1) && from(&setup, &Limits::default()).contains(&1));
        }
    }
}
