-- Gives back sagas that their owner does not know of. Served by saga_pkey.
WITH mine AS MATERIALIZED (
    SELECT s.id
    FROM unnest($2::uuid[], $3::bigint[]) AS i (id, claimed)
    JOIN {schema}.saga s ON s.id = i.id
    WHERE s.owner = $1 AND s.epoch = i.claimed
    ORDER BY s.id
    FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE {schema}.saga s
SET owner = NULL, due_at = now(), epoch = s.epoch + 1
FROM mine
WHERE s.id = mine.id
RETURNING s.id
