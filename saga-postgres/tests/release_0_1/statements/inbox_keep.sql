-- Keeps what is final, and lets the transaction be committed. Served by saga_inbox_pkey, saga_inbox_open_pkey; see migration 8.
SELECT {schema}.saga_inbox_keep($1, $2, $3, $4, $5, $6)
