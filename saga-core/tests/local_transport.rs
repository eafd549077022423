//! The transport within one process keeps every promise of a transport.
#![cfg(feature = "testing")]

use async_trait::async_trait;
use saga_core::{
    testing::transport::{self, Broker},
    transport::{LocalTransport, Transport},
};
use std::sync::Arc;

struct Local(LocalTransport);

#[async_trait]
impl Broker for Local {
    async fn node(&self) -> Arc<dyn Transport> {
        Arc::new(self.0.clone())
    }
    async fn topic(&self, _: &str) {}
}

async fn conforms(local: LocalTransport) {
    let report = transport::conformance(&Local(local)).await;
    // It has no records but messages, and is never away.
    assert_eq!(
        report.left_out,
        ["a_record_that_is_no_message_holds_up_nothing", "an_outage_loses_nothing_and_keeps_the_order"]
    );
    assert_eq!(report.kept.len() + report.left_out.len(), transport::cases().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_local_transport_conforms() {
    conforms(LocalTransport::default()).await;
}

#[tokio::test(start_paused = true)]
async fn the_local_transport_conforms_in_virtual_time() {
    conforms(LocalTransport::default()).await;
}

#[tokio::test(start_paused = true)]
async fn the_local_transport_conforms_with_other_limits() {
    conforms(LocalTransport::limited(7, 1000)).await;
    assert_eq!(LocalTransport::limited(7, 1000).max_message_bytes(), 1000);
}
