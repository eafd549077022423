-- Makes due what these workers owned, and counts the lapse: `lost_with` has a place for each. With $3 they were silent
-- and not dead, and it is survived. Served by saga_owner and saga_pkey.
WITH owned AS MATERIALIZED (
    -- Apart from the order: or all of saga_pkey may be walked for it.
    SELECT id FROM {schema}.saga WHERE owner = ANY ($1) LIMIT $2
), orphaned AS MATERIALIZED (
    SELECT s.id
    FROM (SELECT id FROM owned ORDER BY id) o
    CROSS JOIN LATERAL (
        SELECT id FROM {schema}.saga WHERE id = o.id AND owner = ANY ($1) FOR NO KEY UPDATE SKIP LOCKED
    ) s
)
UPDATE {schema}.saga s
SET owner = NULL, due_at = now(), due_from = now(), epoch = s.epoch + 1, lapses = s.lapses + 1,
    -- An earlier release counted without it: what is not known is nobody who comes back.
    lost_with = array_append(
        coalesce(s.lost_with, '{}')
            || array_fill('00000000-0000-0000-0000-000000000000'::uuid,
                          ARRAY[greatest(s.lapses - coalesce(cardinality(s.lost_with), 0), 0)]),
        CASE WHEN NOT $3 THEN s.owner END)
FROM orphaned
WHERE s.id = orphaned.id
RETURNING s.id
