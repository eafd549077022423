-- One saga with its journal and its unread mail, all of one moment: a statement sees one snapshot. Served by saga_pkey, saga_journal_pkey and
-- saga_mailbox_unread.
SELECT s.id, s.name, s.version, s.key, s.status, s.input, s.epoch, s.lapses, s.lost_with,
       s.traceparent, s.tracestate, s.baggage, s.started_at, now() AS looked_at, s.age_ms AS told_ms,
       ARRAY(SELECT j.entry FROM {schema}.saga_journal j WHERE j.saga_id = s.id ORDER BY j.seq) AS journal,
       m.messages, m.bodies
FROM {schema}.saga s
CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(message ORDER BY position), '{}') AS messages, coalesce(array_agg(body ORDER BY position), '{}') AS bodies
    FROM {schema}.saga_mailbox
    WHERE saga_id = s.id AND read_at IS NULL
) m
WHERE s.id = $1
