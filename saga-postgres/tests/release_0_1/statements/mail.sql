-- Unread messages to sagas of one worker. Served by saga_mailbox_unread and saga_pkey.
SELECT m.saga_id, m.message, m.body
FROM {schema}.saga_mailbox m
JOIN {schema}.saga s ON s.id = m.saga_id
WHERE m.read_at IS NULL AND s.owner = $1
ORDER BY m.position
LIMIT $2
