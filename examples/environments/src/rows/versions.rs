//! Postgres itself: the packaged one, and the newest.

use super::{Row, Story};
use crate::{Result, place::Place, stage::Stage, world::World};
use saga_postgres::testing::Postgres;

pub const ROWS: &[Row] = &[
    Row { environment: "Postgres, as packaged", short: true, run: |world| Box::pin(packaged(world)) },
    Row { environment: "Postgres, the newest", short: false, run: |world| Box::pin(newest(world)) },
];

async fn packaged(world: &World) -> Result<Story> {
    plain(world, Postgres::private().await?).await
}

async fn newest(world: &World) -> Result<Story> {
    plain(world, Postgres::builder().binaries(world.newest_postgres()?).start().await?).await
}

async fn plain(world: &World, postgres: Postgres) -> Result<Story> {
    let mut stage = Stage::open(world, Place::server(postgres.url()), &postgres.url()).await?;
    stage.migrate().await?;
    let version = postgres.version().split(' ').next().unwrap_or_default();
    Ok(Story::quiet(format!("{version}, two nodes"), stage.two_nodes().await?))
}
