-- The newest journals that a living worker with this definition can read. A handful of rows.
SELECT max(coalesce(w.reads, 0)) AS reads
FROM {schema}.saga_worker w, unnest(w.names, w.versions) AS known (name, version)
WHERE known.name = $1 AND known.version = $2 AND w.expires_at > now()
