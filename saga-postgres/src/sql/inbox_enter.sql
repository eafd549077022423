-- Makes sure that there are rows. Waits for others that are making the same ones. Served by saga_inbox_pkey.
-- From here on only the inbox itself can commit this transaction.
WITH open AS (
    INSERT INTO {schema}.saga_inbox_open DEFAULT VALUES
)
INSERT INTO {schema}.saga_inbox (saga_id, step, generation)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::integer[]) AS i (saga_id, step, generation)
ORDER BY 1, 2, 3
ON CONFLICT DO NOTHING
