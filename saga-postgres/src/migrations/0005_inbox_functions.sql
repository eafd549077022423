-- The inbox works on connections of its users, whose settings it leaves alone, and which keep the plan of a statement: one that was made while the table was empty is slow once it is large.
-- A function has settings of its own, and so its plans are right whatever the tables hold.

-- Makes sure that there are rows, waits for others that are making the same ones, then locks and reads them: a statement of its own, so that it sees what the one before has waited for. Rows
-- that were removed meanwhile are left out. Whoever calls this has the keys in one order for all. From here on only saga_inbox_keep lets the transaction be committed.
-- With them comes what this transaction is known by, to end it from outside. Served by saga_inbox_pkey.
CREATE FUNCTION {schema}.saga_inbox_enter(sagas uuid[], steps text[], generations integer[])
RETURNS TABLE (saga_id uuid, step text, generation integer, outcome smallint, reply bytea, undone boolean, backend integer, xid text)
LANGUAGE plpgsql SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO {schema}.saga_inbox_open DEFAULT VALUES;
    INSERT INTO {schema}.saga_inbox (saga_id, step, generation)
    SELECT * FROM unnest(sagas, steps, generations)
    ON CONFLICT DO NOTHING;
    RETURN QUERY
        SELECT b.*, pg_backend_pid(), pg_current_xact_id()::xid::text
        FROM unnest(sagas, steps, generations) AS i (saga_id, step, generation)
        CROSS JOIN LATERAL (
            SELECT k.saga_id, k.step, k.generation, k.outcome, k.reply, k.undone FROM {schema}.saga_inbox k
            WHERE k.saga_id = i.saga_id AND k.step = i.step AND k.generation = i.generation
            FOR UPDATE
        ) b;
END $$;

-- Keeps what is final, removes those of this transaction's rows that are not, and lets it be committed. Served by saga_inbox_pkey, saga_inbox_open_pkey.
CREATE FUNCTION {schema}.saga_inbox_keep(sagas uuid[], steps text[], generations integer[], outcomes smallint[], replies bytea[], undone boolean[])
RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    k record;
BEGIN
    FOR k IN
        SELECT * FROM unnest(sagas, steps, generations, outcomes, replies, undone) AS i (saga_id, step, generation, outcome, reply, was_undone)
    LOOP
        IF k.outcome IS NULL AND NOT k.was_undone THEN
            DELETE FROM {schema}.saga_inbox b
            WHERE b.saga_id = k.saga_id AND b.step = k.step AND b.generation = k.generation;
        ELSE
            UPDATE {schema}.saga_inbox b SET outcome = k.outcome, reply = k.reply, undone = k.was_undone
            WHERE b.saga_id = k.saga_id AND b.step = k.step AND b.generation = k.generation;
        END IF;
    END LOOP;
    DELETE FROM {schema}.saga_inbox_open WHERE xid = pg_current_xact_id();
END $$;
