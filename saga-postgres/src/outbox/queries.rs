//! The SQL of the outbox, one statement a file.

crate::queries::queries! {
    OutboxQueries:
    publish publish_all
    numbered writers heads work lock read sent park vacuum
    lag parked lock_parked lock_shard unpark unpark_topic discard free
}
