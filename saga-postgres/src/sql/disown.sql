-- Gives back sagas that their owner does not know of. Served by saga_pkey.
WITH mine AS MATERIALIZED (
    SELECT id FROM {schema}.saga WHERE id = ANY ($2) AND owner = $1 ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE {schema}.saga s
SET owner = NULL, due_at = now(), epoch = s.epoch + 1
FROM mine
WHERE s.id = mine.id
RETURNING s.id
