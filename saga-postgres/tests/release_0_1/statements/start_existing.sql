-- The sagas that have these keys. A statement of its own, after the insert: its snapshot sees what the insert waited for. Served by saga_key.
SELECT s.id, s.name, s.key, s.input
FROM unnest($1::text[], $2::text[]) AS i (name, key)
JOIN {schema}.saga s ON s.name = i.name AND s.key = i.key
