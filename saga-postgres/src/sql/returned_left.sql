-- Whether anything is left to be said of a worker that came back. Served by saga_owner and saga_lost_with.
SELECT EXISTS (SELECT FROM {schema}.saga WHERE owner = $1)
    OR EXISTS (SELECT FROM {schema}.saga WHERE lost_with @> ARRAY[$1::uuid] AND lost_with IS NOT NULL) AS some
