-- Keeps what is final, removes those of this transaction's rows that are not, and lets it be committed. Served by saga_inbox_pkey, saga_inbox_open_pkey.
WITH input AS (
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::smallint[], $5::bytea[], $6::boolean[])
        AS i (saga_id, step, generation, outcome, reply, undone)
), kept AS (
    UPDATE {schema}.saga_inbox b SET outcome = i.outcome, reply = i.reply, undone = i.undone
    FROM input i
    WHERE (b.saga_id, b.step, b.generation) = (i.saga_id, i.step, i.generation) AND (i.outcome IS NOT NULL OR i.undone)
), closed AS (
    DELETE FROM {schema}.saga_inbox_open WHERE xid = pg_current_xact_id()
)
DELETE FROM {schema}.saga_inbox b USING input i
WHERE (b.saga_id, b.step, b.generation) = (i.saga_id, i.step, i.generation) AND i.outcome IS NULL AND NOT i.undone
