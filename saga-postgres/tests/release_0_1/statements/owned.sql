-- What a worker owns. Served by saga_owner.
SELECT id, epoch FROM {schema}.saga WHERE owner = $1
