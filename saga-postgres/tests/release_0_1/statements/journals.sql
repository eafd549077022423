-- The journals of these sagas. Served by saga_journal_pkey.
SELECT saga_id, entry FROM {schema}.saga_journal WHERE saga_id = ANY ($1) ORDER BY saga_id, seq
