-- Forgets the workers whose lease lapsed. It waits for a heartbeat that is under way, and then looks again. A handful of rows.
DELETE FROM {schema}.saga_worker WHERE expires_at <= now()
