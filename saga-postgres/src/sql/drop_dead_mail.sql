-- Drops unread mail of sagas that have ended: it came too late. Of so many letters ($2), to sagas after $1 in the order
-- of their ids; answers how many it looked at, and whose the last one was. What is behind that of the same saga is come
-- to the next time round. What somebody holds is passed over. Served by saga_mailbox_unread, saga_pkey and
-- saga_mailbox_pkey.
WITH unread AS MATERIALIZED (
    SELECT saga_id, message FROM {schema}.saga_mailbox
    WHERE read_at IS NULL AND saga_id > $1
    ORDER BY saga_id LIMIT $2
), dead AS MATERIALIZED (
    SELECT m.saga_id, m.message
    FROM unread u
    CROSS JOIN LATERAL (SELECT status FROM {schema}.saga WHERE id = u.saga_id OFFSET 0) s
    CROSS JOIN LATERAL (
        -- Its status in here: or letters to sagas that live may be locked before it is seen.
        SELECT saga_id, message FROM {schema}.saga_mailbox
        WHERE saga_id = u.saga_id AND message = u.message AND read_at IS NULL AND s.status >= 3
        FOR UPDATE SKIP LOCKED
    ) m
), dropped AS (
    DELETE FROM {schema}.saga_mailbox m USING dead d WHERE m.saga_id = d.saga_id AND m.message = d.message
)
SELECT (SELECT count(*) FROM unread) AS looked_at, (SELECT saga_id FROM unread ORDER BY saga_id DESC LIMIT 1) AS last
