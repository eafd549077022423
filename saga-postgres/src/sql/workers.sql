-- The workers, and whether their leases are over by the clock. A handful of rows.
SELECT id, expires_at, expires_at <= now() AS expired, lease_ms FROM {schema}.saga_worker
