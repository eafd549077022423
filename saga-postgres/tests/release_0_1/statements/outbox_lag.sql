-- How much waits, and for how long. Counts what is there; the oldest is at the head of a shard. Served by saga_outbox_pkey.
SELECT (SELECT count(*) FROM {schema}.saga_outbox) AS waiting,
       (SELECT count(*) FROM {schema}.saga_outbox_parked WHERE reason IS NOT NULL) AS parked,
       (SELECT count(*) FROM {schema}.saga_outbox_parked WHERE reason IS NULL) AS behind,
       (SELECT extract(epoch FROM clock_timestamp() - min(head.created_at))::float8
        FROM generate_series(0, 63) AS s (shard)
        CROSS JOIN LATERAL (
            SELECT created_at FROM {schema}.saga_outbox w WHERE w.shard = s.shard::smallint ORDER BY w.seq LIMIT 1
        ) head) AS oldest
