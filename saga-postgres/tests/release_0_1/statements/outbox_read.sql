-- The oldest events of some shards, save those of the keys in $4 and $5: so many rows a shard, and few enough bytes, but one at least.
-- Served by saga_outbox_pkey, whose order it follows.
--
-- It begins at the head each time. A cursor on seq would step over an event that was numbered early and committed late.
SELECT o.*
FROM unnest($1::smallint[]) AS asked (shard)
CROSS JOIN LATERAL (
    SELECT h.*, sum(h.bytes) OVER (ORDER BY h.seq) AS bytes_so_far
    FROM (
        SELECT w.shard, w.seq, w.id, w.aggregatetype, w.aggregateid, w.type, w.source, w.subject, w.time, w.content_type,
               w.traceparent, w.headers, w.extensions, w.payload, octet_length(w.payload) AS bytes,
               extract(epoch FROM clock_timestamp() - w.created_at)::float8 AS age,
               (SELECT min(p.seq) FROM {schema}.saga_outbox_parked p
                WHERE p.aggregateid = w.aggregateid AND p.aggregatetype = w.aggregatetype) AS parked_from
        FROM {schema}.saga_outbox w
        WHERE w.shard = asked.shard
          AND (w.aggregatetype, w.aggregateid) NOT IN (SELECT topic, key FROM unnest($4::text[], $5::text[]) AS t (topic, key))
        ORDER BY w.seq
        LIMIT $2
    ) h
) o
WHERE o.bytes_so_far - o.bytes < $3
ORDER BY o.shard, o.seq
