//! Defaults that a database or a role brings along.

use super::{Row, Story};
use crate::{
    Result,
    place::Place,
    stage::{Stage, pool},
    world::World,
};
use saga_postgres::testing::Postgres;

pub const ROWS: &[Row] = &[
    Row {
        environment: "a database that is serializable by default",
        short: true,
        run: |world| {
            let set = "ALTER DATABASE postgres SET default_transaction_isolation = 'serializable'";
            Box::pin(with(world, Postgres::builder(), set))
        },
    },
    Row {
        environment: "a role whose default is repeatable read",
        short: false,
        run: |world| {
            let set = "ALTER ROLE postgres SET default_transaction_isolation = 'repeatable read'";
            Box::pin(with(world, Postgres::builder(), set))
        },
    },
    Row {
        environment: "a role with each time-out at one second",
        short: true,
        run: |world| Box::pin(with(world, Postgres::builder(), TIME_OUTS)),
    },
    Row {
        environment: "a role with transaction_timeout at one second (17 and later)",
        short: false,
        run: |world| Box::pin(transaction_timeout(world)),
    },
    Row {
        environment: "a role whose commits are asynchronous",
        short: false,
        run: |world| Box::pin(with(world, Postgres::builder(), "ALTER ROLE postgres SET synchronous_commit = off")),
    },
];

const TIME_OUTS: &str = "
    ALTER ROLE postgres SET statement_timeout = '1s';
    ALTER ROLE postgres SET lock_timeout = '1s';
    ALTER ROLE postgres SET idle_in_transaction_session_timeout = '1s';
    ALTER ROLE postgres SET idle_session_timeout = '1s'";

async fn transaction_timeout(world: &World) -> Result<Story> {
    let newest = Postgres::builder().binaries(world.newest_postgres()?);
    with(world, newest, "ALTER ROLE postgres SET transaction_timeout = '1s'").await
}

async fn with(world: &World, server: saga_postgres::testing::Builder, set: &'static str) -> Result<Story> {
    let postgres = server.start().await?;
    let admin = pool(&postgres.url()).await?;
    sqlx::raw_sql(set).execute(&admin).await?;
    admin.close().await;
    let mut stage = Stage::open(world, Place::server(postgres.url()), &postgres.url()).await?;
    stage.migrate().await?;
    Ok(Story::quiet("two nodes", stage.two_nodes().await?))
}
