-- Who reads letters reads on where he stopped.

-- The highest number of a letter that was given out so far. NULL if the sequence gives out several at a time: then
-- nothing follows from it. With the rights of its owner: who reads letters need not have any on the sequence.
CREATE OR REPLACE FUNCTION {schema}.saga_mailbox_numbered() RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN s.is_called THEN s.last_value ELSE s.last_value - 1 END
    FROM {schema}.saga_mailbox_position_seq s
    WHERE EXISTS (
        SELECT FROM pg_sequence q WHERE q.seqrelid = '{schema}.saga_mailbox_position_seq'::regclass AND q.seqcache = 1
    )
$$;
