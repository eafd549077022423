-- Keeps all relays away from a shard, until the transaction ends. No index.
SELECT pg_advisory_xact_lock(hashtext('{schema}.saga_outbox'), $1)
