-- Keeps all relays away from the shard of a parked event, until the transaction ends. Served by saga_outbox_parked_id.
WITH found AS MATERIALIZED (
    SELECT shard FROM {schema}.saga_outbox_parked WHERE id = $1 AND reason IS NOT NULL
)
SELECT pg_advisory_xact_lock(hashtext('{schema}.saga_outbox'), shard) FROM found
