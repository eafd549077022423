-- Writes several events, in their order, in the user's transaction. No index.
INSERT INTO {schema}.saga_outbox
    (shard, id, aggregatetype, aggregateid, type, source, subject, time, content_type, traceparent, headers, extensions, payload)
SELECT shard, id, aggregatetype, aggregateid, type, source, subject, time, content_type, traceparent, headers, extensions, payload
FROM unnest($1::smallint[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::timestamptz[], $9::text[], $10::text[], $11::text[], $12::text[], $13::bytea[])
     WITH ORDINALITY
     AS i (shard, id, aggregatetype, aggregateid, type, source, subject, time, content_type, traceparent, headers, extensions, payload, place)
ORDER BY place
