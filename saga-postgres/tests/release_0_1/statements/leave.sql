-- A worker is done. Served by saga_worker_pkey.
DELETE FROM {schema}.saga_worker WHERE id = $1
