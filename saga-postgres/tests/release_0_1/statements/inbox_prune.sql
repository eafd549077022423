-- Forgets a bounded number of old rows, passing over those that are in use. Served by saga_inbox_received.
DELETE FROM {schema}.saga_inbox WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {schema}.saga_inbox
    WHERE received_at < now() - make_interval(secs => $1)
    LIMIT $2 FOR UPDATE SKIP LOCKED
))
