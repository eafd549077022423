//! The SQL of the outbox, one statement a file.

crate::queries::queries! {
    OutboxQueries:
    publish
    lock read sent park
    lag parked lock_parked unpark discard free
}
