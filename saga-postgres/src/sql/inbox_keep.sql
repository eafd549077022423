-- Keeps what is final, and removes those of this transaction's rows that are not. Served by saga_inbox_pkey.
WITH input AS (
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::smallint[], $5::bytea[], $6::boolean[])
        AS i (saga_id, step, generation, outcome, reply, undone)
), kept AS (
    UPDATE {schema}.saga_inbox b SET outcome = i.outcome, reply = i.reply, undone = i.undone
    FROM input i
    WHERE (b.saga_id, b.step, b.generation) = (i.saga_id, i.step, i.generation) AND (i.outcome IS NOT NULL OR i.undone)
)
DELETE FROM {schema}.saga_inbox b USING input i
WHERE (b.saga_id, b.step, b.generation) = (i.saga_id, i.step, i.generation) AND i.outcome IS NULL AND NOT i.undone
