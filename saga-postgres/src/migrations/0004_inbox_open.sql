-- What keeps a handler from committing the transaction that it is given. Each transaction of the inbox begins with a row here, which it removes at its very end, and with
-- which it cannot be committed. Otherwise a COMMIT in one handler would make its neighbours' work stand without their answers, and it would be done again.
CREATE TABLE {schema}.saga_inbox_open (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    CONSTRAINT saga_inbox_open_pkey PRIMARY KEY (xid)
) WITH (
    -- No row ever stays.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 1000000
);

CREATE FUNCTION {schema}.saga_inbox_still_open() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.saga_inbox_open WHERE xid = NEW.xid) THEN
        RAISE EXCEPTION 'a handler must not commit the transaction that it is given'
            USING HINT = 'If it was SET CONSTRAINTS ALL IMMEDIATE: name the constraints.';
    END IF;
    RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER saga_inbox_still_open AFTER INSERT ON {schema}.saga_inbox_open
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {schema}.saga_inbox_still_open();
