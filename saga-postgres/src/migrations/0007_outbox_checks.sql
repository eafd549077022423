-- An event in a shard that no relay looks at, or of a key that its index cannot hold, would never leave: it is refused where it is written.
ALTER TABLE {schema}.saga_outbox
    DROP CONSTRAINT IF EXISTS saga_outbox_shard,
    DROP CONSTRAINT IF EXISTS saga_outbox_key,
    ADD CONSTRAINT saga_outbox_shard CHECK (shard BETWEEN 0 AND 63) NOT VALID,
    ADD CONSTRAINT saga_outbox_key CHECK (octet_length(aggregatetype) + octet_length(aggregateid) <= 2000) NOT VALID;
COMMENT ON COLUMN {schema}.saga_outbox.seq IS 'the order of events of one key; a lower one of another key may appear later. Its sequence must keep CACHE 1';

-- next transaction
ALTER TABLE {schema}.saga_outbox
    VALIDATE CONSTRAINT saga_outbox_shard,
    VALIDATE CONSTRAINT saga_outbox_key;
