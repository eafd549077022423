-- Where each topic of some shards begins, if it does so at a number of $2 or less: with its oldest event, or with one
-- that is parked and may come back. One statement, so that an event on its way between the two tables is in one of
-- them. Says also where it begins without the keys in $3 and $4. Served by saga_outbox_topic and
-- saga_outbox_parked_topic, from topic to topic.
WITH RECURSIVE waiting AS (
    SELECT asked.shard, head.topic, head.seq
    FROM unnest($1::smallint[]) AS asked (shard)
    CROSS JOIN LATERAL (
        SELECT w.aggregatetype AS topic, w.seq FROM {schema}.saga_outbox w
        WHERE w.shard::int = asked.shard
        ORDER BY w.aggregatetype || '', w.seq + 0 LIMIT 1
    ) head
    UNION ALL
    SELECT last.shard, head.topic, head.seq
    FROM waiting last
    CROSS JOIN LATERAL (
        SELECT w.aggregatetype AS topic, w.seq FROM {schema}.saga_outbox w
        WHERE w.shard::int = last.shard AND w.aggregatetype || '' > last.topic
        ORDER BY w.aggregatetype || '', w.seq + 0 LIMIT 1
    ) head
), parked AS (
    SELECT asked.shard, head.topic, head.seq
    FROM unnest($1::smallint[]) AS asked (shard)
    CROSS JOIN LATERAL (
        SELECT p.aggregatetype AS topic, p.seq FROM {schema}.saga_outbox_parked p
        WHERE p.shard::int = asked.shard
        ORDER BY p.aggregatetype || '', p.seq + 0 LIMIT 1
    ) head
    UNION ALL
    SELECT last.shard, head.topic, head.seq
    FROM parked last
    CROSS JOIN LATERAL (
        SELECT p.aggregatetype AS topic, p.seq FROM {schema}.saga_outbox_parked p
        WHERE p.shard::int = last.shard AND p.aggregatetype || '' > last.topic
        ORDER BY p.aggregatetype || '', p.seq + 0 LIMIT 1
    ) head
)
SELECT head.shard, head.topic, head.first,
       CASE WHEN head.topic = ANY ($3::text[]) THEN least(head.parked, coalesce((
           SELECT w.seq FROM {schema}.saga_outbox w
           WHERE w.shard::int = head.shard AND w.aggregatetype || '' = head.topic
             AND w.seq + 0 BETWEEN head.first AND $2
             AND (w.aggregatetype, w.aggregateid) NOT IN (
                 SELECT topic, key FROM unnest($3::text[], $4::text[]) AS k (topic, key)
             )
           ORDER BY w.seq + 0 LIMIT 1
       ), $2 + 1)) ELSE head.first END AS open
FROM (
    SELECT shard, topic, min(seq) AS first, min(seq) FILTER (WHERE is_parked) AS parked
    FROM (SELECT *, false AS is_parked FROM waiting UNION ALL SELECT *, true FROM parked) AS heads
    WHERE seq <= $2
    GROUP BY shard, topic
) head
