//! What only a real Postgres can do to the engine: rows that cannot be read, connections that are no good any more, a backlog.
#![cfg(all(feature = "testing", unix))]
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Order, Setup, definition, entry, fresh, start};
use saga_core::{
    Cx, Encoded, Engine, Error, Out, Outcome, Saga, SagaBuilder, WorkerId,
    store::{Appended, Start, Store, StoreError},
};
use saga_postgres::{InTransaction, PgStore, testing};
use sqlx::AssertSqlSafe;
use std::{collections::HashMap, time::Duration};
use tokio::time::{sleep, timeout};

const LEASE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

async fn run(store: &PgStore, sql: String) {
    sqlx::query(AssertSqlSafe(sql)).execute(store.pool()).await.unwrap();
}

/// One saga among others has become unreadable. What becomes of the others?
async fn others_complete_beside(damage: &str) {
    let Setup { store, schema, .. } = fresh(|_, sql| sql).await;
    let client = Engine::builder(store.clone()).start().await.unwrap();
    let orders = client.sagas::<Order>();
    orders.submit("damaged", 1).await.unwrap();
    let good = orders.submit("good", 1).await.unwrap();
    run(&store, format!("UPDATE {schema}.saga SET {damage} WHERE key = 'damaged'")).await;
    let _worker = Engine::builder(store.clone())
        .configure(|config| config.lease = 2 * SECOND)
        .register::<Order>(())
        .unwrap()
        .start()
        .await
        .unwrap();
    let outcome = timeout(60 * SECOND, good.outcome()).await.expect("held up by the damaged one");
    assert_eq!(outcome.unwrap(), Outcome::Completed(2));
}

#[tokio::test]
async fn a_saga_of_which_the_input_is_no_json_holds_up_no_other() {
    others_complete_beside("input = 'nonsense'").await;
}

#[tokio::test]
async fn a_saga_in_a_status_of_a_newer_version_holds_up_no_other() {
    others_complete_beside("status = 9").await;
}

/// A store with one connection for statements (and one that listens).
async fn with_one_connection() -> PgStore {
    let postgres = testing::shared().await.unwrap();
    let options = PgStore::options(&postgres.url()).unwrap().schema(postgres.schema());
    let store = options.connections(2).connect().await.unwrap();
    store.migrate().await.unwrap();
    sleep(SECOND).await;
    store
}

#[tokio::test]
async fn connections_to_a_primary_that_was_demoted_are_given_up() {
    let store = with_one_connection().await;
    start(&store, "before", None).await;
    // As if the server behind this connection were a standby now: everything that writes fails with 25006.
    run(&store, "SET default_transaction_read_only = on".into()).await;
    let again = async {
        while let Err(error) = store.start(&[common::new_start("after", None)]).await {
            assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(60 * SECOND, again).await.expect("it goes on asking the standby");
}

#[tokio::test]
async fn a_connection_that_forgot_its_prepared_statements_refuses_no_sagas() {
    let store = with_one_connection().await;
    let worker = WorkerId::generate();
    store.join(worker, LEASE, &[definition()]).await.unwrap();
    let saga = start(&store, "k", Some(worker)).await;
    assert_eq!(store.append(worker, &[entry(saga, 1, 1)]).await.unwrap(), [Appended::Written]);
    // As a pooler between does.
    store.meddle("DEALLOCATE ALL").await.unwrap();
    let again = async {
        loop {
            match store.append(worker, &[entry(saga, 1, 2)]).await {
                Ok(answers) => return answers,
                Err(error) => assert!(matches!(error, StoreError::Unavailable(_)), "{error}"),
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let answers = timeout(60 * SECOND, again).await.expect("it goes on asking that connection");
    assert_eq!(answers, [Appended::Written]);
}

#[tokio::test]
async fn a_store_with_one_connection_works() {
    let postgres = testing::shared().await.unwrap();
    let options = PgStore::options(&postgres.url()).unwrap().schema(postgres.schema());
    let store = options.connections(1).patience(2 * SECOND).connect().await.unwrap();
    sleep(SECOND).await;
    store.migrate().await.unwrap();
    start(&store, "k", None).await;
}

#[tokio::test]
async fn sagas_that_are_started_together_are_answered_one_by_one() {
    let Setup { store, .. } = fresh(|_, sql| sql).await;
    let engine = Engine::builder(store.clone()).start().await.unwrap();
    let orders = engine.sagas::<Order>();
    let before = orders.submit("before", 1).await.unwrap().id();
    let start = |key: &str, input| orders.to_start(key, &input).unwrap();
    let starts = [start("new", 1), start("before", 1), start("before", 2), start("new", 1), start("another", 3)];
    for commit in [false, true] {
        let mut tx = store.pool().begin().await.unwrap();
        let started = orders.start_in(&store, &mut tx, &starts).await.unwrap();
        let answers: Vec<_> = started.into_iter().map(|saga| saga.map(|saga| (saga.id(), saga.is_new()))).collect();
        let [new, again, other_input, twice, another] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!(new.as_ref().unwrap(), &(starts[0].saga, true));
        assert_eq!(again.as_ref().unwrap(), &(before, false));
        assert!(matches!(other_input, Err(Error::KeyTaken { saga, .. }) if *saga == before), "{other_input:?}");
        assert_eq!(twice.as_ref().unwrap(), &(starts[0].saga, false));
        assert_eq!(another.as_ref().unwrap(), &(starts[4].saga, true));
        if commit {
            tx.commit().await.unwrap();
        } else {
            tx.rollback().await.unwrap();
        }
        for (key, saga) in [("new", starts[0].saga), ("another", starts[4].saga)] {
            let found = orders.find(key).await.unwrap().map(|saga| saga.id());
            assert_eq!(found, commit.then_some(saga), "{key}");
        }
    }
}

/// A saga whose input is written in any order.
struct Bag;

impl Saga for Bag {
    const NAME: &'static str = "bag";
    const VERSION: u32 = 1;
    type Input = HashMap<String, u32>;
    type Output = ();
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        saga.effect_free("look").run(async |_: Cx<()>, _: HashMap<String, u32>| Ok(()))
    }
}

#[tokio::test]
async fn a_map_is_the_same_input_in_whatever_order_it_is_written_also_before_the_commit() {
    let Setup { store, .. } = fresh(|_, sql| sql).await;
    let engine = Engine::builder(store.clone()).start().await.unwrap();
    let bags = engine.sagas::<Bag>();
    let start =
        |text| Start { input: Encoded::from_bytes(text).unwrap(), ..bags.to_start("k", &HashMap::new()).unwrap() };
    let starts = [&b"{\"a\":1,\"b\":2}"[..], b"{\"b\":2,\"a\":1}", b"{\"b\":2,\"a\":2}"].map(start);
    let mut tx = store.pool().begin().await.unwrap();
    let started = bags.start_in(&store, &mut tx, &starts).await.unwrap();
    let [Ok(first), Ok(same), Err(Error::KeyTaken { .. })] = &started[..] else { panic!("{started:?}") };
    assert!(first.is_new() && !same.is_new() && first.id() == same.id());
}
