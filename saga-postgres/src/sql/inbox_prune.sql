-- Forgets a bounded number of old rows, the oldest first, from a time on, passing over those that are in use. Reads no
-- further than its limit, in the order of the index. Served by saga_inbox_received_at.
DELETE FROM {schema}.saga_inbox WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {schema}.saga_inbox
    WHERE received_at >= $3 AND received_at < now() - make_interval(secs => $1)
    ORDER BY received_at
    LIMIT $2 FOR UPDATE SKIP LOCKED
))
RETURNING received_at
