-- The version of CloudEvents that an event is written in, as a column for change data capture, which can place one in a
-- header. Kafka Connect's own `InsertHeader` would make the number 1 of the text 1.0. The relay does not read it, and
-- nobody writes it.
--
-- A constant default rewrites no table, and statements that name their columns, as those of earlier versions do, go on
-- as they are.
ALTER TABLE {schema}.saga_outbox ADD COLUMN specversion text NOT NULL DEFAULT '1.0';
ALTER TABLE {schema}.saga_outbox_parked ADD COLUMN specversion text NOT NULL DEFAULT '1.0';
COMMENT ON COLUMN {schema}.saga_outbox.specversion IS 'always 1.0: for change data capture';
