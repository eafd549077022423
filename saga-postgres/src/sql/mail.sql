-- Unread messages to those sagas of one worker that got some after the number $6, of these definitions: of each saga
-- the oldest before the next one of any, so many, and few enough bytes, but one at least. Served by saga_mailbox_for,
-- saga_pkey and saga_mailbox_unread.
SELECT saga_id, message, body
FROM (
    SELECT u.*, sum(u.bytes) OVER (ORDER BY u.turn, u.heavy, u.place) - u.bytes AS bytes_before
    FROM (
        SELECT DISTINCT saga_id
        FROM (
            SELECT m.saga_id
            FROM unnest($2::text[], $3::integer[]) AS d (name, version)
            CROSS JOIN LATERAL (
                SELECT saga_id FROM {schema}.saga_mailbox
                WHERE name = d.name AND version = d.version AND read_at IS NULL AND position > $6
                ORDER BY position
            ) m
            UNION ALL
            -- An earlier release did not say whose they are.
            SELECT saga_id FROM {schema}.saga_mailbox WHERE name IS NULL AND version IS NULL AND read_at IS NULL AND position > $6
        ) m
    ) m
    -- The offset keeps this from being planned by the owner.
    CROSS JOIN LATERAL (SELECT id, owner FROM {schema}.saga WHERE id = m.saga_id OFFSET 0) s
    CROSS JOIN LATERAL (
        SELECT saga_id, message, position, body, octet_length(body) AS bytes, row_number() OVER (ORDER BY position) AS turn,
               octet_length(body) >= 4096 AS heavy, random() AS place
        FROM {schema}.saga_mailbox
        WHERE saga_id = s.id AND read_at IS NULL
        ORDER BY position
        LIMIT $4
    ) u
    WHERE s.owner = $1
    ORDER BY u.turn, u.heavy, u.place
    LIMIT $4
) m
WHERE bytes_before < $5::bigint
ORDER BY position
