-- Unread messages to sagas of one worker: of each saga the oldest before the next one of any, and few enough bytes, but one at least. Served by
-- saga_owner and saga_mailbox_unread.
SELECT r.saga_id, r.message, m.body
FROM (
    SELECT u.saga_id, u.message, u.turn, u.position, sum(u.bytes) OVER (ORDER BY u.turn, u.position) - u.bytes AS bytes_before
    FROM {schema}.saga s
    CROSS JOIN LATERAL (
        SELECT saga_id, message, position, octet_length(body) AS bytes, row_number() OVER (ORDER BY position) AS turn
        FROM {schema}.saga_mailbox
        WHERE saga_id = s.id AND read_at IS NULL
        ORDER BY position
        LIMIT $2
    ) u
    WHERE s.owner = $1
    ORDER BY u.turn, u.position
    LIMIT $2
) r
JOIN {schema}.saga_mailbox m ON m.saga_id = r.saga_id AND m.message = r.message
WHERE r.bytes_before < $3
ORDER BY r.turn, r.position
