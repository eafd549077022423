//! The SQL of the outbox, one statement a file.

crate::queries::queries! {
    OutboxQueries:
    publish
    work lock read sent park vacuum
    lag parked lock_parked unpark discard free
}
