-- Unread messages to these sagas. Served by saga_mailbox_unread.
SELECT saga_id, message, body FROM {schema}.saga_mailbox
WHERE saga_id = ANY ($1) AND read_at IS NULL
ORDER BY position
