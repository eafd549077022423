-- Ends a transaction whose statement nobody waits for any more, so that it holds no locks. Its number tells it from a later process of the same id.
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_xid = $2::xid
