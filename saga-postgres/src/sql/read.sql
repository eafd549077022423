-- One saga's row. What it has besides is read after it, and may be newer. Served by saga_pkey.
SELECT s.id, s.name, s.version, s.key, s.status, s.input, s.epoch, s.lapses, s.lost_with,
       s.traceparent, s.tracestate, s.baggage, s.started_at, now() AS looked_at, s.age_ms AS told_ms,
       NULL::integer AS snapshot_seq, NULL::bytea AS snapshot
FROM {schema}.saga s
WHERE s.id = $1
