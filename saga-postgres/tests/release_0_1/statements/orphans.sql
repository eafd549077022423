-- Who owns sagas and is no worker (any more). A worker joins before it claims, so none is missed that lives. Served by saga_owner and saga_worker_pkey.
SELECT DISTINCT s.owner FROM {schema}.saga s
WHERE s.owner IS NOT NULL AND NOT EXISTS (SELECT FROM {schema}.saga_worker w WHERE w.id = s.owner)
