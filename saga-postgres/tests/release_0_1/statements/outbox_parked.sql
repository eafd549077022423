-- Parked events, those first that were parked first, and how many wait behind each. Served by saga_outbox_parked_key.
SELECT p.id, p.aggregatetype, p.aggregateid, p.type, p.reason, p.created_at, p.parked_at,
       (SELECT count(*) FROM {schema}.saga_outbox_parked b
        WHERE b.aggregateid = p.aggregateid AND b.aggregatetype = p.aggregatetype AND b.reason IS NULL) AS behind
FROM {schema}.saga_outbox_parked p
WHERE p.reason IS NOT NULL
ORDER BY p.parked_at, p.seq
LIMIT $1
