-- Unread messages to these sagas: of each the oldest before the next one of any, and few enough bytes. Served by
-- saga_mailbox_unread.
SELECT saga_id, message, body
FROM (
    SELECT u.*, sum(u.bytes) OVER (ORDER BY u.turn, u.heavy, u.place) - u.bytes AS bytes_before
    FROM unnest($1::uuid[]) AS i (id)
    CROSS JOIN LATERAL (
        SELECT saga_id, message, position, body, octet_length(body) AS bytes, row_number() OVER (ORDER BY position) AS turn,
               octet_length(body) >= 4096 AS heavy, random() AS place
        FROM {schema}.saga_mailbox
        WHERE saga_id = i.id AND read_at IS NULL
    ) u
) m
WHERE bytes_before < $2::bigint
ORDER BY position
