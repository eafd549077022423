-- Locks and reads these rows. A statement of its own, so that it sees what the one before has waited for. Served by saga_inbox_pkey.
-- With them comes what this transaction is known by, to end it from outside.
SELECT b.saga_id, b.step, b.generation, b.outcome, b.reply, b.undone, pg_backend_pid() AS backend, pg_current_xact_id()::xid::text AS xid
FROM unnest($1::uuid[], $2::text[], $3::integer[]) AS i (saga_id, step, generation)
JOIN {schema}.saga_inbox b USING (saga_id, step, generation)
ORDER BY 1, 2, 3
FOR UPDATE OF b
