-- Frees the dead rows at the head, unless somebody is doing so. The file keeps its size: to cut it would take a lock that writers wait for. Served by saga_outbox_pkey.
VACUUM (SKIP_LOCKED, TRUNCATE off) {schema}.saga_outbox
