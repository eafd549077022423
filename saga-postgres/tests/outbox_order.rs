//! Eight writers, a thousand keys, relays that are killed again and again: each key is published in its order, whole.
//!
//! `cargo run --release -p saga-postgres --all-features --example outbox_order` does the same with a million events and fifty kills.

#[path = "../examples/outbox_order/drill.rs"]
mod drill;
#[path = "../examples/outbox_order/recorder.rs"]
mod recorder;

use drill::{Drill, Tally};
use recorder::Recorder;
use saga_postgres::testing;
use std::{sync::Arc, time::Duration};

/// How many events, unless the environment says otherwise.
const EVENTS: u64 = 50_000;

#[tokio::test(flavor = "multi_thread")]
async fn relays_that_are_killed_again_and_again_lose_nothing_and_keep_each_key_in_order() {
    let events = std::env::var("OUTBOX_EVENTS").map_or(EVENTS, |events| events.parse().unwrap());
    let postgres = testing::shared().await.unwrap();
    let tally = Arc::new(Tally::default());
    let recorder = Arc::new(Recorder { tally: tally.clone(), pause: Duration::from_millis(2) });
    let drill = Drill { events, keys: 1_000, writers: 8, relays: 2, kills: 20 };
    let report = drill::run(drill, &postgres.url(), &postgres.schema(), recorder, tally).await;
    println!("{report:?}");
    assert_eq!((report.lost, report.out_of_order, report.left_in_the_table), (0, 0, 0), "{report:?}");
    assert_eq!(report.kills, 20, "{report:?}");
    assert!(report.duplicates > 0, "no kill came between the broker's answer and the deletion: {report:?}");
}
