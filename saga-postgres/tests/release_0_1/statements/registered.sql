-- The fingerprint that stands. Served by saga_definition_pkey.
SELECT fingerprint FROM {schema}.saga_definition WHERE name = $1 AND version = $2
