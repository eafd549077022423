-- Serves the removal of old rows. The index of migration 2 (a BRIN one) knows from when to when the rows of a part of the
-- table are. Once new rows take the place of those that were removed, each part has rows of all times, and the whole table
-- is read each time.
CREATE INDEX CONCURRENTLY saga_inbox_received_at ON {schema}.saga_inbox (received_at);

-- next transaction
-- Concurrently, for an ordinary drop needs a moment in which nobody uses the table. Handlers work for long in transactions
-- that do, and there may be no such moment.
DROP INDEX CONCURRENTLY IF EXISTS {schema}.saga_inbox_received;
