-- Starts sagas. In the order of keys, so that no two batches wait for each other. Served by saga_key.
INSERT INTO {schema}.saga (id, name, version, key, input, owner, epoch, due_at, traceparent, tracestate, baggage)
SELECT id, name, version, key, input, owner, (owner IS NOT NULL)::integer, CASE WHEN owner IS NULL THEN now() END,
       traceparent, tracestate, baggage
FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::text[], $5::bytea[], $6::uuid[], $7::text[], $8::text[], $9::text[])
     AS i (id, name, version, key, input, owner, traceparent, tracestate, baggage)
ORDER BY name, key
ON CONFLICT DO NOTHING
RETURNING id
