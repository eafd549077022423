-- Gives parked events of a shard and a topic back to the relay, where they were in the order: of those behind $3 the first
-- $4, and few enough bytes, but one at least. What is behind them stays there until the broker has them. Answers how many
-- there were, and the last one; none if there are no more. Served by saga_outbox_parked_pkey.
WITH back AS (
    DELETE FROM {schema}.saga_outbox_parked p
    USING (
        SELECT place, sum(bytes) OVER (ORDER BY seq) - bytes AS bytes_before
        FROM (
            SELECT q.ctid AS place, q.seq, octet_length(q.payload) AS bytes FROM {schema}.saga_outbox_parked q
            WHERE q.shard = $1 AND q.aggregatetype = $2 AND q.seq > $3::bigint AND q.reason IS NOT NULL
            ORDER BY q.seq
            LIMIT $4
        ) q
        OFFSET 0
    ) q
    WHERE p.ctid = q.place AND q.bytes_before < 4194304
    RETURNING p.*
), given AS (
    INSERT INTO {schema}.saga_outbox
        (shard, seq, id, aggregatetype, aggregateid, type, source, subject, time, content_type, traceparent, headers, extensions,
         created_at, payload)
    SELECT shard, seq, id, aggregatetype, aggregateid, type, source, subject, time, content_type, traceparent, headers, extensions,
           created_at, payload
    FROM back
)
SELECT count(*) AS unparked, max(seq) AS last FROM back
