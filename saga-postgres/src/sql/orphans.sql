-- Who owns sagas and is no worker (any more). A worker joins before it claims, so none is missed that lives. It steps
-- from one such owner to the next, through the gaps between the workers: what these own, or have owned, it does not
-- read. (What those had that are gone it does, for as long as an older snapshot keeps it.) Served by saga_owner and
-- saga_worker_pkey.
WITH RECURSIVE gap AS (
    SELECT id AS low, coalesce(lead(id) OVER (ORDER BY id), 'ffffffff-ffff-ffff-ffff-ffffffffffff') AS high
    FROM (SELECT id FROM {schema}.saga_worker UNION ALL SELECT '00000000-0000-0000-0000-000000000000') w
), orphan AS (
    SELECT next.owner, gap.high
    FROM gap
    CROSS JOIN LATERAL (
        SELECT owner FROM {schema}.saga WHERE owner > gap.low AND owner < gap.high ORDER BY owner LIMIT 1
    ) next
    UNION ALL
    SELECT next.owner, orphan.high
    FROM orphan
    CROSS JOIN LATERAL (
        SELECT owner FROM {schema}.saga WHERE owner > orphan.owner AND owner < orphan.high ORDER BY owner LIMIT 1
    ) next
)
SELECT owner FROM orphan
