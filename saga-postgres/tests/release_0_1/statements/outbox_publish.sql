-- Writes one event, in the user's transaction. No index.
INSERT INTO {schema}.saga_outbox
    (shard, id, aggregatetype, aggregateid, type, source, subject, time, content_type, traceparent, headers, extensions, payload)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
