-- A worker begins. Served by saga_worker_pkey.
INSERT INTO {schema}.saga_worker (id, expires_at, names, versions)
VALUES ($1, now() + $2 * interval '1 millisecond', $3, $4)
ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at
