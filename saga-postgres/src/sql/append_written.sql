-- Which of these entries stand, and who wrote them: resolves an append whose answer was lost. Served by saga_pkey and
-- saga_journal_pkey.
SELECT i.id, s.id IS NOT NULL AS exists, j.writer
FROM unnest($1::uuid[], $2::integer[]) AS i (id, seq)
LEFT JOIN {schema}.saga s ON s.id = i.id
LEFT JOIN {schema}.saga_journal j ON j.saga_id = i.id AND j.seq = i.seq
