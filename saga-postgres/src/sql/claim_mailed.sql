-- Claims unowned sagas that have unread mail: also mail whose transaction committed just after the saga was released. Served by
-- saga_mailbox_unread and saga_pkey.
WITH mailed AS MATERIALIZED (
    SELECT s.id
    FROM {schema}.saga s
    JOIN (SELECT DISTINCT saga_id FROM {schema}.saga_mailbox WHERE read_at IS NULL) m ON m.saga_id = s.id
    JOIN unnest($2::text[], $3::integer[]) AS d (name, version) ON s.name = d.name AND s.version = d.version
    WHERE s.owner IS NULL AND s.status < 3
    LIMIT $4
    FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE {schema}.saga s
SET owner = $1, epoch = s.epoch + 1, due_at = NULL
FROM mailed
WHERE s.id = mailed.id
RETURNING s.id, s.name, s.version, s.key, s.status, s.input, s.epoch, s.lapses, s.lost_with,
          s.traceparent, s.tracestate, s.baggage, s.started_at, now() AS looked_at, s.age_ms AS told_ms
