-- Definitions with due sagas that no living worker has registered. It steps from one definition to the next, however
-- many sagas each has. Served by saga_due.
WITH RECURSIVE d AS (
    (SELECT name, version FROM {schema}.saga WHERE due_at IS NOT NULL ORDER BY name, version LIMIT 1)
    UNION ALL
    SELECT n.name, n.version
    FROM d
    CROSS JOIN LATERAL (
        SELECT s.name, s.version FROM {schema}.saga s
        WHERE s.due_at IS NOT NULL AND (s.name, s.version) > (d.name, d.version)
        ORDER BY s.name, s.version
        LIMIT 1
    ) n
)
SELECT d.name, d.version
FROM d
WHERE EXISTS (SELECT FROM {schema}.saga s WHERE s.name = d.name AND s.version = d.version AND s.due_at <= now())
  AND NOT EXISTS (
    SELECT FROM {schema}.saga_worker w, unnest(w.names, w.versions) AS known (name, version)
    WHERE w.expires_at > now() AND known.name = d.name AND known.version = d.version
  )
