-- Claims unowned sagas that have unread mail: also mail whose transaction committed just after the saga was released.
-- None that lapsed more often than $6, without what was survived.
-- Reads the letters to these definitions alone, after the number $7, the oldest first, and no more of them than it
-- takes, by number and by weight; and those of which an earlier release did not say whose they are. Served by
-- saga_mailbox_for, saga_mailbox_unread, saga_pkey, saga_snapshot_pkey and saga_journal_pkey.
WITH RECURSIVE letters AS (
    -- Some at a time: then this index serves it however many there are, of whomever.
    SELECT d.name, d.version, next.*
    FROM unnest($2::text[], $3::integer[]) AS d (name, version)
    CROSS JOIN LATERAL (
        SELECT array_agg(saga_id) AS sagas, array_agg(position) AS positions, max(position) AS last
        FROM (
            SELECT saga_id, position FROM {schema}.saga_mailbox
            WHERE name = d.name AND version = d.version AND read_at IS NULL AND position > $7
            ORDER BY position LIMIT 100
        ) m
    ) next
    UNION ALL
    SELECT l.name, l.version, next.*
    FROM letters l
    CROSS JOIN LATERAL (
        SELECT array_agg(saga_id) AS sagas, array_agg(position) AS positions, max(position) AS last
        FROM (
            SELECT saga_id, position FROM {schema}.saga_mailbox
            WHERE name = l.name AND version = l.version AND read_at IS NULL AND position > l.last
            ORDER BY position LIMIT 100
        ) m
    ) next
    WHERE l.last IS NOT NULL
), mailed AS MATERIALIZED (
    -- In any order: what is put back with its letters is not to be first each time.
    SELECT s.id, s.bytes, random() AS place
    FROM (
        SELECT m.saga_id, m.position FROM letters l, unnest(l.sagas, l.positions) AS m (saga_id, position)
        UNION ALL
        SELECT saga_id, position FROM {schema}.saga_mailbox
        WHERE name IS NULL AND version IS NULL AND read_at IS NULL AND position > $7
    ) m
    CROSS JOIN LATERAL (
        SELECT id, octet_length(input) AS bytes
        FROM {schema}.saga
        WHERE id = m.saga_id AND owner IS NULL AND status < 3
          AND (lapses - coalesce(cardinality(array_positions(lost_with, NULL)), 0) <= $6 OR status = 2)
          AND (name, version) IN (SELECT name, version FROM unnest($2::text[], $3::integer[]) AS d (name, version))
          -- A saga counts once. The offset keeps this from being planned as a join with all letters.
          AND NOT EXISTS (
              SELECT FROM {schema}.saga_mailbox before
              WHERE before.saga_id = m.saga_id AND before.read_at IS NULL
                AND before.position < m.position AND before.position > $7
              OFFSET 0
          )
        LIMIT 1
        FOR NO KEY UPDATE SKIP LOCKED
    ) s
    LIMIT $4
), weighed AS (
    SELECT mailed.id, sum(mailed.bytes + w.bytes) OVER (ORDER BY mailed.place) - mailed.bytes - w.bytes AS bytes_before
    FROM mailed
    CROSS JOIN LATERAL (
        SELECT coalesce((SELECT octet_length(state) FROM {schema}.saga_snapshot WHERE saga_id = mailed.id), 0)
             + coalesce((SELECT sum(octet_length(entry)) FROM {schema}.saga_journal
                         WHERE saga_id = mailed.id AND seq > coalesce((SELECT seq FROM {schema}.saga_snapshot WHERE saga_id = mailed.id), 0)), 0) AS bytes
        OFFSET 0
    ) w
)
UPDATE {schema}.saga s
SET owner = $1, epoch = s.epoch + 1, due_at = NULL, due_from = NULL
FROM weighed
WHERE s.id = weighed.id AND weighed.bytes_before < $5::bigint
RETURNING s.id, s.name, s.version, s.key, s.status, s.input, s.epoch, s.lapses, s.lost_with,
          s.traceparent, s.tracestate, s.baggage, s.started_at, now() AS looked_at,
          (SELECT count(*) FROM mailed) AS found,
          (SELECT n.seq FROM {schema}.saga_snapshot n WHERE n.saga_id = s.id) AS snapshot_seq,
          (SELECT n.state FROM {schema}.saga_snapshot n WHERE n.saga_id = s.id) AS snapshot, s.age_ms AS told_ms
