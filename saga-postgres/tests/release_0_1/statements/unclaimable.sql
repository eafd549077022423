-- Definitions with due sagas that no living worker has registered. Walks saga_due; asked at start-up only.
SELECT d.name, d.version
FROM (SELECT DISTINCT name, version FROM {schema}.saga WHERE due_at IS NOT NULL AND due_at <= now()) d
WHERE NOT EXISTS (
    SELECT FROM {schema}.saga_worker w, unnest(w.names, w.versions) AS known (name, version)
    WHERE w.expires_at > now() AND known.name = d.name AND known.version = d.version
)
