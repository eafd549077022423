//! A relay in a process of its own: this program, run again.

use crate::wire::Wire;
use saga_postgres::PgOutbox;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgPoolOptions;
use std::{io::Read, net::SocketAddr, process::Stdio, sync::Arc, time::Duration};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
};

/// With this variable set, the program is a relay.
const ORDERS: &str = "SAGA_OUTBOX_RELAY";
/// What it prints when it runs.
const RUNS: u8 = b'!';

/// What a relay is told.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) url: String,
    pub(crate) schema: String,
    pub(crate) broker: SocketAddr,
    pub(crate) lease: Duration,
}

/// Starts a process, and waits until its relay runs. `arguments` have to bring it to [`work`].
pub(crate) async fn launch(arguments: &[&str], orders: &Orders) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(arguments).env(ORDERS, serde_json::to_string(orders).expect("orders"));
    let command = command.kill_on_drop(true).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("a process");
    let mut printed = child.stdout.take().expect("its output");
    // The harness of tests prints as well.
    while printed.read_u8().await.expect("a relay that runs") != RUNS {}
    tokio::spawn(async move { tokio::io::copy(&mut printed, &mut tokio::io::sink()).await });
    child
}

/// If this process is a relay, works as one for as long as its parent lives, and says so when it is over.
pub(crate) fn work() -> bool {
    let Ok(orders) = std::env::var(ORDERS) else {
        return false;
    };
    let orders: Orders = serde_json::from_str(&orders).expect("orders");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let pool = PgPoolOptions::new().max_connections(1).connect(&orders.url).await.expect("Postgres");
        let outbox = PgOutbox::options(pool, "drill").schema(orders.schema).build().expect("an outbox");
        let relay = outbox.relay(Arc::new(Wire { broker: orders.broker })).poll(Duration::from_millis(20));
        let relay = relay.lease(orders.lease).start().await.expect("a relay");
        println!("{}", char::from(RUNS));
        // The parent never writes: this ends when it does.
        let _ = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0])).await;
        drop(relay);
    });
    true
}
