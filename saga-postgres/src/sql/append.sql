-- Appends to journals, as their owner. Served by saga_pkey, saga_snapshot_pkey and saga_mailbox_pkey.
--
-- The fence: each saga's row is locked first, and owner and epoch are checked on the row *so locked*, which is the
-- newest version however old this statement's snapshot is. All that is written comes from rows so locked and checked.
-- A join on owner and epoch without the lock would let a former owner's entry through whenever the claim changes
-- between the snapshot and the insert. Rows that another transaction holds are skipped, and answered as busy; locking
-- in the order of ids lets no two batches wait for each other. Owner and epoch are selected, and no condition: or a
-- plan may be made that goes through all that the worker owns.
WITH locked AS MATERIALIZED (
    SELECT i.*, s.owner = $1 AND s.epoch = i.claimed AS mine
    FROM unnest($2::uuid[], $3::bigint[], $4::integer[], $5::bytea[], $6::smallint[], $7::boolean[], $8::bigint[], $11::bigint[], $12::bytea[])
         AS i (id, claimed, seq, entry, status, release, due_in_ms, age_ms, snapshot)
    JOIN {schema}.saga s ON s.id = i.id
    ORDER BY s.id
    FOR NO KEY UPDATE OF s SKIP LOCKED
), journaled AS (
    INSERT INTO {schema}.saga_journal (saga_id, seq, writer, entry)
    SELECT id, seq, $1, entry FROM locked WHERE mine AND entry IS NOT NULL
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
        SELECT saga_id, message, saga_id IN (SELECT id FROM locked WHERE mine) AS mine FROM unnest($9::uuid[], $10::text[]) AS r (saga_id, message)
    ) r
    WHERE m.saga_id = r.saga_id AND m.message = r.message AND r.mine
)
SELECT id, coalesce(mine, false) AS mine FROM locked
