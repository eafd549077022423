-- Claims unowned sagas that are due, those first that have been due longest. Served by saga_due, whose order it follows.
WITH due AS MATERIALIZED (
    SELECT s.id, s.due_at, s.due_from
    FROM unnest($2::text[], $3::integer[]) AS d (name, version)
    CROSS JOIN LATERAL (
        SELECT id, due_at, due_from
        FROM {schema}.saga
        WHERE name = d.name AND version = d.version AND due_at <= now()
        ORDER BY due_at
        LIMIT $4
        FOR NO KEY UPDATE SKIP LOCKED
    ) s
    ORDER BY s.due_at
    LIMIT $4
)
UPDATE {schema}.saga s
SET owner = $1, epoch = s.epoch + 1, due_at = NULL
FROM due
WHERE s.id = due.id
RETURNING s.id, s.name, s.version, s.key, s.status, s.input, s.epoch, s.lapses, s.lost_with,
          s.traceparent, s.tracestate, s.baggage, s.started_at, now() AS looked_at,
          (SELECT n.seq FROM {schema}.saga_snapshot n WHERE n.saga_id = s.id) AS snapshot_seq,
          (SELECT n.state FROM {schema}.saga_snapshot n WHERE n.saga_id = s.id) AS snapshot,
          -- Lengths, not instants: as old as it was when it was put there, and what it has waited since.
          s.age_ms + (extract(epoch FROM greatest(due.due_at - due.due_from, interval '0')) * 1000)::bigint AS told_ms
