-- Deletes what the broker has. Served by saga_outbox_pkey.
DELETE FROM {schema}.saga_outbox o
USING unnest($1::smallint[], $2::bigint[]) AS d (shard, seq)
WHERE o.shard = d.shard AND o.seq = d.seq
