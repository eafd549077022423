-- Deletes what the broker has. Each row is looked up first: joined, a plan that is made while the table is empty would
-- read all of it later on. Served by saga_outbox_pkey.
DELETE FROM {schema}.saga_outbox o
USING unnest($1::smallint[], $2::bigint[]) AS d (shard, seq)
CROSS JOIN LATERAL (
    SELECT w.ctid AS place FROM {schema}.saga_outbox w WHERE w.shard = d.shard AND w.seq = d.seq LIMIT 1
) w
WHERE o.ctid = w.place
