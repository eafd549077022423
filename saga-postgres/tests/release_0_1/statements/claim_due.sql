-- Claims unowned sagas that are due, those first that have been due longest. Served by saga_due, whose order it follows.
WITH due AS MATERIALIZED (
    SELECT s.id
    FROM unnest($2::text[], $3::integer[]) AS d (name, version)
    CROSS JOIN LATERAL (
        SELECT id, due_at
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
RETURNING s.id, s.name, s.version, s.key, s.status, s.input, s.epoch, s.lapses, s.traceparent, s.tracestate, s.baggage,
          (extract(epoch FROM now() - s.started_at) * 1000)::bigint AS age_ms
