-- A worker begins. Served by saga_worker_pkey.
INSERT INTO {schema}.saga_worker (id, expires_at, lease_ms, names, versions, reads)
VALUES ($1, now() + $2 * interval '1 millisecond', $2, $3, $4, $5)
ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at
