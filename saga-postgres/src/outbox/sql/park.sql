-- Puts events aside: those that the broker refused, with its reason, and those behind them, without one. Served by
-- saga_outbox_pkey, row by row as in `sent`.
WITH aside AS (
    DELETE FROM {schema}.saga_outbox o
    USING unnest($1::smallint[], $2::bigint[], $3::text[]) AS d (shard, seq, reason)
    CROSS JOIN LATERAL (
        SELECT w.ctid AS place FROM {schema}.saga_outbox w WHERE w.shard = d.shard AND w.seq = d.seq LIMIT 1
    ) w
    WHERE o.ctid = w.place
    RETURNING o.*, d.reason
)
INSERT INTO {schema}.saga_outbox_parked
    (shard, seq, id, aggregatetype, aggregateid, type, source, subject, time, content_type, traceparent, headers, extensions,
     created_at, payload, reason)
SELECT shard, seq, id, aggregatetype, aggregateid, type, source, subject, time, content_type, traceparent, headers, extensions,
       created_at, payload, reason
FROM aside
