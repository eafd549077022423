-- Sagas, their journals, their mailboxes; the workers that run them and the definitions that they know.

-- One row a saga: written at its start, at a change of status or owner, and at its end.
-- Its state is not here: that is the fold of its journal.
CREATE TABLE {schema}.saga (
    id          uuid        PRIMARY KEY,
    name        text        NOT NULL,
    version     integer     NOT NULL,
    key         text        NOT NULL,
    status      smallint    NOT NULL DEFAULT 0,
    owner       uuid,
    epoch       bigint      NOT NULL DEFAULT 0,
    lapses      integer     NOT NULL DEFAULT 0,
    due_at      timestamptz,
    started_at  timestamptz NOT NULL DEFAULT now(),
    changed_at  timestamptz NOT NULL DEFAULT now(),
    input       bytea       NOT NULL,
    traceparent text,
    tracestate  text,
    baggage     text,
    CONSTRAINT saga_key UNIQUE (name, key),
    CONSTRAINT saga_owned_work_is_not_due CHECK (owner IS NULL OR due_at IS NULL)
);
COMMENT ON COLUMN {schema}.saga.status IS '0 running, 1 compensating, 2 parked, 3 completed, 4 rolled back';
COMMENT ON COLUMN {schema}.saga.owner IS 'the worker that holds the claim; its lease is in saga_worker';
COMMENT ON COLUMN {schema}.saga.epoch IS 'grows with each claim and each loss: with owner, the fence of every write';
COMMENT ON COLUMN {schema}.saga.due_at IS 'when unowned work is due; NULL while owned, ended, or waiting for mail only';

-- Serves claims, in their order.
CREATE INDEX saga_due ON {schema}.saga (name, version, due_at) WHERE due_at IS NOT NULL;
-- Serves the search for sagas of dead workers.
CREATE INDEX saga_owner ON {schema}.saga (owner) WHERE owner IS NOT NULL;
-- Serves operators.
CREATE INDEX saga_parked ON {schema}.saga (name, changed_at) WHERE status = 2;

-- One row an append. There is deliberately no foreign key: only the owner of a saga writes here, and the check would cost a quarter
-- of the throughput.
CREATE TABLE {schema}.saga_journal (
    saga_id uuid        NOT NULL,
    seq     integer     NOT NULL,
    at      timestamptz NOT NULL DEFAULT now(),
    writer  uuid        NOT NULL,
    entry   bytea       NOT NULL,
    CONSTRAINT saga_journal_pkey PRIMARY KEY (saga_id, seq)
);

-- What comes from outside. Whoever posts touches neither the saga's row nor its journal.
CREATE TABLE {schema}.saga_mailbox (
    saga_id  uuid        NOT NULL,
    message  text        NOT NULL,
    position bigint      GENERATED ALWAYS AS IDENTITY,
    at       timestamptz NOT NULL DEFAULT now(),
    read_at  timestamptz,
    body     bytea       NOT NULL,
    CONSTRAINT saga_mailbox_pkey PRIMARY KEY (saga_id, message)
);
CREATE INDEX saga_mailbox_unread ON {schema}.saga_mailbox (saga_id) WHERE read_at IS NULL;

CREATE TABLE {schema}.saga_worker (
    id         uuid        PRIMARY KEY,
    joined_at  timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    names      text[]      NOT NULL,
    versions   integer[]   NOT NULL
);

CREATE TABLE {schema}.saga_definition (
    name          text        NOT NULL,
    version       integer     NOT NULL,
    fingerprint   text        NOT NULL,
    registered_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, version)
);

-- For people: journals as JSON, oldest entry first.
CREATE VIEW {schema}.saga_history AS
SELECT s.id, s.name, s.version, s.key,
       (ARRAY['running', 'compensating', 'parked', 'completed', 'rolled back'])[s.status + 1] AS status,
       j.seq, j.at, convert_from(j.entry, 'UTF8')::json AS events
FROM {schema}.saga s
LEFT JOIN {schema}.saga_journal j ON j.saga_id = s.id
ORDER BY s.id, j.seq;
