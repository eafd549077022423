-- Forgets workers that were seen to be silent, and have not beaten since. Who beats at this moment is passed over.
-- Served by saga_worker_pkey.
WITH silent AS MATERIALIZED (
    SELECT w.id
    FROM {schema}.saga_worker w
    JOIN unnest($1::uuid[], $2::timestamptz[]) AS d (id, expires_at) ON w.id = d.id AND w.expires_at = d.expires_at
    FOR UPDATE OF w SKIP LOCKED
)
DELETE FROM {schema}.saga_worker w
USING silent s
WHERE w.id = s.id
RETURNING w.id
