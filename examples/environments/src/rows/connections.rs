//! Few connections, and connections that lead nowhere.

use super::{Row, Story};
use crate::{
    Result,
    place::Place,
    proxy::Proxy,
    stage::{STARTS_WITHIN, Stage, pool},
    world::World,
};
use saga_postgres::{PgStore, testing::Postgres};

pub const ROWS: &[Row] = &[
    Row { environment: "a server with few connections", short: true, run: |world| Box::pin(few(world)) },
    Row { environment: "connections that the network forgets", short: true, run: |world| Box::pin(forgotten(world)) },
];

/// Five connections for everybody: one for the users' transactions, so that four are left for the engine.
async fn few(world: &World) -> Result<Story> {
    let settings = [("max_connections", "8"), ("superuser_reserved_connections", "3"), ("max_wal_senders", "0")];
    let server = settings.into_iter().fold(Postgres::builder(), |builder, (name, value)| builder.setting(name, value));
    let postgres = server.start().await?;
    let admin = pool(&postgres.url()).await?;
    sqlx::raw_sql("CREATE ROLE app LOGIN; GRANT CREATE ON DATABASE postgres TO app").execute(&admin).await?;
    admin.close().await;
    let place = Place::server(format!("postgres://app@127.0.0.1:{}/postgres", postgres.port()));
    let migrating = PgStore::options(&place.url)?.connections(1).connect().await?;
    migrating.migrate().await?;
    migrating.pool().close().await;
    drop(migrating);
    let mut stage = Stage::open(world, place, &postgres.url()).await?;
    stage.node_with(|settings| settings.connections = 1).await?;
    Ok(Story::rough("one node, four connections for it", stage.finish().await?))
}

/// The pool's connections are forgotten while callers, who have little patience, drop their calls in the middle.
async fn forgotten(world: &World) -> Result<Story> {
    let postgres = Postgres::private().await?;
    let proxy = Proxy::to(postgres.port()).await?;
    let mut stage = Stage::open(world, Place::server(proxy.url()), &postgres.url()).await?;
    stage.migrate().await?;
    for _ in 0..2 {
        stage.node_with(|settings| settings.patience = 2).await?;
    }
    stage.books.until_promised(20, STARTS_WITHIN).await?;
    proxy.forget();
    Ok(Story::rough("all forgotten once, callers wait for 2 s", stage.finish().await?))
}
