-- How many sagas of each name are parked, and how old the oldest is that has not ended. Served by saga_parked and saga_unfinished.
SELECT (SELECT count(*) FROM {schema}.saga s WHERE s.name = n.name AND s.status = 2) AS parked,
       (SELECT (extract(epoch FROM now() - s.started_at) * 1000)::bigint
        FROM {schema}.saga s WHERE s.name = n.name AND s.status < 3 ORDER BY s.started_at LIMIT 1) AS oldest_ms
FROM unnest($1::text[]) WITH ORDINALITY AS n (name, place)
ORDER BY n.place
