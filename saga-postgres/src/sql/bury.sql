-- Forgets workers that were seen to be silent. It waits for a heartbeat that is under way, and then looks again. Served by saga_worker_pkey.
DELETE FROM {schema}.saga_worker w
USING unnest($1::uuid[], $2::timestamptz[]) AS d (id, expires_at)
WHERE w.id = d.id AND w.expires_at = d.expires_at
