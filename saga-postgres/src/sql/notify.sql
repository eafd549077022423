-- Tells all processes on this schema, without waiting for the disk. No index.
SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)
