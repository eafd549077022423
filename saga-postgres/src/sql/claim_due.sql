-- Claims unowned sagas that are due, those first that have been due longest: so many, and few enough bytes of what
-- there is to read of them, but one at least; and none that lapsed more often than $6, without what was survived. Looks
-- no further back than $8 seconds before $7: what was due before that was claimed, unless it was committed late.
-- Served by saga_due, whose order it follows, saga_pkey, saga_snapshot_pkey and saga_journal_pkey.
WITH due AS MATERIALIZED (
    SELECT s.id, s.due_at, s.due_from, s.bytes
    FROM unnest($2::text[], $3::integer[]) AS d (name, version)
    CROSS JOIN LATERAL (
        SELECT id, due_at, due_from, octet_length(input) AS bytes
        FROM {schema}.saga
        WHERE name = d.name AND version = d.version AND due_at <= now()
          AND due_at >= least($7::timestamptz, now()) - make_interval(secs => $8::double precision)
          AND lapses - coalesce(cardinality(array_positions(lost_with, NULL)), 0) <= $6
        ORDER BY due_at
        LIMIT $4
        FOR NO KEY UPDATE SKIP LOCKED
    ) s
    ORDER BY s.due_at
    LIMIT $4
), weighed AS (
    SELECT due.*, sum(due.bytes + w.bytes) OVER (ORDER BY due.due_at, due.id) - due.bytes - w.bytes AS bytes_before
    FROM due
    CROSS JOIN LATERAL (
        SELECT coalesce((SELECT octet_length(state) FROM {schema}.saga_snapshot WHERE saga_id = due.id), 0)
             + coalesce((SELECT sum(octet_length(entry)) FROM {schema}.saga_journal
                         WHERE saga_id = due.id AND seq > coalesce((SELECT seq FROM {schema}.saga_snapshot WHERE saga_id = due.id), 0)), 0) AS bytes
        OFFSET 0
    ) w
)
UPDATE {schema}.saga s
SET owner = $1, epoch = s.epoch + 1, due_at = NULL, due_from = NULL
FROM weighed
WHERE s.id = weighed.id AND weighed.bytes_before < $5::bigint
RETURNING s.id, s.name, s.version, s.key, s.status, s.input, s.epoch, s.lapses, s.lost_with,
          s.traceparent, s.tracestate, s.baggage, s.started_at, now() AS looked_at,
          (SELECT n.seq FROM {schema}.saga_snapshot n WHERE n.saga_id = s.id) AS snapshot_seq,
          (SELECT n.state FROM {schema}.saga_snapshot n WHERE n.saga_id = s.id) AS snapshot,
          -- Lengths, not instants: as old as it was when it was put there, and what it has waited since.
          (SELECT count(*) FROM due) AS found, weighed.due_at AS was_due, s.age_ms + (extract(epoch FROM greatest(weighed.due_at - weighed.due_from, interval '0')) * 1000)::bigint AS told_ms
