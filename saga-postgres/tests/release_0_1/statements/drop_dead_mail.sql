-- Drops unread mail of sagas that have ended: it came too late. Served by saga_mailbox_unread and saga_pkey.
DELETE FROM {schema}.saga_mailbox m
USING {schema}.saga s
WHERE m.read_at IS NULL AND s.id = m.saga_id AND s.status >= 3
