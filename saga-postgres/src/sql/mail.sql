-- Unread messages to sagas of one worker: of each saga the oldest before the next one of any, so many, and few enough
-- bytes, but one at least. Served by saga_owner and saga_mailbox_unread.
SELECT saga_id, message, body
FROM (
    SELECT u.*, sum(u.bytes) OVER (ORDER BY u.turn, u.heavy, u.place) - u.bytes AS bytes_before
    FROM {schema}.saga s
    CROSS JOIN LATERAL (
        SELECT saga_id, message, position, body, octet_length(body) AS bytes, row_number() OVER (ORDER BY position) AS turn,
               octet_length(body) >= 4096 AS heavy, random() AS place
        FROM {schema}.saga_mailbox
        WHERE saga_id = s.id AND read_at IS NULL
        ORDER BY position
        LIMIT $2
    ) u
    WHERE s.owner = $1
    ORDER BY u.turn, u.heavy, u.place
    LIMIT $2
) m
WHERE bytes_before < $3::bigint
ORDER BY position
