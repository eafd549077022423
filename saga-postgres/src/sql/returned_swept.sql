-- The lapses that were counted for a worker that was silent and not dead are survived. Served by saga_lost_with and
-- saga_pkey.
WITH swept AS MATERIALIZED (
    SELECT id FROM {schema}.saga WHERE lost_with @> ARRAY[$1::uuid] AND lost_with IS NOT NULL ORDER BY id LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE {schema}.saga s
SET lost_with = array_replace(s.lost_with, $1, NULL)
FROM swept
WHERE s.id = swept.id
RETURNING s.id
