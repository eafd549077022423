-- Makes due what these dead workers owned, and counts the lapse. Served by saga_owner and saga_pkey.
WITH orphaned AS MATERIALIZED (
    SELECT id FROM {schema}.saga WHERE owner = ANY ($1) ORDER BY id LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE {schema}.saga s
SET owner = NULL, due_at = now(), epoch = s.epoch + 1, lapses = s.lapses + 1
FROM orphaned
WHERE s.id = orphaned.id
RETURNING s.id
