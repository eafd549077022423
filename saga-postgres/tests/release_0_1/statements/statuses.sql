-- Where sagas stand. Served by saga_pkey.
SELECT id, status FROM {schema}.saga WHERE id = ANY ($1)
