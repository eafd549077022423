-- Posts messages; a second one of the same id is dropped. Reads the saga's row, locks nothing. Served by saga_pkey
-- and saga_mailbox_pkey.
WITH input AS (
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::bytea[]) WITH ORDINALITY AS i (saga_id, message, body, n)
), posted AS (
    INSERT INTO {schema}.saga_mailbox (saga_id, message, body, name, version)
    SELECT i.saga_id, i.message, i.body, s.name, s.version FROM input i JOIN {schema}.saga s ON s.id = i.saga_id
    WHERE s.status < 3
    ORDER BY i.n
    ON CONFLICT DO NOTHING
)
SELECT s.status, m.message IS NOT NULL AS before
FROM input i
LEFT JOIN {schema}.saga s ON s.id = i.saga_id
LEFT JOIN {schema}.saga_mailbox m ON m.saga_id = i.saga_id AND m.message = i.message
ORDER BY i.n
