-- The highest number that was given out so far. No index.
SELECT {schema}.saga_outbox_numbered() AS numbered
