-- A schema of release 0.1 with sagas in the middle of their work, as pg_dump wrote it. The times are made to be an hour ago.

CREATE SCHEMA {schema};

CREATE FUNCTION {schema}.saga_inbox_enter(sagas uuid[], steps text[], generations integer[]) RETURNS TABLE(saga_id uuid, step text, generation integer, outcome smallint, reply bytea, undone boolean, backend integer, xid text)
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
#variable_conflict use_column
DECLARE
    made bigint;
BEGIN
    INSERT INTO {schema}.saga_inbox_open DEFAULT VALUES;
    INSERT INTO {schema}.saga_inbox (saga_id, step, generation)
    SELECT * FROM unnest(sagas, steps, generations)
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS made = ROW_COUNT;
    IF made = cardinality(sagas) THEN
        -- All are this transaction's own, and nobody else sees them.
        RETURN QUERY
            SELECT i.*, NULL::smallint, NULL::bytea, false, pg_backend_pid(), pg_current_xact_id()::xid::text
            FROM unnest(sagas, steps, generations) AS i;
    ELSE
        RETURN QUERY
            SELECT b.*, pg_backend_pid(), pg_current_xact_id()::xid::text
            FROM unnest(sagas, steps, generations) AS i (saga_id, step, generation)
            CROSS JOIN LATERAL (
                SELECT k.saga_id, k.step, k.generation, k.outcome, k.reply, k.undone FROM {schema}.saga_inbox k
                WHERE k.saga_id = i.saga_id AND k.step = i.step AND k.generation = i.generation
                FOR UPDATE
            ) b;
    END IF;
END $$;

CREATE FUNCTION {schema}.saga_inbox_keep(sagas uuid[], steps text[], generations integer[], outcomes smallint[], replies bytea[], undone boolean[]) RETURNS void
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
BEGIN
    UPDATE {schema}.saga_inbox b SET outcome = k.outcome, reply = k.reply, undone = k.was_undone
    FROM (
        SELECT found.place, i.outcome, i.reply, i.was_undone
        FROM unnest(sagas, steps, generations, outcomes, replies, undone)
             AS i (saga_id, step, generation, outcome, reply, was_undone)
        CROSS JOIN LATERAL (
            SELECT r.ctid AS place FROM {schema}.saga_inbox r
            WHERE r.saga_id = i.saga_id AND r.step = i.step AND r.generation = i.generation
            OFFSET 0
        ) found
        WHERE i.outcome IS NOT NULL OR i.was_undone
        OFFSET 0
    ) k
    WHERE b.ctid = k.place;
    -- No other transaction's row is ever seen empty.
    IF array_position(outcomes, NULL) IS NOT NULL THEN
        DELETE FROM {schema}.saga_inbox WHERE saga_id = ANY (sagas) AND outcome IS NULL AND NOT saga_inbox.undone;
    END IF;
    DELETE FROM {schema}.saga_inbox_open WHERE xid = pg_current_xact_id();
END $$;

CREATE FUNCTION {schema}.saga_inbox_still_open() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.saga_inbox_open WHERE xid = NEW.xid) THEN
        RAISE EXCEPTION 'a handler must not commit the transaction that it is given'
            USING HINT = 'If it was SET CONSTRAINTS ALL IMMEDIATE: name the constraints.';
    END IF;
    RETURN NULL;
END $$;

CREATE TABLE {schema}.saga (
    id uuid NOT NULL,
    name text NOT NULL,
    version integer NOT NULL,
    key text NOT NULL,
    status smallint DEFAULT 0 NOT NULL,
    owner uuid,
    epoch bigint DEFAULT 0 NOT NULL,
    lapses integer DEFAULT 0 NOT NULL,
    due_at timestamp with time zone,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    changed_at timestamp with time zone DEFAULT now() NOT NULL,
    input bytea NOT NULL,
    traceparent text,
    tracestate text,
    baggage text,
    CONSTRAINT saga_owned_work_is_not_due CHECK (((owner IS NULL) OR (due_at IS NULL)))
);

COMMENT ON COLUMN {schema}.saga.status IS '0 running, 1 compensating, 2 parked, 3 completed, 4 rolled back';

COMMENT ON COLUMN {schema}.saga.owner IS 'the worker that holds the claim; its lease is in saga_worker';

COMMENT ON COLUMN {schema}.saga.epoch IS 'grows with each claim and each loss: with owner, the fence of every write';

COMMENT ON COLUMN {schema}.saga.due_at IS 'when unowned work is due; NULL while owned, ended, or waiting for mail only';

CREATE TABLE {schema}.saga_definition (
    name text NOT NULL,
    version integer NOT NULL,
    fingerprint text NOT NULL,
    registered_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE {schema}.saga_journal (
    saga_id uuid NOT NULL,
    seq integer NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    writer uuid NOT NULL,
    entry bytea NOT NULL
);

CREATE VIEW {schema}.saga_history AS
 SELECT s.id,
    s.name,
    s.version,
    s.key,
    (ARRAY['running'::text, 'compensating'::text, 'parked'::text, 'completed'::text, 'rolled back'::text])[(s.status + 1)] AS status,
    j.seq,
    j.at,
    (convert_from(j.entry, 'UTF8'::name))::json AS events
   FROM ({schema}.saga s
     LEFT JOIN {schema}.saga_journal j ON ((j.saga_id = s.id)))
  ORDER BY s.id, j.seq;

CREATE TABLE {schema}.saga_inbox (
    saga_id uuid NOT NULL,
    step text NOT NULL,
    generation integer NOT NULL,
    outcome smallint,
    reply bytea,
    undone boolean DEFAULT false NOT NULL,
    received_at timestamp with time zone DEFAULT now() NOT NULL
)
WITH (fillfactor='70');

COMMENT ON COLUMN {schema}.saga_inbox.outcome IS '0 success, 1 fail';

COMMENT ON COLUMN {schema}.saga_inbox.reply IS 'the reply of a success, the reason of a fail';

COMMENT ON COLUMN {schema}.saga_inbox.undone IS 'the undo has come: to an outcome of 0 it was done, otherwise this is a tombstone';

CREATE TABLE {schema}.saga_inbox_open (
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_insert_scale_factor='0', autovacuum_vacuum_insert_threshold='100000', autovacuum_analyze_scale_factor='0', autovacuum_analyze_threshold='1000000');

CREATE TABLE {schema}.saga_mailbox (
    saga_id uuid NOT NULL,
    message text NOT NULL,
    "position" bigint NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    read_at timestamp with time zone,
    body bytea NOT NULL
);

ALTER TABLE {schema}.saga_mailbox ALTER COLUMN "position" ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME {schema}.saga_mailbox_position_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE {schema}.saga_migration (
    version integer NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE {schema}.saga_outbox (
    shard smallint NOT NULL,
    seq bigint NOT NULL,
    id uuid NOT NULL,
    aggregatetype text NOT NULL,
    aggregateid text NOT NULL,
    type text NOT NULL,
    source text NOT NULL,
    subject text,
    "time" timestamp with time zone NOT NULL,
    content_type text NOT NULL,
    traceparent text,
    headers text,
    extensions text,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    payload bytea NOT NULL,
    CONSTRAINT saga_outbox_key CHECK (((octet_length(aggregatetype) + octet_length(aggregateid)) <= 2000)),
    CONSTRAINT saga_outbox_shard CHECK (((shard >= 0) AND (shard <= 63)))
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_insert_scale_factor='0', autovacuum_vacuum_insert_threshold='100000', autovacuum_analyze_scale_factor='0', autovacuum_analyze_threshold='1000000', autovacuum_vacuum_cost_delay='0');

COMMENT ON COLUMN {schema}.saga_outbox.shard IS 'FNV-1a of aggregateid, modulo 64: what relays share out among themselves';

COMMENT ON COLUMN {schema}.saga_outbox.seq IS 'the order of events of one key; a lower one of another key may appear later. Its sequence must keep CACHE 1';

COMMENT ON COLUMN {schema}.saga_outbox.aggregatetype IS 'the topic';

COMMENT ON COLUMN {schema}.saga_outbox.aggregateid IS 'the key';

COMMENT ON COLUMN {schema}.saga_outbox.headers IS 'a JSON object: headers but traceparent, forwarded untouched';

COMMENT ON COLUMN {schema}.saga_outbox.extensions IS 'a JSON object: extension attributes of the CloudEvent';

CREATE TABLE {schema}.saga_outbox_parked (
    shard smallint NOT NULL,
    seq bigint NOT NULL,
    id uuid NOT NULL,
    aggregatetype text NOT NULL,
    aggregateid text NOT NULL,
    type text NOT NULL,
    source text NOT NULL,
    subject text,
    "time" timestamp with time zone NOT NULL,
    content_type text NOT NULL,
    traceparent text,
    headers text,
    extensions text,
    created_at timestamp with time zone NOT NULL,
    payload bytea NOT NULL,
    parked_at timestamp with time zone DEFAULT now() NOT NULL,
    reason text
);

COMMENT ON COLUMN {schema}.saga_outbox_parked.reason IS 'why the broker refused it; NULL if it only waits behind one that was refused';

ALTER TABLE {schema}.saga_outbox ALTER COLUMN seq ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME {schema}.saga_outbox_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE {schema}.saga_worker (
    id uuid NOT NULL,
    joined_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    names text[] NOT NULL,
    versions integer[] NOT NULL
);

INSERT INTO {schema}.saga VALUES ('01a223e1-d35a-704d-9866-82f401306f23', 'delivery', 1, 'completed', 3, NULL, 1, 0, NULL, now() - interval '1 hour', now() - interval '1 hour', '\x7b22746f223a22636f6d706c65746564222c22776569676874223a302e33303030303030303030303030303030347d', NULL, NULL, NULL);
INSERT INTO {schema}.saga VALUES ('01a223e1-d376-75a0-bfce-3d55feb1b7ee', 'delivery', 1, 'refused', 4, NULL, 1, 0, NULL, now() - interval '1 hour', now() - interval '1 hour', '\x7b22746f223a2272656675736564222c22776569676874223a302e33303030303030303030303030303030347d', NULL, NULL, NULL);
INSERT INTO {schema}.saga VALUES ('01a223e1-d38d-71fe-a47e-a249c5bb8539', 'delivery', 1, 'retried', 0, NULL, 1, 0, now() - interval '1 hour', now() - interval '1 hour', now() - interval '1 hour', '\x7b22746f223a2272657472696564222c22776569676874223a302e33303030303030303030303030303030347d', NULL, NULL, NULL);
INSERT INTO {schema}.saga VALUES ('01a223e1-d37f-75f1-b7b8-8e0f1b6387cb', 'delivery', 1, 'parked', 2, NULL, 1, 0, NULL, now() - interval '1 hour', now() - interval '1 hour', '\x7b22746f223a227061726b6564222c22776569676874223a302e33303030303030303030303030303030347d', NULL, NULL, NULL);
INSERT INTO {schema}.saga VALUES ('01a223e1-df59-77e9-a0e6-d3b9c7ff1c16', 'delivery', 1, 'killed three times', 0, 'fa38ace6-8846-410b-8b15-4edcbdb3f1be', 5, 2, NULL, now() - interval '1 hour', now() - interval '1 hour', '\x7b22746f223a226b696c6c65642074687265652074696d6573222c22776569676874223a302e33303030303030303030303030303030347d', NULL, NULL, NULL);
INSERT INTO {schema}.saga VALUES ('01a223e1-eb6c-714f-a9a8-d5b413f5770e', 'delivery', 1, 'reserving', 0, 'fa38ace6-8846-410b-8b15-4edcbdb3f1be', 1, 0, NULL, now() - interval '1 hour', now() - interval '1 hour', '\x7b22746f223a22726573657276696e67222c22776569676874223a302e33303030303030303030303030303030347d', NULL, NULL, NULL);
INSERT INTO {schema}.saga VALUES ('01a223e1-eb6a-73d6-aeed-815dbf6ef097', 'delivery', 1, 'undone', 1, 'fa38ace6-8846-410b-8b15-4edcbdb3f1be', 1, 0, NULL, now() - interval '1 hour', now() - interval '1 hour', '\x7b22746f223a22756e646f6e65222c22776569676874223a302e33303030303030303030303030303030347d', NULL, NULL, NULL);
INSERT INTO {schema}.saga VALUES ('01a223e1-eb6e-73d5-a3c4-98cd0a22f578', 'delivery', 1, 'capturing', 0, 'fa38ace6-8846-410b-8b15-4edcbdb3f1be', 1, 0, NULL, now() - interval '1 hour', now() - interval '1 hour', '\x7b22746f223a22636170747572696e67222c22776569676874223a302e33303030303030303030303030303030347d', NULL, NULL, NULL);
INSERT INTO {schema}.saga VALUES ('01a223e1-eb74-7027-ba62-c4c1f486ecb2', 'delivery', 1, 'delivering', 0, 'fa38ace6-8846-410b-8b15-4edcbdb3f1be', 1, 0, NULL, now() - interval '1 hour', now() - interval '1 hour', '\x7b22746f223a2264656c69766572696e67222c22776569676874223a302e33303030303030303030303030303030347d', NULL, NULL, NULL);
INSERT INTO {schema}.saga VALUES ('01a223e1-eb78-7633-8b74-f7231e5b2dfa', 'delivery', 1, 'cancelled', 0, 'fa38ace6-8846-410b-8b15-4edcbdb3f1be', 1, 0, NULL, now() - interval '1 hour', now() - interval '1 hour', '\x7b22746f223a2263616e63656c6c6564222c22776569676874223a302e33303030303030303030303030303030347d', NULL, NULL, NULL);
INSERT INTO {schema}.saga VALUES ('01a223e1-f170-7445-a6c0-9452c91f558e', 'delivery', 1, 'never begun', 0, NULL, 0, 0, now() - interval '1 hour', now() - interval '1 hour', now() - interval '1 hour', '\x7b22746f223a226e6576657220626567756e222c22776569676874223a302e33303030303030303030303030303030347d', NULL, NULL, NULL);

INSERT INTO {schema}.saga_definition VALUES ('delivery', 1, 'reserve: compensatable
capture: pivot after reserve
deliver: retriable after capture
', now() - interval '1 hour');

INSERT INTO {schema}.saga_inbox VALUES ('00000000-0000-7000-8000-000000000001', 'reserve', 0, 0, '\x6e756c6c', false, now() - interval '1 hour');
INSERT INTO {schema}.saga_inbox VALUES ('00000000-0000-7000-8000-000000000002', 'reserve', 0, 1, '\x6f7574206f662073746f636b', false, now() - interval '1 hour');

INSERT INTO {schema}.saga_journal VALUES ('01a223e1-d35a-704d-9866-82f401306f23', 1, now() - interval '1 hour', '58e10289-962e-4d70-aa9a-0e227dc413b2', '\x5b7b22737563636565646564223a7b2273746570223a302c226f7574707574223a377d7d5d');
INSERT INTO {schema}.saga_journal VALUES ('01a223e1-d376-75a0-bfce-3d55feb1b7ee', 1, now() - interval '1 hour', '58e10289-962e-4d70-aa9a-0e227dc413b2', '\x5b7b22737563636565646564223a7b2273746570223a302c226f7574707574223a377d7d5d');
INSERT INTO {schema}.saga_journal VALUES ('01a223e1-d35a-704d-9866-82f401306f23', 2, now() - interval '1 hour', '58e10289-962e-4d70-aa9a-0e227dc413b2', '\x5b7b22737563636565646564223a7b2273746570223a312c226f7574707574223a22636f6d706c657465642037227d7d5d');
INSERT INTO {schema}.saga_journal VALUES ('01a223e1-d376-75a0-bfce-3d55feb1b7ee', 2, now() - interval '1 hour', '58e10289-962e-4d70-aa9a-0e227dc413b2', '\x5b7b226661696c6564223a7b2273746570223a312c22696e5f646f756274223a66616c73652c226572726f72223a226e6f206d6f6e6579227d7d5d');
INSERT INTO {schema}.saga_journal VALUES ('01a223e1-d37f-75f1-b7b8-8e0f1b6387cb', 1, now() - interval '1 hour', '58e10289-962e-4d70-aa9a-0e227dc413b2', '\x5b7b22737563636565646564223a7b2273746570223a302c226f7574707574223a377d7d5d');
INSERT INTO {schema}.saga_journal VALUES ('01a223e1-d35a-704d-9866-82f401306f23', 3, now() - interval '1 hour', '58e10289-962e-4d70-aa9a-0e227dc413b2', '\x5b7b22737563636565646564223a7b2273746570223a322c226f7574707574223a2264656c69766572656420636f6d706c657465642037227d7d5d');
INSERT INTO {schema}.saga_journal VALUES ('01a223e1-d38d-71fe-a47e-a249c5bb8539', 1, now() - interval '1 hour', '58e10289-962e-4d70-aa9a-0e227dc413b2', '\x5b7b22737563636565646564223a7b2273746570223a302c226f7574707574223a377d7d5d');
INSERT INTO {schema}.saga_journal VALUES ('01a223e1-d376-75a0-bfce-3d55feb1b7ee', 3, now() - interval '1 hour', '58e10289-962e-4d70-aa9a-0e227dc413b2', '\x5b7b22636f6d70656e7361746564223a7b2273746570223a307d7d5d');
INSERT INTO {schema}.saga_journal VALUES ('01a223e1-d37f-75f1-b7b8-8e0f1b6387cb', 2, now() - interval '1 hour', '58e10289-962e-4d70-aa9a-0e227dc413b2', '\x5b7b22737563636565646564223a7b2273746570223a312c226f7574707574223a227061726b65642037227d7d5d');
INSERT INTO {schema}.saga_journal VALUES ('01a223e1-d38d-71fe-a47e-a249c5bb8539', 2, now() - interval '1 hour', '58e10289-962e-4d70-aa9a-0e227dc413b2', '\x5b7b227265747279696e67223a7b2273746570223a312c22696e5f646f756274223a66616c73652c2273696e6365223a31392c226174223a3337383838352c226572726f72223a2262757379227d7d5d');
INSERT INTO {schema}.saga_journal VALUES ('01a223e1-d37f-75f1-b7b8-8e0f1b6387cb', 3, now() - interval '1 hour', '58e10289-962e-4d70-aa9a-0e227dc413b2', '\x5b7b22737475636b223a7b2273746570223a322c22696e5f646f756274223a66616c73652c226572726f72223a226e6f626f647920617420686f6d65227d7d5d');
INSERT INTO {schema}.saga_journal VALUES ('01a223e1-df59-77e9-a0e6-d3b9c7ff1c16', 1, now() - interval '1 hour', 'a0c840bb-27e7-4a41-96f2-859fd3d5f00b', '\x5b7b22737563636565646564223a7b2273746570223a302c226f7574707574223a377d7d5d');
INSERT INTO {schema}.saga_journal VALUES ('01a223e1-df59-77e9-a0e6-d3b9c7ff1c16', 2, now() - interval '1 hour', '62355af4-4fe7-4bc9-86ec-13181e2fc9ee', '\x5b7b226c6170736564223a7b22746f74616c223a312c226174223a313639307d7d5d');
INSERT INTO {schema}.saga_journal VALUES ('01a223e1-df59-77e9-a0e6-d3b9c7ff1c16', 3, now() - interval '1 hour', 'fa38ace6-8846-410b-8b15-4edcbdb3f1be', '\x5b7b226c6170736564223a7b22746f74616c223a322c226174223a323735337d7d5d');
INSERT INTO {schema}.saga_journal VALUES ('01a223e1-eb6a-73d6-aeed-815dbf6ef097', 1, now() - interval '1 hour', 'fa38ace6-8846-410b-8b15-4edcbdb3f1be', '\x5b7b22737563636565646564223a7b2273746570223a302c226f7574707574223a377d7d5d');
INSERT INTO {schema}.saga_journal VALUES ('01a223e1-eb6a-73d6-aeed-815dbf6ef097', 2, now() - interval '1 hour', 'fa38ace6-8846-410b-8b15-4edcbdb3f1be', '\x5b7b226661696c6564223a7b2273746570223a312c22696e5f646f756274223a66616c73652c226572726f72223a226e6f206d6f6e6579227d7d5d');
INSERT INTO {schema}.saga_journal VALUES ('01a223e1-eb6e-73d5-a3c4-98cd0a22f578', 1, now() - interval '1 hour', 'fa38ace6-8846-410b-8b15-4edcbdb3f1be', '\x5b7b22737563636565646564223a7b2273746570223a302c226f7574707574223a377d7d5d');
INSERT INTO {schema}.saga_journal VALUES ('01a223e1-eb74-7027-ba62-c4c1f486ecb2', 1, now() - interval '1 hour', 'fa38ace6-8846-410b-8b15-4edcbdb3f1be', '\x5b7b22737563636565646564223a7b2273746570223a302c226f7574707574223a377d7d5d');
INSERT INTO {schema}.saga_journal VALUES ('01a223e1-eb74-7027-ba62-c4c1f486ecb2', 2, now() - interval '1 hour', 'fa38ace6-8846-410b-8b15-4edcbdb3f1be', '\x5b7b22737563636565646564223a7b2273746570223a312c226f7574707574223a2264656c69766572696e672037227d7d5d');

INSERT INTO {schema}.saga_mailbox OVERRIDING SYSTEM VALUE VALUES ('01a223e1-eb78-7633-8b74-f7231e5b2dfa', '01a223e1-f16a-7587-8593-47c45f1d6334', 1, now() - interval '1 hour', NULL, '\x7b2263616e63656c223a7b22726561736f6e223a226368616e676564206d79206d696e64227d7d');

INSERT INTO {schema}.saga_migration VALUES (1, now() - interval '1 hour');
INSERT INTO {schema}.saga_migration VALUES (2, now() - interval '1 hour');
INSERT INTO {schema}.saga_migration VALUES (3, now() - interval '1 hour');
INSERT INTO {schema}.saga_migration VALUES (4, now() - interval '1 hour');
INSERT INTO {schema}.saga_migration VALUES (5, now() - interval '1 hour');
INSERT INTO {schema}.saga_migration VALUES (6, now() - interval '1 hour');
INSERT INTO {schema}.saga_migration VALUES (7, now() - interval '1 hour');
INSERT INTO {schema}.saga_migration VALUES (8, now() - interval '1 hour');

INSERT INTO {schema}.saga_outbox VALUES (38, 1, '01a223e1-f17f-76da-947c-9c8a999876f8', 'counted', 'key-1', 'test.counted.v1', 'tests', 'key-1', now() - interval '1 hour', 'application/json', NULL, NULL, NULL, now() - interval '1 hour', '\x31');
INSERT INTO {schema}.saga_outbox VALUES (25, 2, '01a223e1-f181-71f0-a454-64c4b1eba74f', 'counted', 'key-0', 'test.counted.v1', 'tests', 'key-0', now() - interval '1 hour', 'application/json', NULL, NULL, NULL, now() - interval '1 hour', '\x32');
INSERT INTO {schema}.saga_outbox VALUES (38, 3, '01a223e1-f182-7618-a5f9-dafd6a946dfe', 'counted', 'key-1', 'test.counted.v1', 'tests', 'key-1', now() - interval '1 hour', 'application/json', NULL, NULL, NULL, now() - interval '1 hour', '\x33');

INSERT INTO {schema}.saga_worker VALUES ('ec22cc47-b105-416a-9f06-f3a012ed1573', now() - interval '1 hour', now() - interval '1 hour', '{}', '{}');
INSERT INTO {schema}.saga_worker VALUES ('fa38ace6-8846-410b-8b15-4edcbdb3f1be', now() - interval '1 hour', now() - interval '1 hour', '{delivery}', '{1}');

SELECT pg_catalog.setval('{schema}.saga_mailbox_position_seq', 1, true);

SELECT pg_catalog.setval('{schema}.saga_outbox_seq_seq', 3, true);

ALTER TABLE ONLY {schema}.saga_definition
    ADD CONSTRAINT saga_definition_pkey PRIMARY KEY (name, version);

ALTER TABLE ONLY {schema}.saga_inbox_open
    ADD CONSTRAINT saga_inbox_open_pkey PRIMARY KEY (xid);

ALTER TABLE ONLY {schema}.saga_inbox
    ADD CONSTRAINT saga_inbox_pkey PRIMARY KEY (saga_id, step, generation);

ALTER TABLE ONLY {schema}.saga_journal
    ADD CONSTRAINT saga_journal_pkey PRIMARY KEY (saga_id, seq);

ALTER TABLE ONLY {schema}.saga
    ADD CONSTRAINT saga_key UNIQUE (name, key);

ALTER TABLE ONLY {schema}.saga_mailbox
    ADD CONSTRAINT saga_mailbox_pkey PRIMARY KEY (saga_id, message);

ALTER TABLE ONLY {schema}.saga_migration
    ADD CONSTRAINT saga_migration_pkey PRIMARY KEY (version);

ALTER TABLE ONLY {schema}.saga_outbox_parked
    ADD CONSTRAINT saga_outbox_parked_pkey PRIMARY KEY (shard, seq);

ALTER TABLE ONLY {schema}.saga_outbox
    ADD CONSTRAINT saga_outbox_pkey PRIMARY KEY (shard, seq);

ALTER TABLE ONLY {schema}.saga
    ADD CONSTRAINT saga_pkey PRIMARY KEY (id);

ALTER TABLE ONLY {schema}.saga_worker
    ADD CONSTRAINT saga_worker_pkey PRIMARY KEY (id);

CREATE INDEX saga_due ON {schema}.saga USING btree (name, version, due_at) WHERE (due_at IS NOT NULL);

CREATE INDEX saga_inbox_received ON {schema}.saga_inbox USING brin (received_at) WITH (pages_per_range='32');

CREATE INDEX saga_mailbox_unread ON {schema}.saga_mailbox USING btree (saga_id) WHERE (read_at IS NULL);

CREATE INDEX saga_outbox_parked_id ON {schema}.saga_outbox_parked USING btree (id);

CREATE INDEX saga_outbox_parked_key ON {schema}.saga_outbox_parked USING btree (aggregateid, aggregatetype, seq);

CREATE INDEX saga_owner ON {schema}.saga USING btree (owner) WHERE (owner IS NOT NULL);

CREATE INDEX saga_parked ON {schema}.saga USING btree (name, changed_at) WHERE (status = 2);

CREATE INDEX saga_unfinished ON {schema}.saga USING btree (name, started_at) WHERE (status < 3);

CREATE CONSTRAINT TRIGGER saga_inbox_still_open AFTER INSERT ON {schema}.saga_inbox_open DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {schema}.saga_inbox_still_open();
