-- Makes sure that there are rows. Waits for others that are making the same ones. Served by saga_inbox_pkey.
INSERT INTO {schema}.saga_inbox (saga_id, step, generation)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::integer[]) AS i (saga_id, step, generation)
ORDER BY 1, 2, 3
ON CONFLICT DO NOTHING
