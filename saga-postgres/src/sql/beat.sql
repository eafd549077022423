-- A worker lives, unless it was buried: then it never comes back. Whether its lease seems to be over by the clock says
-- nothing: the clock may have been set. Served by saga_worker_pkey.
UPDATE {schema}.saga_worker
SET expires_at = now() + $2 * interval '1 millisecond', lease_ms = $2
WHERE id = $1
RETURNING id
