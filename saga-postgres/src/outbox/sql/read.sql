-- The oldest events of some shards ($1), save those of the topics in $6 and the keys in $7 and $8: at most $11 events a
-- shard and few enough bytes ($12), but one at least; of each topic at most so many a shard as $9 and $10 say, or $13.
-- What is read of a key is never more than the beginning of what there is.
--
-- Two ways in. A topic that has events up to the number $2 is read from its own head ($3, $4, $5), by
-- saga_outbox_topic. Any other has none up to there, and never will: it is read from there on, by saga_outbox_pkey. So
-- nothing is passed over that was left by those who are gone, or belongs to a topic that is left alone. Served by
-- saga_outbox_topic, saga_outbox_pkey and saga_outbox_parked_key.
WITH head AS MATERIALIZED (
    SELECT shard, topic, first FROM unnest($3::smallint[], $4::text[], $5::bigint[]) AS h (shard, topic, first)
), alone AS MATERIALIZED (
    SELECT topic, key FROM unnest($7::text[], $8::text[]) AS k (topic, key)
), own AS MATERIALIZED (
    SELECT topic, most FROM unnest($9::text[], $10::bigint[]) AS o (topic, most)
)
SELECT o.*
FROM unnest($1::smallint[]) AS asked (shard)
CROSS JOIN LATERAL (
    SELECT w.shard, w.seq, w.id, w.aggregatetype, w.aggregateid, w.type, w.source, w.subject, w.time, w.content_type,
           w.traceparent, w.headers, w.extensions, w.payload,
           extract(epoch FROM clock_timestamp() - w.created_at)::float8 AS age,
           (SELECT min(p.seq) FROM {schema}.saga_outbox_parked p
            WHERE p.aggregateid = w.aggregateid AND p.aggregatetype = w.aggregatetype) AS parked_from,
           octet_length(w.payload) AS bytes,
           sum(octet_length(w.payload)) OVER (ORDER BY w.seq) AS bytes_so_far
    FROM (
        SELECT found.seq
        FROM (
            SELECT old.seq, old.topic, 1 AS place
            FROM head
            CROSS JOIN LATERAL (
                SELECT w.seq, w.aggregatetype AS topic
                FROM {schema}.saga_outbox w
                WHERE w.shard::int = head.shard AND w.aggregatetype || '' = head.topic AND w.seq + 0 >= head.first
                  AND (w.aggregatetype, w.aggregateid) NOT IN (SELECT topic, key FROM alone)
                ORDER BY w.seq + 0
                LIMIT least($11, coalesce((SELECT own.most FROM own WHERE own.topic = head.topic), $13))
            ) old
            WHERE head.shard = asked.shard AND head.topic <> ALL ($6::text[])
            UNION ALL
            SELECT new.seq, new.topic, row_number() OVER (PARTITION BY new.topic ORDER BY new.seq) AS place
            FROM (
                SELECT w.seq, w.aggregatetype AS topic
                FROM {schema}.saga_outbox w
                WHERE w.shard = asked.shard AND w.seq > $2 AND w.aggregatetype <> ALL ($6::text[])
                  AND (w.shard, w.aggregatetype) NOT IN (SELECT shard, topic FROM head)
                  AND (w.aggregatetype, w.aggregateid) NOT IN (SELECT topic, key FROM alone)
                ORDER BY w.seq
                LIMIT $11
            ) new
        ) found
        WHERE found.place <= coalesce((SELECT own.most FROM own WHERE own.topic = found.topic), $13)
        ORDER BY found.seq
        LIMIT $11
    ) found
    CROSS JOIN LATERAL (
        SELECT * FROM {schema}.saga_outbox w WHERE w.shard = asked.shard AND w.seq = found.seq LIMIT 1
    ) w
) o
WHERE o.bytes_so_far - o.bytes < $12
ORDER BY o.shard, o.seq
