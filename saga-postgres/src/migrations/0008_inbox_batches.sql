-- Less work for a batch: commands that are new, as nearly all are, need not be read; what is final is kept in one statement.

-- Makes sure that there are rows, and waits for others that are making the same ones. If any was there before, locks and reads all: a statement of its own, so that it sees what the one before has
-- waited for. Rows that were removed meanwhile are left out. Whoever calls this has the keys in one order for all. From here on only saga_inbox_keep lets the transaction be committed.
-- With them comes what this transaction is known by, to end it from outside. Served by saga_inbox_pkey.
CREATE OR REPLACE FUNCTION {schema}.saga_inbox_enter(sagas uuid[], steps text[], generations integer[])
RETURNS TABLE (saga_id uuid, step text, generation integer, outcome smallint, reply bytea, undone boolean, backend integer, xid text)
LANGUAGE plpgsql SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    made bigint;
BEGIN
    INSERT INTO {schema}.saga_inbox_open DEFAULT VALUES;
    INSERT INTO {schema}.saga_inbox (saga_id, step, generation)
    SELECT * FROM unnest(sagas, steps, generations)
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS made = ROW_COUNT;
    IF made = cardinality(sagas) THEN
        -- All are this transaction's own, and nobody else sees them.
        RETURN QUERY
            SELECT i.*, NULL::smallint, NULL::bytea, false, pg_backend_pid(), pg_current_xact_id()::xid::text
            FROM unnest(sagas, steps, generations) AS i;
    ELSE
        RETURN QUERY
            SELECT b.*, pg_backend_pid(), pg_current_xact_id()::xid::text
            FROM unnest(sagas, steps, generations) AS i (saga_id, step, generation)
            CROSS JOIN LATERAL (
                SELECT k.saga_id, k.step, k.generation, k.outcome, k.reply, k.undone FROM {schema}.saga_inbox k
                WHERE k.saga_id = i.saga_id AND k.step = i.step AND k.generation = i.generation
                FOR UPDATE
            ) b;
    END IF;
END $$;

-- Keeps what is final, removes those of this transaction's rows that are not, and lets it be committed.
--
-- The rows are this transaction's own, or locked by it, so they stay where they are found. OFFSET 0 keeps the order of the joins: from the keys, by the index, to the rows. Planned freely while
-- the table is small, it could be the other way round, and would be for as long as the connection lives. Served by saga_inbox_pkey, saga_inbox_open_pkey.
CREATE OR REPLACE FUNCTION {schema}.saga_inbox_keep(sagas uuid[], steps text[], generations integer[], outcomes smallint[], replies bytea[], undone boolean[])
RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    UPDATE {schema}.saga_inbox b SET outcome = k.outcome, reply = k.reply, undone = k.was_undone
    FROM (
        SELECT found.place, i.outcome, i.reply, i.was_undone
        FROM unnest(sagas, steps, generations, outcomes, replies, undone)
             AS i (saga_id, step, generation, outcome, reply, was_undone)
        CROSS JOIN LATERAL (
            SELECT r.ctid AS place FROM {schema}.saga_inbox r
            WHERE r.saga_id = i.saga_id AND r.step = i.step AND r.generation = i.generation
            OFFSET 0
        ) found
        WHERE i.outcome IS NOT NULL OR i.was_undone
        OFFSET 0
    ) k
    WHERE b.ctid = k.place;
    -- No other transaction's row is ever seen empty.
    IF array_position(outcomes, NULL) IS NOT NULL THEN
        DELETE FROM {schema}.saga_inbox WHERE saga_id = ANY (sagas) AND outcome IS NULL AND NOT saga_inbox.undone;
    END IF;
    DELETE FROM {schema}.saga_inbox_open WHERE xid = pg_current_xact_id();
END $$;
