-- Gives parked events of a shard and a topic back to the relay, where they were in the order: the first $4 behind $3. What is behind them stays there until the broker has them.
-- Answers how many there were, and the last one. Served by saga_outbox_parked_pkey.
WITH some AS MATERIALIZED (
    SELECT seq FROM {schema}.saga_outbox_parked
    WHERE shard = $1 AND aggregatetype = $2 AND seq > $3::bigint AND reason IS NOT NULL
    ORDER BY seq
    LIMIT $4
), back AS (
    DELETE FROM {schema}.saga_outbox_parked p
    USING some
    WHERE p.shard = $1 AND p.seq = some.seq
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
