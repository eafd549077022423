-- Appends an entry to one journal, as its owner: `append` in short, for what changes nothing else. Served by saga_worker_pkey and saga_pkey.
INSERT INTO {schema}.saga_journal (saga_id, seq, writer, epoch, entry)
SELECT s.id, $4, alive.id, s.epoch, $5
FROM (SELECT id FROM {schema}.saga_worker WHERE id = $1 FOR KEY SHARE) alive
JOIN {schema}.saga s ON s.id = $2 AND s.owner = alive.id AND s.epoch = $3
RETURNING saga_id
