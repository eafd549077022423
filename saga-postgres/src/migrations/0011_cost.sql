-- What a saga costs does not grow with its past, nor with the letters of strangers.

-- One row for a saga whose journal is long, until it ends. The journal stays whole: a release that knows nothing of
-- snapshots, or of the form of this one, reads that.
CREATE TABLE IF NOT EXISTS {schema}.saga_snapshot (
    saga_id uuid    PRIMARY KEY,
    seq     integer NOT NULL,
    state   bytea   NOT NULL
);
COMMENT ON COLUMN {schema}.saga_snapshot.seq IS 'the last entry of the journal that is folded into the state';

ALTER TABLE {schema}.saga_mailbox
    ADD COLUMN IF NOT EXISTS name text,
    ADD COLUMN IF NOT EXISTS version integer;
COMMENT ON COLUMN {schema}.saga_mailbox.name IS 'of the saga; NULL if an earlier release posted it';

-- next transaction
-- Serves the search for what waits for a time that will not come. (With `due_at IS NOT NULL` for its condition it would
-- look to the planner like a way to find what is due, when little is due: it would read all of it, in another order.)
CREATE INDEX CONCURRENTLY saga_due_since ON {schema}.saga (due_from) WHERE due_from IS NOT NULL;

-- next transaction
-- What migration 10 built before it was released.
DROP INDEX IF EXISTS {schema}.saga_due_from;

-- next transaction
-- Serves those who run this version of these sagas, and who pass over what an earlier release posted to any.
CREATE INDEX CONCURRENTLY saga_mailbox_for ON {schema}.saga_mailbox (name, version, position) WHERE read_at IS NULL;
