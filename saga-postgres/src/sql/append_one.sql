-- Appends an entry to one journal, as its owner: `append` in short, for what changes nothing else. Served by saga_pkey.
WITH locked AS MATERIALIZED (
    SELECT id, owner = $1 AND epoch = $3 AS mine FROM {schema}.saga WHERE id = $2 FOR NO KEY UPDATE SKIP LOCKED
)
INSERT INTO {schema}.saga_journal (saga_id, seq, writer, entry)
SELECT id, $4, $1, $5 FROM locked WHERE mine
RETURNING saga_id
