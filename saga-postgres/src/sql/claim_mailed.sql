-- Claims unowned sagas that have unread mail: also mail whose transaction committed just after the saga was released. Reads the letters to these
-- definitions alone, the oldest first, and no more of them than it takes; and those of which an earlier release did not say whose they are. Served
-- by saga_mailbox_for, saga_mailbox_unread and saga_pkey.
WITH mailed AS MATERIALIZED (
    SELECT s.id
    FROM (
        SELECT m.saga_id, m.position
        FROM unnest($2::text[], $3::integer[]) AS d (name, version)
        CROSS JOIN LATERAL (
            SELECT saga_id, position FROM {schema}.saga_mailbox
            WHERE name = d.name AND version = d.version AND read_at IS NULL
            ORDER BY position
        ) m
        UNION ALL
        SELECT saga_id, position FROM {schema}.saga_mailbox WHERE name IS NULL AND read_at IS NULL
    ) m
    JOIN {schema}.saga s ON s.id = m.saga_id
    WHERE s.owner IS NULL AND s.status < 3
      AND (s.name, s.version) IN (SELECT name, version FROM unnest($2::text[], $3::integer[]) AS d (name, version))
      -- A saga counts once.
      AND NOT EXISTS (
          SELECT FROM {schema}.saga_mailbox before
          WHERE before.saga_id = m.saga_id AND before.read_at IS NULL AND before.position < m.position
      )
    LIMIT $4
    FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE {schema}.saga s
SET owner = $1, epoch = s.epoch + 1, due_at = NULL
FROM mailed
WHERE s.id = mailed.id
RETURNING s.id, s.name, s.version, s.key, s.status, s.input, s.epoch, s.lapses, s.lost_with,
          s.traceparent, s.tracestate, s.baggage, s.started_at, now() AS looked_at,
          (SELECT n.seq FROM {schema}.saga_snapshot n WHERE n.saga_id = s.id) AS snapshot_seq,
          (SELECT n.state FROM {schema}.saga_snapshot n WHERE n.saga_id = s.id) AS snapshot, s.age_ms AS told_ms
