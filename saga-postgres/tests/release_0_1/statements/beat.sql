-- A worker lives, unless it had lapsed before: then it never comes back. Served by saga_worker_pkey.
UPDATE {schema}.saga_worker
SET expires_at = now() + $2 * interval '1 millisecond'
WHERE id = $1 AND expires_at > now()
RETURNING id
