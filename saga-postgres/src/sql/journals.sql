-- The journals of these sagas, each from behind an entry on: few enough bytes, but one entry at least. Served by
-- saga_journal_pkey.
SELECT saga_id, seq, entry, at
FROM (
    SELECT i.place, e.*, sum(e.bytes) OVER (ORDER BY i.place, e.seq) - e.bytes AS bytes_before
    FROM unnest($1::uuid[], $2::integer[]) WITH ORDINALITY AS i (id, seq, place)
    CROSS JOIN LATERAL (
        SELECT saga_id, seq, entry, at, octet_length(entry) AS bytes
        FROM {schema}.saga_journal
        WHERE saga_id = i.id AND seq > i.seq
    ) e
) j
WHERE bytes_before < $3::bigint
ORDER BY place, seq
