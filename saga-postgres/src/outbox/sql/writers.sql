-- The transactions that may have been given a number and have not ended: whoever writes to the table holds this lock on
-- it, from before the number until the end. One that was prepared has a new name, so it is told apart. No index.
SELECT virtualtransaction AS transaction, pid IS NULL AS prepared
FROM pg_catalog.pg_locks
WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted
  AND relation = '{schema}.saga_outbox'::regclass
  AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
