-- Who is alive, and who only seemed to be dead.

ALTER TABLE {schema}.saga
    ADD COLUMN IF NOT EXISTS lost_with uuid[],
    ADD COLUMN IF NOT EXISTS due_from timestamptz,
    ADD COLUMN IF NOT EXISTS age_ms bigint;
COMMENT ON COLUMN {schema}.saga.lost_with IS 'one place for each lapse, if there was any: the worker that was lost, NULL if it came back';
COMMENT ON COLUMN {schema}.saga.due_from IS 'when due_at was written: one that lies in the future shows that the clock was set back';
COMMENT ON COLUMN {schema}.saga.age_ms IS 'how old the saga was when due_at was written, as its owner counts';
ALTER TABLE {schema}.saga_worker
    ADD COLUMN IF NOT EXISTS lease_ms bigint,
    ADD COLUMN IF NOT EXISTS reads integer;
COMMENT ON COLUMN {schema}.saga_worker.lease_ms IS 'how long its lease is; NULL of an earlier release';
COMMENT ON COLUMN {schema}.saga_worker.reads IS 'the newest format of journals that it can read; NULL of an earlier release';

-- next transaction
-- Serves workers that come back.
CREATE INDEX CONCURRENTLY saga_lost_with ON {schema}.saga USING gin (lost_with) WHERE lost_with IS NOT NULL;

