-- What was put back in the future: the clock was set back since, or another server's is behind. It waits for as long as
-- it was to wait, from now on. Served by saga_due_since and saga_pkey: what is asked of due_at is written so that no other
-- index seems to answer it.
WITH ahead AS MATERIALIZED (
    SELECT id FROM {schema}.saga WHERE (due_at + interval '0') IS NOT NULL AND due_from > now() + interval '1 second' ORDER BY due_from DESC LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE {schema}.saga s
SET due_at = now() + greatest(s.due_at - s.due_from, interval '0'), due_from = now()
FROM ahead
WHERE s.id = ahead.id
RETURNING s.id
