-- Those of some shards ($1) that have events to be read now: the same as `read` would find. Served by saga_outbox_topic
-- for what is older than the number $2, and by saga_outbox_pkey for what is younger.
WITH head AS MATERIALIZED (
    SELECT shard, topic, first FROM unnest($3::smallint[], $4::text[], $5::bigint[]) AS h (shard, topic, first)
), alone AS MATERIALIZED (
    SELECT topic, key FROM unnest($7::text[], $8::text[]) AS k (topic, key)
)
SELECT asked.shard
FROM unnest($1::smallint[]) AS asked (shard)
CROSS JOIN LATERAL (
    (
        SELECT
        FROM head
        CROSS JOIN LATERAL (
            SELECT FROM {schema}.saga_outbox w
            WHERE w.shard::int = head.shard AND w.aggregatetype || '' = head.topic AND w.seq + 0 >= head.first
              AND (w.aggregatetype, w.aggregateid) NOT IN (SELECT topic, key FROM alone)
            ORDER BY w.seq + 0 LIMIT 1
        ) old
        WHERE head.shard = asked.shard AND head.topic <> ALL ($6::text[])
        LIMIT 1
    )
    UNION ALL
    (
        SELECT
        FROM {schema}.saga_outbox w
        WHERE w.shard = asked.shard AND w.seq > $2 AND w.aggregatetype <> ALL ($6::text[])
          AND (w.shard, w.aggregatetype) NOT IN (SELECT shard, topic FROM head)
          AND (w.aggregatetype, w.aggregateid) NOT IN (SELECT topic, key FROM alone)
        ORDER BY w.seq LIMIT 1
    )
    LIMIT 1
) found
