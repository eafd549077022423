-- Gives up a parked event. Answers with its key. Served by saga_outbox_parked_id.
DELETE FROM {schema}.saga_outbox_parked
WHERE id = $1 AND reason IS NOT NULL
RETURNING aggregatetype, aggregateid
