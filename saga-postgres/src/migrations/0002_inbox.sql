-- What a participant has been told to do and has answered for good: the barrier.

-- One row for a command and its undo. Never empty once committed: it has an outcome, or it is undone, or both.
CREATE TABLE {schema}.saga_inbox (
    saga_id     uuid        NOT NULL,
    step        text        NOT NULL,
    generation  integer     NOT NULL,
    outcome     smallint,
    reply       bytea,
    undone      boolean     NOT NULL DEFAULT false,
    received_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT saga_inbox_pkey PRIMARY KEY (saga_id, step, generation)
) WITH (fillfactor = 70);
COMMENT ON COLUMN {schema}.saga_inbox.outcome IS '0 success, 1 fail';
COMMENT ON COLUMN {schema}.saga_inbox.reply IS 'the reply of a success, the reason of a fail';
COMMENT ON COLUMN {schema}.saga_inbox.undone IS 'the undo has come: to an outcome of 0 it was done, otherwise this is a tombstone';

-- Serves the removal of old rows. They come in the order of time, so it costs next to nothing.
CREATE INDEX saga_inbox_received ON {schema}.saga_inbox USING brin (received_at) WITH (pages_per_range = 32);
