-- Those of some shards that have events. Served by saga_outbox_pkey.
SELECT asked.shard
FROM unnest($1::smallint[]) AS asked (shard)
WHERE EXISTS (SELECT FROM {schema}.saga_outbox w WHERE w.shard = asked.shard)
