-- Remembers a fingerprint, or leaves the one that was remembered before. Served by saga_definition_pkey.
INSERT INTO {schema}.saga_definition (name, version, fingerprint) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING
