//! Much that is past, and much that is somebody else's: none of it costs more than a little.

use super::{Row, Story};
use crate::{
    Result,
    cost::weight,
    place::Place,
    stage::{Stage, pool},
    world::World,
};
use saga_postgres::testing::Postgres;

pub const ROWS: &[Row] = &[
    Row {
        environment: "somebody's long transaction, and a hundred thousand dead entries in front of each queue",
        short: true,
        run: |world| Box::pin(long_transaction(world)),
    },
    Row {
        environment: "fifty thousand letters to others, twenty thousand events of a topic that is away",
        short: true,
        run: |world| Box::pin(strangers(world)),
    },
    Row { environment: "a slow network, and sagas that are heavy", short: true, run: |_| Box::pin(heavy()) },
];

/// So many sagas were due, were owned, had mail, and are gone; as many events went out.
const PAST: &str = "
    INSERT INTO saga.saga (id, name, version, key, input, due_at, due_from)
    SELECT gen_random_uuid(), 'errand', 1, 'past ' || n, '1', now() - interval '1 hour', now() - interval '1 hour'
    FROM generate_series(1, 100000) n;
    INSERT INTO saga.saga_mailbox (saga_id, message, body, name, version) SELECT id, 'm', '{}', name, version FROM saga.saga;
    UPDATE saga.saga_mailbox SET read_at = now();
    UPDATE saga.saga SET due_at = NULL, due_from = NULL, owner = gen_random_uuid();
    DELETE FROM saga.saga_mailbox;
    DELETE FROM saga.saga;
    INSERT INTO saga.saga_outbox (shard, id, aggregatetype, aggregateid, type, source, time, content_type, payload)
    SELECT n % 64, gen_random_uuid(), 'shop.events', n::text, 'past.v1', 'shop', now(), 'application/json', 'null'
    FROM generate_series(1, 100000) n;
    DELETE FROM saga.saga_outbox";

async fn long_transaction(world: &World) -> Result<Story> {
    let (mut stage, postgres) = open(world).await?;
    let admin = pool(&postgres.url()).await?;
    let mut long = admin.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    sqlx::raw_sql("SELECT 1").execute(&mut *long).await?;
    // All at once: no relay and no engine sees any of it.
    let mut past = admin.begin().await?;
    sqlx::raw_sql(PAST).execute(&mut *past).await?;
    past.commit().await?;
    let verdict = stage.two_nodes().await?;
    long.rollback().await?;
    Ok(Story::quiet("two nodes, the transaction open all the time", verdict))
}

/// Nobody runs that version, and the participants refuse that topic.
const STRANGERS: &str = "
    INSERT INTO saga.saga_mailbox (saga_id, message, body, name, version)
    SELECT gen_random_uuid(), 'm', '{}', 'errand', 99 FROM generate_series(1, 50000);
    INSERT INTO saga.saga_outbox (shard, id, aggregatetype, aggregateid, type, source, time, content_type, payload)
    SELECT n % 64, gen_random_uuid(), 'away', n::text, 'stranger.v1', 'shop', now(), 'application/json', 'null'
    FROM generate_series(1, 20000) n";

async fn strangers(world: &World) -> Result<Story> {
    let (mut stage, postgres) = open(world).await?;
    let admin = pool(&postgres.url()).await?;
    sqlx::raw_sql(STRANGERS).execute(&admin).await?;
    admin.close().await;
    Ok(Story::quiet("two nodes", stage.two_nodes().await?))
}

async fn heavy() -> Result<Story> {
    let mut done = vec![];
    for task in weight::SHORT {
        done.push(weight::run(&task).await?.says);
    }
    Ok(Story::measured(done.join("; ")))
}

async fn open(world: &World) -> Result<(Stage, Postgres)> {
    let postgres = Postgres::private().await?;
    let stage = Stage::open(world, Place::server(postgres.url()), &postgres.url()).await?;
    stage.migrate().await?;
    Ok((stage, postgres))
}
