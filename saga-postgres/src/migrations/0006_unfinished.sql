-- Serves the census: the oldest saga of a name that has not ended.
CREATE INDEX CONCURRENTLY saga_unfinished ON {schema}.saga (name, started_at) WHERE status < 3;
