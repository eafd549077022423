-- Gives what is parked of some keys back to the relay, where it was in the order: of all of them 500 at most, and few
-- enough bytes, but of each one at least. What is left of a key comes behind that, and is given back when the broker has
-- some of it. Served by saga_outbox_parked_key, key by key as in `sent`.
WITH back AS (
    DELETE FROM {schema}.saga_outbox_parked p
    USING unnest($1::text[], $2::text[]) AS k (topic, key)
    CROSS JOIN LATERAL (
        SELECT place, sum(bytes) OVER (ORDER BY seq) - bytes AS bytes_before
        FROM (
            SELECT q.ctid AS place, q.seq, octet_length(q.payload) AS bytes FROM {schema}.saga_outbox_parked q
            WHERE q.aggregatetype = k.topic AND q.aggregateid = k.key
            ORDER BY q.seq
            LIMIT greatest(500 / greatest(cardinality($1::text[]), 1), 1)
        ) q
    ) q
    WHERE p.ctid = q.place AND q.bytes_before < greatest(4194304 / greatest(cardinality($1::text[]), 1), 1)
    RETURNING p.*
)
INSERT INTO {schema}.saga_outbox
    (shard, seq, id, aggregatetype, aggregateid, type, source, subject, time, content_type, traceparent, headers, extensions,
     created_at, payload)
SELECT shard, seq, id, aggregatetype, aggregateid, type, source, subject, time, content_type, traceparent, headers, extensions,
       created_at, payload
FROM back
