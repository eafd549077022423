-- Appends to journals, as their owner. Served by saga_worker_pkey and saga_pkey.
--
-- The fence is the worker's row: it is locked until all of this is committed, and where it is gone nothing is written. Who takes the sagas of a worker away
-- removes that row first, and only then, in a later statement, touches them. So either this waits for the burial, and writes nothing; or the burial waits
-- for this, and what follows it sees what was written. A heartbeat waits for neither.
--
-- The rows of sagas that change (a status, a release) are locked as well, and owner and epoch are checked on the row *so locked*, which is the newest
-- version however old this statement's snapshot is. Rows that another transaction holds are skipped, and answered as not written.
-- What only adds an entry needs no more than the journal's key: of two that write at the same place one is refused.
WITH alive AS MATERIALIZED (
    SELECT id FROM {schema}.saga_worker WHERE id = $1 FOR KEY SHARE
), input AS MATERIALIZED (
    SELECT i.*, s.owner = $1 AND s.epoch = i.claimed AND EXISTS (SELECT FROM alive) AS mine, i.release OR i.status IS NOT NULL AS changes
    FROM unnest($2::uuid[], $3::bigint[], $4::integer[], $5::bytea[], $6::smallint[], $7::boolean[], $8::bigint[], $11::bigint[], $12::bytea[])
         AS i (id, claimed, seq, entry, status, release, due_in_ms, age_ms, snapshot)
    JOIN {schema}.saga s ON s.id = i.id
), locked AS MATERIALIZED (
    SELECT s.id
    FROM input i
    JOIN {schema}.saga s ON s.id = i.id
    WHERE i.mine AND i.changes AND s.owner = $1 AND s.epoch = i.claimed
    FOR NO KEY UPDATE OF s SKIP LOCKED
), written AS MATERIALIZED (
    SELECT * FROM input WHERE mine AND (NOT changes OR id IN (SELECT id FROM locked))
), journaled AS (
    INSERT INTO {schema}.saga_journal (saga_id, seq, writer, epoch, entry)
    SELECT id, seq, $1, claimed, entry FROM written WHERE entry IS NOT NULL
), changed AS (
    UPDATE {schema}.saga s
    SET status = coalesce(w.status, s.status),
        owner = CASE WHEN NOT w.release THEN s.owner END,
        due_at = CASE WHEN w.release THEN now() + w.due_in_ms * interval '1 millisecond' END,
        due_from = CASE WHEN w.release AND w.due_in_ms IS NOT NULL THEN now() END,
        age_ms = CASE WHEN w.release AND w.due_in_ms IS NOT NULL THEN w.age_ms END,
        changed_at = now()
    FROM written w
    WHERE s.id = w.id AND w.changes
), kept AS (
    INSERT INTO {schema}.saga_snapshot (saga_id, seq, state)
    SELECT id, seq, snapshot FROM written WHERE snapshot <> ''
    ON CONFLICT (saga_id) DO UPDATE SET seq = excluded.seq, state = excluded.state
), dropped AS (
    -- An empty one says that there is none any more.
    DELETE FROM {schema}.saga_snapshot n USING written w WHERE n.saga_id = w.id AND w.snapshot = ''
), folded AS (
    UPDATE {schema}.saga_mailbox m
    SET read_at = now()
    FROM unnest($9::uuid[], $10::text[]) AS r (saga_id, message)
    JOIN written w ON w.id = r.saga_id
    WHERE m.saga_id = r.saga_id AND m.message = r.message
)
SELECT i.id, coalesce(i.mine, false) AS mine, i.id IN (SELECT id FROM written) AS written FROM input i
