-- Drops unread mail of sagas that have ended: it came too late. What somebody holds is passed over. Served by
-- saga_mailbox_unread, saga_pkey and saga_mailbox_pkey.
WITH dead AS MATERIALIZED (
    SELECT m.saga_id, m.message
    FROM {schema}.saga_mailbox m
    JOIN {schema}.saga s ON s.id = m.saga_id
    WHERE m.read_at IS NULL AND s.status >= 3
    FOR UPDATE OF m SKIP LOCKED
)
DELETE FROM {schema}.saga_mailbox m
USING dead d
WHERE m.saga_id = d.saga_id AND m.message = d.message
