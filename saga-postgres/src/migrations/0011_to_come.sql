-- Holds the place of migration 11, which another branch brings.
SELECT 1;
