-- Limit (b): the rows of 200 sagas of four steps by the group-commit statement alone (src/sql/append.sql, with its parameters filled in), no engine.
WITH started AS (
    INSERT INTO {schema}.saga (id, name, version, key, input, owner, epoch)
    SELECT id, 'throughput', 1, id::text, 'null'::bytea, '00000000-0000-4000-8000-000000000001', 1
    FROM (SELECT (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text || random()::text), 1, 3) || '8' || substr(md5(n::text || random()::text), 1, 15))::uuid AS id FROM generate_series(1, 200) AS n) AS new
    ON CONFLICT DO NOTHING
    RETURNING id
)
SELECT array_agg(id)::text AS ids FROM started \gset
WITH locked AS MATERIALIZED (
    SELECT i.*, s.owner = '00000000-0000-4000-8000-000000000001' AND s.epoch = i.claimed AS mine
    FROM unnest(:ids::uuid[], array_fill(1::bigint, ARRAY[200])::bigint[], array_fill(1, ARRAY[200])::integer[], array_fill('[{"succeeded":{"step": 0,"output": null}}]'::bytea, ARRAY[200])::bytea[], array_fill(NULL::smallint, ARRAY[200])::smallint[], array_fill(false, ARRAY[200])::boolean[], array_fill(NULL::bigint, ARRAY[200])::bigint[], array_fill(0::bigint, ARRAY[200])::bigint[], array_fill(NULL::bytea, ARRAY[200])::bytea[])
         AS i (id, claimed, seq, entry, status, release, due_in_ms, age_ms, snapshot)
    JOIN {schema}.saga s ON s.id = i.id
    ORDER BY s.id
    FOR NO KEY UPDATE OF s SKIP LOCKED
), journaled AS (
    INSERT INTO {schema}.saga_journal (saga_id, seq, writer, entry)
    SELECT id, seq, '00000000-0000-4000-8000-000000000001', entry FROM locked WHERE mine AND entry IS NOT NULL
), changed AS (
    UPDATE {schema}.saga s
    SET status = coalesce(l.status, s.status),
        owner = CASE WHEN NOT l.release THEN s.owner END,
        due_at = CASE WHEN l.release THEN now() + l.due_in_ms * interval '1 millisecond' END,
        due_from = CASE WHEN l.release AND l.due_in_ms IS NOT NULL THEN now() END,
        age_ms = CASE WHEN l.release AND l.due_in_ms IS NOT NULL THEN l.age_ms END,
        changed_at = now()
    FROM locked l
    WHERE s.id = l.id AND l.mine AND (l.release OR l.status IS NOT NULL)
), kept AS (
    INSERT INTO {schema}.saga_snapshot (saga_id, seq, state)
    SELECT id, seq, snapshot FROM locked WHERE mine AND snapshot <> ''
    ON CONFLICT (saga_id) DO UPDATE SET seq = excluded.seq, state = excluded.state
), dropped AS (
    -- An empty one says that there is none any more.
    DELETE FROM {schema}.saga_snapshot n USING locked l WHERE n.saga_id = l.id AND l.mine AND l.snapshot = ''
), folded AS (
    UPDATE {schema}.saga_mailbox m
    SET read_at = now()
    FROM (
        SELECT saga_id, message, saga_id IN (SELECT id FROM locked WHERE mine) AS mine FROM unnest('{}'::uuid[], '{}'::text[]) AS r (saga_id, message)
    ) r
    WHERE m.saga_id = r.saga_id AND m.message = r.message AND r.mine
)
SELECT count(mine) AS written FROM locked \gset
WITH locked AS MATERIALIZED (
    SELECT i.*, s.owner = '00000000-0000-4000-8000-000000000001' AND s.epoch = i.claimed AS mine
    FROM unnest(:ids::uuid[], array_fill(1::bigint, ARRAY[200])::bigint[], array_fill(2, ARRAY[200])::integer[], array_fill('[{"succeeded":{"step": 1,"output": null}}]'::bytea, ARRAY[200])::bytea[], array_fill(NULL::smallint, ARRAY[200])::smallint[], array_fill(false, ARRAY[200])::boolean[], array_fill(NULL::bigint, ARRAY[200])::bigint[], array_fill(0::bigint, ARRAY[200])::bigint[], array_fill(NULL::bytea, ARRAY[200])::bytea[])
         AS i (id, claimed, seq, entry, status, release, due_in_ms, age_ms, snapshot)
    JOIN {schema}.saga s ON s.id = i.id
    ORDER BY s.id
    FOR NO KEY UPDATE OF s SKIP LOCKED
), journaled AS (
    INSERT INTO {schema}.saga_journal (saga_id, seq, writer, entry)
    SELECT id, seq, '00000000-0000-4000-8000-000000000001', entry FROM locked WHERE mine AND entry IS NOT NULL
), changed AS (
    UPDATE {schema}.saga s
    SET status = coalesce(l.status, s.status),
        owner = CASE WHEN NOT l.release THEN s.owner END,
        due_at = CASE WHEN l.release THEN now() + l.due_in_ms * interval '1 millisecond' END,
        due_from = CASE WHEN l.release AND l.due_in_ms IS NOT NULL THEN now() END,
        age_ms = CASE WHEN l.release AND l.due_in_ms IS NOT NULL THEN l.age_ms END,
        changed_at = now()
    FROM locked l
    WHERE s.id = l.id AND l.mine AND (l.release OR l.status IS NOT NULL)
), kept AS (
    INSERT INTO {schema}.saga_snapshot (saga_id, seq, state)
    SELECT id, seq, snapshot FROM locked WHERE mine AND snapshot <> ''
    ON CONFLICT (saga_id) DO UPDATE SET seq = excluded.seq, state = excluded.state
), dropped AS (
    -- An empty one says that there is none any more.
    DELETE FROM {schema}.saga_snapshot n USING locked l WHERE n.saga_id = l.id AND l.mine AND l.snapshot = ''
), folded AS (
    UPDATE {schema}.saga_mailbox m
    SET read_at = now()
    FROM (
        SELECT saga_id, message, saga_id IN (SELECT id FROM locked WHERE mine) AS mine FROM unnest('{}'::uuid[], '{}'::text[]) AS r (saga_id, message)
    ) r
    WHERE m.saga_id = r.saga_id AND m.message = r.message AND r.mine
)
SELECT count(mine) AS written FROM locked \gset
WITH locked AS MATERIALIZED (
    SELECT i.*, s.owner = '00000000-0000-4000-8000-000000000001' AND s.epoch = i.claimed AS mine
    FROM unnest(:ids::uuid[], array_fill(1::bigint, ARRAY[200])::bigint[], array_fill(3, ARRAY[200])::integer[], array_fill('[{"succeeded":{"step": 2,"output": null}}]'::bytea, ARRAY[200])::bytea[], array_fill(NULL::smallint, ARRAY[200])::smallint[], array_fill(false, ARRAY[200])::boolean[], array_fill(NULL::bigint, ARRAY[200])::bigint[], array_fill(0::bigint, ARRAY[200])::bigint[], array_fill(NULL::bytea, ARRAY[200])::bytea[])
         AS i (id, claimed, seq, entry, status, release, due_in_ms, age_ms, snapshot)
    JOIN {schema}.saga s ON s.id = i.id
    ORDER BY s.id
    FOR NO KEY UPDATE OF s SKIP LOCKED
), journaled AS (
    INSERT INTO {schema}.saga_journal (saga_id, seq, writer, entry)
    SELECT id, seq, '00000000-0000-4000-8000-000000000001', entry FROM locked WHERE mine AND entry IS NOT NULL
), changed AS (
    UPDATE {schema}.saga s
    SET status = coalesce(l.status, s.status),
        owner = CASE WHEN NOT l.release THEN s.owner END,
        due_at = CASE WHEN l.release THEN now() + l.due_in_ms * interval '1 millisecond' END,
        due_from = CASE WHEN l.release AND l.due_in_ms IS NOT NULL THEN now() END,
        age_ms = CASE WHEN l.release AND l.due_in_ms IS NOT NULL THEN l.age_ms END,
        changed_at = now()
    FROM locked l
    WHERE s.id = l.id AND l.mine AND (l.release OR l.status IS NOT NULL)
), kept AS (
    INSERT INTO {schema}.saga_snapshot (saga_id, seq, state)
    SELECT id, seq, snapshot FROM locked WHERE mine AND snapshot <> ''
    ON CONFLICT (saga_id) DO UPDATE SET seq = excluded.seq, state = excluded.state
), dropped AS (
    -- An empty one says that there is none any more.
    DELETE FROM {schema}.saga_snapshot n USING locked l WHERE n.saga_id = l.id AND l.mine AND l.snapshot = ''
), folded AS (
    UPDATE {schema}.saga_mailbox m
    SET read_at = now()
    FROM (
        SELECT saga_id, message, saga_id IN (SELECT id FROM locked WHERE mine) AS mine FROM unnest('{}'::uuid[], '{}'::text[]) AS r (saga_id, message)
    ) r
    WHERE m.saga_id = r.saga_id AND m.message = r.message AND r.mine
)
SELECT count(mine) AS written FROM locked \gset
WITH locked AS MATERIALIZED (
    SELECT i.*, s.owner = '00000000-0000-4000-8000-000000000001' AND s.epoch = i.claimed AS mine
    FROM unnest(:ids::uuid[], array_fill(1::bigint, ARRAY[200])::bigint[], array_fill(4, ARRAY[200])::integer[], array_fill('[{"succeeded":{"step": 3,"output": null}}]'::bytea, ARRAY[200])::bytea[], array_fill(3::smallint, ARRAY[200])::smallint[], array_fill(true, ARRAY[200])::boolean[], array_fill(NULL::bigint, ARRAY[200])::bigint[], array_fill(0::bigint, ARRAY[200])::bigint[], array_fill(NULL::bytea, ARRAY[200])::bytea[])
         AS i (id, claimed, seq, entry, status, release, due_in_ms, age_ms, snapshot)
    JOIN {schema}.saga s ON s.id = i.id
    ORDER BY s.id
    FOR NO KEY UPDATE OF s SKIP LOCKED
), journaled AS (
    INSERT INTO {schema}.saga_journal (saga_id, seq, writer, entry)
    SELECT id, seq, '00000000-0000-4000-8000-000000000001', entry FROM locked WHERE mine AND entry IS NOT NULL
), changed AS (
    UPDATE {schema}.saga s
    SET status = coalesce(l.status, s.status),
        owner = CASE WHEN NOT l.release THEN s.owner END,
        due_at = CASE WHEN l.release THEN now() + l.due_in_ms * interval '1 millisecond' END,
        due_from = CASE WHEN l.release AND l.due_in_ms IS NOT NULL THEN now() END,
        age_ms = CASE WHEN l.release AND l.due_in_ms IS NOT NULL THEN l.age_ms END,
        changed_at = now()
    FROM locked l
    WHERE s.id = l.id AND l.mine AND (l.release OR l.status IS NOT NULL)
), kept AS (
    INSERT INTO {schema}.saga_snapshot (saga_id, seq, state)
    SELECT id, seq, snapshot FROM locked WHERE mine AND snapshot <> ''
    ON CONFLICT (saga_id) DO UPDATE SET seq = excluded.seq, state = excluded.state
), dropped AS (
    -- An empty one says that there is none any more.
    DELETE FROM {schema}.saga_snapshot n USING locked l WHERE n.saga_id = l.id AND l.mine AND l.snapshot = ''
), folded AS (
    UPDATE {schema}.saga_mailbox m
    SET read_at = now()
    FROM (
        SELECT saga_id, message, saga_id IN (SELECT id FROM locked WHERE mine) AS mine FROM unnest('{}'::uuid[], '{}'::text[]) AS r (saga_id, message)
    ) r
    WHERE m.saga_id = r.saga_id AND m.message = r.message AND r.mine
)
SELECT count(mine) AS written FROM locked \gset
