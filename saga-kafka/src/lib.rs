//! Commands, replies and events of `saga-core` over Kafka.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
