-- Makes due what a worker owned that was silent and not dead: each lapse counts, and is survived. Served by saga_owner
-- and saga_pkey.
WITH own AS MATERIALIZED (
    SELECT id FROM {schema}.saga WHERE owner = $1 ORDER BY id LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE {schema}.saga s
SET owner = NULL, due_at = now(), due_from = now(), epoch = s.epoch + 1, lapses = s.lapses + 1,
    lost_with = array_append(
        coalesce(s.lost_with, '{}') || array_fill('00000000-0000-0000-0000-000000000000'::uuid, ARRAY[greatest(s.lapses - coalesce(cardinality(s.lost_with), 0), 0)]), NULL)
FROM own
WHERE s.id = own.id
RETURNING s.id
