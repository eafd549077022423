-- A topic that is away stops no other, what was sent long ago costs nothing, and any database can show its journals.

-- The highest number of an event that was given out so far. NULL if the sequence gives out several at a time: then
-- nothing follows from it. With the rights of its owner: who reads the outbox need not have any on the sequence.
CREATE OR REPLACE FUNCTION {schema}.saga_outbox_numbered() RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN s.is_called THEN s.last_value ELSE s.last_value - 1 END
    FROM {schema}.saga_outbox_seq_seq s
    WHERE EXISTS (
        SELECT FROM pg_sequence q WHERE q.seqrelid = '{schema}.saga_outbox_seq_seq'::regclass AND q.seqcache = 1
    )
$$;

-- An entry of a journal as JSON. Where the database's encoding may lack a character of it, such a character is written
-- by its number, which is the same JSON.
CREATE OR REPLACE FUNCTION {schema}.saga_shown(entry bytea) RETURNS json
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
        WHEN getdatabaseencoding() IN ('UTF8', 'SQL_ASCII') THEN convert_from(entry, 'UTF8')::json
        ELSE (
            SELECT string_agg(
                CASE
                    WHEN first < 128 THEN chr(first)
                    WHEN first < 192 THEN '' -- Belongs to the one before it.
                    WHEN first < 224 THEN chr(92) || 'u' || lpad(to_hex((first & 31) * 64 + second), 4, '0')
                    WHEN first < 240 THEN chr(92) || 'u' || lpad(to_hex((first & 15) * 4096 + second * 64 + third), 4, '0')
                    ELSE chr(92) || 'u' || to_hex(55296 - 64 + (first & 7) * 256 + second * 4 + third / 16)
                        || chr(92) || 'u' || to_hex(56320 + (third & 15) * 64 + fourth)
                END, '' ORDER BY at)::json
            -- Made once, so that it is not read from its place for each byte.
            FROM (SELECT entry || decode('000000', 'hex') OFFSET 0) AS p (padded)
            CROSS JOIN LATERAL generate_series(0, length(padded) - 4) AS a (at)
            CROSS JOIN LATERAL (
                SELECT get_byte(padded, at), get_byte(padded, at + 1) & 63, get_byte(padded, at + 2) & 63,
                       get_byte(padded, at + 3) & 63
            ) AS b (first, second, third, fourth)
        )
    END
$$;

CREATE OR REPLACE VIEW {schema}.saga_history AS
SELECT s.id, s.name, s.version, s.key,
       (ARRAY['running', 'compensating', 'parked', 'completed', 'rolled back'])[s.status + 1] AS status,
       j.seq, j.at, {schema}.saga_shown(j.entry) AS events
FROM {schema}.saga s
LEFT JOIN {schema}.saga_journal j ON j.saga_id = s.id
ORDER BY s.id, j.seq;

-- next transaction
-- Serves a relay, which reads each topic from its own head. On expressions, so that no other statement is planned with
-- it: a plan may be made while the table is empty, when all indexes look the same, and one by (shard, seq) would then
-- pass all topics later on.
CREATE INDEX CONCURRENTLY saga_outbox_topic ON {schema}.saga_outbox
    ((shard::int), (aggregatetype || ''), (seq + 0));

-- next transaction
-- Serves a relay, which has to know what may be given back to it.
CREATE INDEX CONCURRENTLY saga_outbox_parked_topic ON {schema}.saga_outbox_parked
    ((shard::int), (aggregatetype || ''), (seq + 0));
