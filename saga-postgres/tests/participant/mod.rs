//! What the tests of the inbox share: a participant's database, and jobs that leave an effect in it.
#![allow(dead_code, reason = "each test file uses a part of it")]

use futures::future::BoxFuture;
use saga_core::{
    Encoded, SagaId, StepError,
    message::{Answer, CommandId, Op},
    participant::{Inbox, Job},
};
use saga_postgres::{PgInbox, testing, testing::Postgres};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};

pub(crate) type Tx = PgConnection;

pub(crate) const LONG: Duration = Duration::from_secs(20);

/// A participant's database, with the effects of its handlers in a table.
pub(crate) struct World {
    pub(crate) pool: PgPool,
    pub(crate) inbox: PgInbox,
    pub(crate) schema: String,
    pub(crate) url: String,
}

impl World {
    pub(crate) async fn start() -> Self {
        let postgres = testing::shared().await.unwrap();
        Self::on(postgres).await
    }

    pub(crate) async fn on(postgres: &Postgres) -> Self {
        let (url, schema) = (postgres.url(), postgres.schema());
        let pool = PgPool::connect(&url).await.unwrap();
        let inbox = PgInbox::in_schema(pool.clone(), &schema).unwrap();
        inbox.migrate().await.unwrap();
        let world = Self { pool, inbox, schema, url };
        world.sql("CREATE TABLE {schema}.effect (name text PRIMARY KEY, count int NOT NULL)").await;
        world
    }

    /// Another node of the same participant.
    pub(crate) async fn another_node(&self) -> PgInbox {
        PgInbox::in_schema(PgPool::connect(&self.url).await.unwrap(), &self.schema).unwrap()
    }

    pub(crate) async fn sql(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.replace("{schema}", &self.schema))).execute(&self.pool).await.unwrap();
    }

    pub(crate) async fn count(&self, sql: &str) -> i64 {
        let sql = sql.replace("{schema}", &self.schema);
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap()
    }

    pub(crate) async fn effects(&self, name: &str) -> i64 {
        self.count(&format!("SELECT coalesce(max(count), 0)::bigint FROM {{schema}}.effect WHERE name = '{name}'"))
            .await
    }

    pub(crate) async fn rows(&self) -> i64 {
        self.count("SELECT count(*) FROM {schema}.saga_inbox").await
    }

    /// A job that writes its effect and then does something else.
    pub(crate) fn job<F>(&self, id: &CommandId, op: Op, name: &str, then: F) -> Job<Tx>
    where
        F: for<'t> Fn(&'t mut Tx, Option<Encoded>) -> BoxFuture<'t, Result<Encoded, StepError>> + Send + Sync + 'static,
    {
        let schema = self.schema.clone();
        let sql = format!(
            "INSERT INTO {schema}.effect VALUES ('{name}', 1) ON CONFLICT (name) DO UPDATE SET count = effect.count + 1"
        );
        let then = Arc::new(then);
        Job::new(id.clone(), op, LONG, move |tx, kept| {
            let (sql, then) = (sql.clone(), then.clone());
            Box::pin(async move {
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await?;
                then(tx, kept).await
            })
        })
    }

    /// A command that is done, and replies with its name.
    pub(crate) fn done(&self, id: &CommandId, name: &'static str) -> Job<Tx> {
        self.job(id, Op::Do, name, move |_, _| Box::pin(async move { Ok(text(name)) }))
    }

    pub(crate) fn undo(&self, id: &CommandId, name: &'static str) -> Job<Tx> {
        self.job(id, Op::Undo, name, |_, kept| {
            Box::pin(async move { kept.map(|_| Encoded::null()).ok_or_else(|| StepError::fail("nothing was kept")) })
        })
    }

    pub(crate) fn ending(&self, id: &CommandId, name: &'static str, error: fn() -> StepError) -> Job<Tx> {
        self.job(id, Op::Do, name, move |_, _| Box::pin(async move { Err(error()) }))
    }
}

pub(crate) fn text(text: &str) -> Encoded {
    Encoded::of(&text).unwrap()
}

pub(crate) fn success(reply: &str) -> Answer {
    Answer::Success(text(reply))
}

pub(crate) fn undone() -> Answer {
    Answer::Success(Encoded::null())
}

pub(crate) fn id() -> CommandId {
    CommandId { saga: SagaId::generate(), step: "reserve".into(), generation: 0 }
}

pub(crate) async fn one(inbox: &PgInbox, job: Job<Tx>) -> Answer {
    timeout(LONG * 3, inbox.handle(&[job])).await.unwrap().unwrap().remove(0)
}

/// A job that says when it is in its work, and waits there.
pub(crate) fn held(world: &World, id: &CommandId, name: &'static str) -> (Job<Tx>, oneshot::Receiver<()>, Arc<Notify>) {
    let (entered, inside) = oneshot::channel();
    let (entered, go_on) = (std::sync::Mutex::new(Some(entered)), Arc::new(Notify::new()));
    let gate = go_on.clone();
    let entered = Arc::new(entered);
    let job = world.job(id, Op::Do, name, move |_, _| {
        let (entered, gate) = (entered.clone(), gate.clone());
        Box::pin(async move {
            let first = entered.lock().unwrap().take();
            if let Some(entered) = first {
                entered.send(()).unwrap();
                gate.notified().await;
            }
            Ok(text(name))
        })
    });
    (job, inside, go_on)
}

/// The neighbours of `culprit` in its batch are done, once.
pub(crate) async fn neighbours_are_done(world: &World, culprit: Job<Tx>, check: impl FnOnce(&Answer)) {
    let batch = [world.done(&id(), "before"), culprit, world.done(&id(), "behind")];
    let answers = timeout(LONG * 3, world.inbox.handle(&batch)).await.unwrap().unwrap();
    check(&answers[1]);
    assert_eq!((&answers[0], &answers[2]), (&success("before"), &success("behind")));
    assert_eq!((world.effects("before").await, world.effects("behind").await), (1, 1));
    assert_eq!(world.effects("culprit").await, 0);
}

pub(crate) fn unknown_because(words: &'static str) -> impl FnOnce(&Answer) {
    move |answer| assert!(matches!(answer, Answer::Unknown(reason) if reason.contains(words)), "{answer:?}")
}
