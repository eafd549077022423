#!/usr/bin/env bash
# Run once by the image, when the server is empty: a database for each service, and a role that may do nothing elsewhere.
set -euo pipefail

for service in user order inventory payment delivery product notification; do
    psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --set name="ecommerce_$service" --set password="$POSTGRES_PASSWORD" <<'END'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
END
done
