-- Unread messages to those sagas of one worker that got some after the number $6, of these definitions: of each saga
-- the oldest before the next one of any, so many, and few enough bytes, but one at least. Served by saga_mailbox_for,
-- saga_pkey and saga_mailbox_unread.
WITH RECURSIVE letters AS (
    -- Some at a time: then this index serves it however many there are, of whomever.
    SELECT d.name, d.version, next.*
    FROM unnest($2::text[], $3::integer[]) AS d (name, version)
    CROSS JOIN LATERAL (
        SELECT array_agg(saga_id) AS sagas, max(position) AS last
        FROM (
            SELECT saga_id, position FROM {schema}.saga_mailbox
            WHERE name = d.name AND version = d.version AND read_at IS NULL AND position > $6
            ORDER BY position LIMIT 100
        ) m
    ) next
    UNION ALL
    SELECT l.name, l.version, next.*
    FROM letters l
    CROSS JOIN LATERAL (
        SELECT array_agg(saga_id) AS sagas, max(position) AS last
        FROM (
            SELECT saga_id, position FROM {schema}.saga_mailbox
            WHERE name = l.name AND version = l.version AND read_at IS NULL AND position > l.last
            ORDER BY position LIMIT 100
        ) m
    ) next
    WHERE l.last IS NOT NULL
)
SELECT saga_id, message, body
FROM (
    SELECT u.*, sum(u.bytes) OVER (ORDER BY u.turn, u.heavy, u.place) - u.bytes AS bytes_before
    FROM (
        SELECT DISTINCT saga_id
        FROM (
            SELECT unnest(sagas) AS saga_id FROM letters
            UNION ALL
            -- An earlier release did not say whose they are.
            SELECT saga_id FROM {schema}.saga_mailbox
            WHERE name IS NULL AND version IS NULL AND read_at IS NULL AND position > $6
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
