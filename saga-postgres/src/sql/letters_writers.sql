-- The transactions that may have been given the number of a letter and have not ended. No index.
SELECT virtualtransaction AS transaction, pid IS NULL AS prepared
FROM pg_catalog.pg_locks
WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted
  AND relation = '{schema}.saga_mailbox'::regclass
  AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
