#!/usr/bin/env bash
# A pool of deadpool creates its objects when they are asked for. `Pool::resize` to fewer than the pool was built with
# takes away only what has been created: the places that were never used stay, one permit each. So a pool of twelve of
# which two were in use and that was resized to three goes on handing out objects until there are twelve, while
# `status().max_size` says three and `status().size` says twelve. Resized back, it gets as many places more as it did
# not lose: twenty-one objects are out at once, of a pool whose largest size was ever twelve.
#
# This matters where a pool is made smaller because the other side has room for no more, which is when not all of its
# objects exist: the limit does nothing, and each resize up and down raises the real one. A semaphore in front of the
# pool, whose permits are kept aside for a while, limits what is handed out.
#
# The script builds a program with the pinned packages, and prints what the pool hands out. Its exit code is 0 as long
# as the behaviour is as described, 1 with any other. Needs cargo, which fetches the packages.
set -euo pipefail

home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
mkdir src

cat >Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"

[dependencies]
deadpool = { version = "=0.13.1", default-features = false, features = ["managed"] }
tokio = { version = "=1.54.1", default-features = false, features = ["rt", "macros"] }

[workspace]
TOML

cat >src/main.rs <<'RUST'
use deadpool::managed::{Manager, Metrics, Object, Pool, RecycleResult, Timeouts};

struct Maker;

impl Manager for Maker {
    type Type = ();
    type Error = std::convert::Infallible;

    async fn create(&self) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn recycle(&self, _: &mut (), _: &Metrics) -> RecycleResult<Self::Error> {
        Ok(())
    }
}

/// Takes objects for as long as the pool hands out one at once.
async fn take_all(pool: &Pool<Maker>, taken: &mut Vec<Object<Maker>>) {
    let at_once = Timeouts { wait: Some(std::time::Duration::ZERO), create: None, recycle: None };
    while let Ok(object) = pool.timeout_get(&at_once).await {
        taken.push(object);
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let pool = Pool::builder(Maker).max_size(12).build().unwrap();
    let mut taken = vec![pool.get().await.unwrap(), pool.get().await.unwrap()];

    pool.resize(3);
    take_all(&pool, &mut taken).await;
    let status = pool.status();
    println!("resized from 12 to 3 with 2 in use: {} are out, max_size {}, size {}", taken.len(), status.max_size, status.size);

    pool.resize(12);
    take_all(&pool, &mut taken).await;
    let status = pool.status();
    println!("resized back to 12: {} are out, max_size {}, size {}", taken.len(), status.max_size, status.size);
}
RUST

cargo run --quiet >seen 2>log || { cat log >&2; exit 1; }
cat seen
cat >expected <<'TEXT'
resized from 12 to 3 with 2 in use: 12 are out, max_size 3, size 12
resized back to 12: 21 are out, max_size 12, size 21
TEXT
diff expected seen
