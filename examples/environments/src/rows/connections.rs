//! Few connections, and connections that lead nowhere.

use super::{Row, Story};
use crate::{
    Result,
    place::Place,
    proxy::Proxy,
    stage::{STARTS_WITHIN, Stage, pool},
    workload::Settings,
    world::World,
};
use saga_postgres::testing::Postgres;

pub const ROWS: &[Row] = &[
    Row { environment: "a server with few connections", short: true, run: |world| Box::pin(few(world)) },
    Row { environment: "connections that the network forgets", short: true, run: |world| Box::pin(forgotten(world)) },
];

/// Four connections for the engine, which would like to have more, and one for the users' transactions.
async fn few(world: &World) -> Result<Story> {
    let postgres = Postgres::builder().setting("max_connections", "10").setting("max_wal_senders", "0").start().await?;
    let migrating = Place::server(postgres.url()).options()?.connections(1).connect().await?;
    migrating.migrate().await?;
    migrating.pool().close().await;
    drop(migrating);
    let admin = pool(&postgres.url()).await?;
    sqlx::raw_sql(ROLES).execute(&admin).await?;
    admin.close().await;
    let url = |role: &str| format!("postgres://{role}@127.0.0.1:{}/postgres", postgres.port());
    let mut stage = Stage::open(world, Place::server(url("engine")), &postgres.url()).await?;
    let one_for_users = |settings: &mut Settings| {
        (settings.users, settings.connections, settings.relay) = (url("users"), 1, None);
    };
    stage.node_with(one_for_users).await?;
    Ok(Story::rough("one node, four connections for its engine", stage.finish().await?))
}

/// Whose connections are counted.
const ROLES: &str = "
    CREATE ROLE engine LOGIN CONNECTION LIMIT 4;
    CREATE ROLE users LOGIN CONNECTION LIMIT 1;
    GRANT USAGE ON SCHEMA saga TO engine, users;
    GRANT ALL ON ALL TABLES IN SCHEMA saga TO engine, users;
    GRANT ALL ON ALL SEQUENCES IN SCHEMA saga TO engine, users";

/// All open connections are forgotten; then many callers come at once, who have little patience, and drop their calls
/// in the middle.
async fn forgotten(world: &World) -> Result<Story> {
    let postgres = Postgres::private().await?;
    let proxy = Proxy::to(postgres.port()).await?;
    let mut stage = Stage::open(world, Place::server(proxy.url()), &postgres.url()).await?;
    stage.migrate().await?;
    for _ in 0..2 {
        stage.node_with(|settings| (settings.patience, settings.rest_after) = (2, 15)).await?;
    }
    for node in &mut stage.nodes {
        node.until_resting(STARTS_WITHIN).await?;
    }
    proxy.forget();
    for node in &mut stage.nodes {
        node.go_on().await?;
    }
    Ok(Story::rough("all forgotten once, callers wait for 2 s", stage.finish().await?))
}
