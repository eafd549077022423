-- Takes those shards that no other relay is at, until the transaction ends. Waits for nobody, writes nothing. No index.
WITH asked AS MATERIALIZED (
    SELECT shard FROM unnest($1::smallint[]) AS asked (shard)
)
SELECT shard FROM asked WHERE pg_try_advisory_xact_lock(hashtext('{schema}.saga_outbox'), shard)
