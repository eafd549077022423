-- Gives the parked events of a shard and a topic back to the relay, where they were in the order. What is behind them stays there until the broker has them.
-- Served by saga_outbox_parked_pkey.
WITH back AS (
    DELETE FROM {schema}.saga_outbox_parked
    WHERE shard = $1 AND aggregatetype = $2 AND reason IS NOT NULL
    RETURNING *
)
INSERT INTO {schema}.saga_outbox
    (shard, seq, id, aggregatetype, aggregateid, type, source, subject, time, content_type, traceparent, headers, extensions,
     created_at, payload)
SELECT shard, seq, id, aggregatetype, aggregateid, type, source, subject, time, content_type, traceparent, headers, extensions,
       created_at, payload
FROM back
