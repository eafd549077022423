#!/usr/bin/env bash
# `CancellationToken::run_until_cancelled` of tokio-util makes a future that is twice as large as the one it is given,
# and `run_until_cancelled_owned` one that is three times as large. Both are async functions that take a future by value:
# each keeps room for it as its argument and again where it is polled, and the owned one is around the other. Their
# neighbours, which do the same job for a timeout or an abort handle, are structs, and add some tens of bytes
# (`tokio::time::timeout`, `futures::future::Abortable`, `TaskTracker::track_future` of the same crate).
#
# This matters where each connection, job or session is a task that stops with its service: what is spawned is allocated
# and copied as a whole. A state machine of 4.4 kB became a task of 13.4 kB, whose allocation and copies were a fifth of
# the processor time of a program with thousands of short tasks. A future that is boxed before it is given away is a
# pointer for all of them.
#
# The script builds a program with the pinned packages, and prints sizes as multiples of a future of 4 KiB. Its exit code
# is 0 as long as the behaviour is as described, 1 with any other. Needs cargo, which fetches the packages. Seen with
# rustc 1.95; how large an async function is depends on the compiler too.
set -euo pipefail

home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
mkdir src

cat >Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2024"

[dependencies]
futures-util = { version = "=0.3.34", default-features = false, features = ["alloc"] }
tokio = { version = "=1.54.1", default-features = false, features = ["rt", "time"] }
tokio-util = { version = "=0.7.20", default-features = false, features = ["rt"] }

[workspace]
TOML

cat >src/main.rs <<'RUST'
use futures_util::future::{AbortHandle, Abortable};
use std::{future::pending, hint::black_box, mem::size_of_val, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const SIZE: usize = 4096;

/// Keeps so many bytes while it waits.
fn job() -> impl Future<Output = ()> {
    let state = [0_u8; SIZE];
    async move {
        pending::<()>().await;
        black_box(&state);
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _inside = runtime.enter();
    let (token, tracker) = (CancellationToken::new(), TaskTracker::new());
    let says = |what: &str, size: usize| println!("{what}: {}", size / SIZE);
    says("the future itself", size_of_val(&job()));
    says("timeout", size_of_val(&tokio::time::timeout(Duration::MAX, job())));
    says("Abortable", size_of_val(&Abortable::new(job(), AbortHandle::new_pair().1)));
    says("TaskTracker::track_future", size_of_val(&tracker.track_future(job())));
    says("run_until_cancelled", size_of_val(&token.run_until_cancelled(job())));
    says("run_until_cancelled_owned", size_of_val(&token.clone().run_until_cancelled_owned(job())));
    let boxed = size_of_val(&token.run_until_cancelled_owned(Box::pin(job())));
    says("run_until_cancelled_owned, of the future in a box", boxed);
}
RUST

cargo run --quiet >seen 2>log || { cat log >&2; exit 1; }
cat seen
cat >expected <<'TEXT'
the future itself: 1
timeout: 1
Abortable: 1
TaskTracker::track_future: 1
run_until_cancelled: 2
run_until_cancelled_owned: 3
run_until_cancelled_owned, of the future in a box: 0
TEXT
diff expected seen
