-- Appends to one journal, as its owner, and changes its saga's row: `append` in short, for what reads no mail. Served by saga_worker_pkey and saga_pkey.
WITH alive AS MATERIALIZED (
    SELECT id FROM {schema}.saga_worker WHERE id = $1 FOR KEY SHARE
), locked AS MATERIALIZED (
    SELECT s.id
    FROM alive
    JOIN {schema}.saga s ON s.id = $2 AND s.owner = alive.id AND s.epoch = $3
    FOR NO KEY UPDATE OF s SKIP LOCKED
), journaled AS (
    INSERT INTO {schema}.saga_journal (saga_id, seq, writer, epoch, entry)
    SELECT id, $4, $1, $3, $5 FROM locked WHERE $5::bytea IS NOT NULL
)
UPDATE {schema}.saga s
SET status = coalesce($6, s.status),
    owner = CASE WHEN NOT $7 THEN s.owner END,
    due_at = CASE WHEN $7 THEN now() + $8::bigint * interval '1 millisecond' END,
    due_from = CASE WHEN $7 AND $8 IS NOT NULL THEN now() END,
    age_ms = CASE WHEN $7 AND $8 IS NOT NULL THEN $9::bigint END,
    changed_at = now()
FROM locked
WHERE s.id = locked.id
RETURNING s.id
