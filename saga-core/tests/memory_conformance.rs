//! The store in memory keeps every promise of a store but durability.
#![cfg(feature = "testing")]

use saga_core::{MemoryStore, testing::conformance};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_memory_store_conforms() {
    conformance::store(async || MemoryStore::default()).await;
}

/// Time is tokio's: the cases mean the same when it is virtual.
#[tokio::test(start_paused = true)]
async fn the_memory_store_conforms_in_virtual_time() {
    conformance::store(async || MemoryStore::default()).await;
}
