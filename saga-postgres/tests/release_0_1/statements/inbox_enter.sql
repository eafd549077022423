-- Makes sure that there are rows that nobody else can change, and reads them. Served by saga_inbox_pkey; see migration 8.
SELECT * FROM {schema}.saga_inbox_enter($1, $2, $3)
