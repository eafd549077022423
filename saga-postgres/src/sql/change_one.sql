-- Appends to one journal, as its owner, and changes its saga's row: `append` in short, for what reads no mail. Served
-- by saga_pkey.
WITH locked AS MATERIALIZED (
    SELECT id, owner = $1 AND epoch = $3 AS mine FROM {schema}.saga WHERE id = $2 FOR NO KEY UPDATE SKIP LOCKED
), journaled AS (
    INSERT INTO {schema}.saga_journal (saga_id, seq, writer, entry)
    SELECT id, $4, $1, $5 FROM locked WHERE mine AND $5::bytea IS NOT NULL
)
UPDATE {schema}.saga s
SET status = coalesce($6, s.status),
    owner = CASE WHEN NOT $7 THEN s.owner END,
    due_at = CASE WHEN $7 THEN now() + $8::bigint * interval '1 millisecond' END,
    due_from = CASE WHEN $7 AND $8 IS NOT NULL THEN now() END,
    age_ms = CASE WHEN $7 AND $8 IS NOT NULL THEN $9::bigint END,
    changed_at = now()
FROM locked
WHERE s.id = locked.id AND locked.mine
RETURNING s.id
