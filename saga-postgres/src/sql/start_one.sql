-- Starts one saga: `start` in short. Served by saga_key.
INSERT INTO {schema}.saga (id, name, version, key, input, owner, epoch, due_at, due_from, traceparent, tracestate, baggage)
VALUES ($1, $2, $3, $4, $5, $6::uuid, ($6::uuid IS NOT NULL)::integer,
        CASE WHEN $6::uuid IS NULL THEN now() END, CASE WHEN $6::uuid IS NULL THEN now() END, $7, $8, $9)
ON CONFLICT DO NOTHING
RETURNING id
