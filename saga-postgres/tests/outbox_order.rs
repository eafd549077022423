//! Eight writers, a thousand keys, relay processes that are killed and frozen again and again: each key is published in its order, whole.
//!
//! `cargo run --release -p saga-postgres --all-features --example outbox_order` does the same with a million events and fifty kills.
#![cfg(all(feature = "testing", unix))]

#[path = "../examples/outbox_order/drill.rs"]
mod drill;
#[path = "../examples/outbox_order/node.rs"]
mod node;
#[path = "../examples/outbox_order/wire.rs"]
mod wire;

use drill::{Drill, Tally};
use node::Orders;
use saga_postgres::testing;
use std::{sync::Arc, time::Duration};

/// How many events, unless the environment says otherwise.
const EVENTS: u64 = 30_000;

/// Not a test: what a relay process runs.
#[test]
fn relay_process() {
    node::work();
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_that_are_killed_and_frozen_lose_nothing_and_keep_each_key_in_order() {
    let events = std::env::var("SAGA_OUTBOX_EVENTS").map_or(EVENTS, |events| events.parse().unwrap());
    let postgres = testing::shared().await.unwrap();
    let (url, schema, lease) = (postgres.url(), postgres.schema(), Duration::from_millis(300));
    let tally = Arc::new(Tally::default());
    let broker = wire::listen(tally.clone(), Duration::from_millis(2)).await;
    let orders = Orders { url: url.clone(), schema: schema.clone(), broker, lease };
    let relay = async || node::launch(&["--exact", "relay_process", "--nocapture"], &orders).await;
    let drill = Drill { events, keys: 1_000, writers: 8, relays: 2, kills: 10, freezes: 3, lease };
    let report = drill::run(drill, &url, &schema, relay, tally).await;
    println!("{report:?}");
    assert_eq!((report.lost, report.out_of_order, report.left_in_the_table), (0, 0, 0), "{report:?}");
    assert_eq!((report.kills, report.freezes), (10, 3), "{report:?}");
    assert!(report.duplicates > 0, "no blow came between the broker's answer and the deletion: {report:?}");
}
