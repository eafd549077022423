-- Gives everything of some keys back to the relay, where it was in the order. Served by saga_outbox_parked_key, key by
-- key as in `sent`.
WITH back AS (
    DELETE FROM {schema}.saga_outbox_parked p
    USING unnest($1::text[], $2::text[]) AS k (topic, key)
    CROSS JOIN LATERAL (
        SELECT q.ctid AS place FROM {schema}.saga_outbox_parked q
        WHERE q.aggregatetype = k.topic AND q.aggregateid = k.key
        ORDER BY q.seq
        OFFSET 0
    ) q
    WHERE p.ctid = q.place
    RETURNING p.*
)
INSERT INTO {schema}.saga_outbox
    (shard, seq, id, aggregatetype, aggregateid, type, source, subject, time, content_type, traceparent, headers, extensions,
     created_at, payload)
SELECT shard, seq, id, aggregatetype, aggregateid, type, source, subject, time, content_type, traceparent, headers, extensions,
       created_at, payload
FROM back
