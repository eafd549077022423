-- Gives a parked event back to the relay, where it was in the order. What is behind it stays there until the broker has it. Served by saga_outbox_parked_id.
WITH back AS (
    DELETE FROM {schema}.saga_outbox_parked
    WHERE id = $1 AND reason IS NOT NULL
    RETURNING *
)
INSERT INTO {schema}.saga_outbox
    (shard, seq, id, aggregatetype, aggregateid, type, source, subject, time, content_type, traceparent, headers, extensions,
     created_at, payload)
SELECT shard, seq, id, aggregatetype, aggregateid, type, source, subject, time, content_type, traceparent, headers, extensions,
       created_at, payload
FROM back
