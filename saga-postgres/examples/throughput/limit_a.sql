-- Limit (a): the rows of one saga of four steps, one transaction a step, no engine.
INSERT INTO {schema}.saga (id, name, version, key, input, owner, epoch)
SELECT id, 'throughput', 1, id::text, 'null'::bytea, '00000000-0000-4000-8000-000000000001', 1
FROM (SELECT (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') || '7' || substr(md5(random()::text), 1, 3) || '8' || substr(md5(random()::text), 1, 15))::uuid AS id) AS new
RETURNING id \gset
INSERT INTO {schema}.saga_journal (saga_id, seq, writer, entry) VALUES (:id, 1, '00000000-0000-4000-8000-000000000001', '[{"succeeded":{"step": 0,"output": null}}]');
INSERT INTO {schema}.saga_journal (saga_id, seq, writer, entry) VALUES (:id, 2, '00000000-0000-4000-8000-000000000001', '[{"succeeded":{"step": 1,"output": null}}]');
INSERT INTO {schema}.saga_journal (saga_id, seq, writer, entry) VALUES (:id, 3, '00000000-0000-4000-8000-000000000001', '[{"succeeded":{"step": 2,"output": null}}]');
WITH journaled AS (
    INSERT INTO {schema}.saga_journal (saga_id, seq, writer, entry) VALUES (:id, 4, '00000000-0000-4000-8000-000000000001', '[{"succeeded":{"step": 3,"output": null}}]')
)
UPDATE {schema}.saga SET status = 3, owner = NULL, changed_at = now() WHERE id = :id;
