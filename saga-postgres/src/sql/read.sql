-- One saga. Served by saga_pkey.
SELECT id, name, version, key, status, input, epoch, lapses,
       (extract(epoch FROM now() - started_at) * 1000)::bigint AS age_ms
FROM {schema}.saga WHERE id = $1
