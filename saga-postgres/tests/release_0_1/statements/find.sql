-- The saga of a key. Served by saga_key.
SELECT id FROM {schema}.saga WHERE name = $1 AND key = $2
