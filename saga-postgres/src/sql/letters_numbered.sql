-- The highest number of a letter that was given out so far. No index.
SELECT {schema}.saga_mailbox_numbered() AS numbered
