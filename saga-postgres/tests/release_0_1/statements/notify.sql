-- Tells all processes on this schema. No index.
SELECT pg_notify($1, $2)
