-- The journals of these sagas, each from behind its snapshot on. Served by saga_journal_pkey.
SELECT j.saga_id, j.entry, j.at
FROM unnest($1::uuid[], $2::integer[]) AS i (id, seq)
CROSS JOIN LATERAL (
    SELECT saga_id, entry, at FROM {schema}.saga_journal WHERE saga_id = i.id AND seq > i.seq ORDER BY seq
) j
