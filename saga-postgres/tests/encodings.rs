//! Databases that are not UTF-8: what a broker says is no reason to stop, and journals can be read.
#![cfg(all(feature = "testing", unix))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker;

use broker::Broker;
use saga_core::{Encoded, message::Message, transport::PublishError};
use saga_postgres::{PgOutbox, testing};
use sqlx::{AssertSqlSafe, PgPool, postgres::PgConnectOptions};
use std::time::{Duration, Instant};

/// A database of this encoding, in the place of the one that the tests share.
async fn database(encoding: &str) -> PgPool {
    let postgres = testing::shared().await.unwrap();
    let options: PgConnectOptions = postgres.url().parse().unwrap();
    let admin = PgPool::connect_with(options.clone()).await.unwrap();
    let name = format!("saga_test_{}_{}", encoding.to_lowercase(), uuid::Uuid::new_v4().simple());
    let create = format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'");
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&admin).await.unwrap();
    PgPool::connect_with(options.database(&name)).await.unwrap()
}

async fn drop_database(pool: PgPool) {
    let options = PgConnectOptions::clone(&pool.connect_options());
    pool.close().await;
    let postgres = testing::shared().await.unwrap();
    let admin = PgPool::connect(&postgres.url()).await.unwrap();
    let drop = format!("DROP DATABASE {} WITH (FORCE)", options.get_database().unwrap());
    sqlx::raw_sql(AssertSqlSafe(drop)).execute(&admin).await.unwrap();
}

async fn number(pool: &PgPool, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(pool).await.unwrap()
}

async fn a_refusal_is_parked(encoding: &str, reason: &'static str, written: &str) {
    let pool = database(encoding).await;
    let outbox = PgOutbox::new(pool.clone(), "tests");
    outbox.migrate().await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    for key in ["a", "refused", "b", "refused"] {
        let message = Message::event("tests", "t", key, &Encoded::of(&1).unwrap());
        outbox.publish_message(&mut tx, "events", &message).await.unwrap();
    }
    tx.commit().await.unwrap();
    let broker = Broker::new();
    broker.decide(|outgoing| match outgoing.message.key.as_str() {
        "refused" => Err(PublishError::Refused(reason.into())),
        _ => Ok(()),
    });
    let relay = outbox.relay(broker.clone()).lanes(1).start().await.unwrap();
    let began = Instant::now();
    while number(&pool, "SELECT count(*) FROM saga.saga_outbox").await > 0 {
        assert!(began.elapsed() < Duration::from_secs(60), "never parked");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    relay.stop().await;
    assert_eq!(broker.log().len(), 2, "what the broker has is not sent again");
    let parked = outbox.parked(10).await.unwrap();
    assert_eq!((parked[0].reason.as_str(), parked[0].behind), (written, 1));
    drop_database(pool).await;
}

#[tokio::test]
async fn a_reason_that_the_database_cannot_write_is_written_as_well_as_it_can() {
    a_refusal_is_parked("LATIN1", "größer als 1 € \u{1F4E6}", "gr??er als 1 ? ?").await;
}

#[tokio::test]
async fn a_reason_that_the_database_can_write_is_written_as_it_is() {
    a_refusal_is_parked("LATIN1", "größer als erlaubt", "größer als erlaubt").await;
    a_refusal_is_parked("SQL_ASCII", "größer als 1 €", "größer als 1 €").await;
}

#[tokio::test]
async fn a_journal_with_characters_that_the_database_has_not_is_shown() {
    for encoding in ["LATIN1", "SQL_ASCII", "UTF8"] {
        let pool = database(encoding).await;
        PgOutbox::new(pool.clone(), "tests").migrate().await.unwrap();
        let entry = r#"[{"failed":{"reason":"größer \"als\" 1 € \u20ac 📦\n"}}]"#;
        sqlx::raw_sql(
            "INSERT INTO saga.saga (id, name, version, key, input) VALUES (gen_random_uuid(), 'order', 1, 'k', '1')",
        )
        .execute(&pool)
        .await
        .unwrap();
        sqlx::query("INSERT INTO saga.saga_journal (saga_id, seq, writer, entry) SELECT id, 1, id, $1 FROM saga.saga")
            .bind(entry.as_bytes())
            .execute(&pool)
            .await
            .unwrap();
        let shown = "SELECT events::text FROM saga.saga_history";
        let shown: String = sqlx::query_scalar(shown).fetch_one(&pool).await.unwrap();
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(json(&shown), json(entry), "{encoding}: {shown}");
        drop_database(pool).await;
    }
}
