//! A standby takes the place of the primary. Nothing that was acknowledged is lost: commits wait for the standby.

use super::{Row, Story};
use crate::{
    Result,
    place::Place,
    proxy::Proxy,
    stage::{STARTS_WITHIN, Stage, pool},
    standby::{PRIMARY, Standby, postmaster, until},
    world::World,
};
use rustix::process::{Signal, kill_process};
use saga_postgres::testing::Postgres;
use sqlx::AssertSqlSafe;
use std::time::Duration;

pub const ROWS: &[Row] = &[
    Row { environment: "failover: the primary is killed", short: true, run: |world| Box::pin(promotion(world)) },
    Row {
        environment: "switch-over: connections to the old primary stay open",
        short: true,
        run: |world| Box::pin(switch_over(world)),
    },
    Row {
        environment: "switch-over while nothing happens: connections to the old primary stay open",
        short: false,
        run: |world| Box::pin(quiet_switch_over(world)),
    },
];

/// A primary with its standby, and two nodes that work through a proxy and rest after so many sagas.
async fn pair(world: &World, rest_after: u64) -> Result<(Postgres, Standby, Proxy, Stage)> {
    let settings = PRIMARY.iter().fold(Postgres::builder(), |builder, (name, value)| builder.setting(*name, *value));
    let primary = settings.start().await?;
    let standby = Standby::of(&primary).await?;
    let proxy = Proxy::to(primary.port()).await?;
    let mut stage = Stage::open(world, Place::server(proxy.url()), &primary.url()).await?;
    stage.migrate().await?;
    for _ in 0..2 {
        stage.node_with(|settings| settings.rest_after = rest_after).await?;
    }
    Ok((primary, standby, proxy, stage))
}

async fn promotion(world: &World) -> Result<Story> {
    let (primary, standby, proxy, mut stage) = pair(world, u64::MAX).await?;
    stage.books.until_promised(20, STARTS_WITHIN).await?;
    let data = primary.data_dir().ok_or("the primary has no directory")?;
    kill_process(postmaster(data)?, Signal::KILL)?;
    proxy.switch_to(standby.port);
    standby.promote().await?;
    // Its other processes have noticed meanwhile, or will; nobody waits for them.
    proxy.cut();
    stage.moved_to(&standby.url());
    Ok(Story::rough("kill -9 of the primary, its standby promoted", stage.finish().await?))
}

async fn switch_over(world: &World) -> Result<Story> {
    let (primary, standby, proxy, mut stage) = pair(world, u64::MAX).await?;
    stage.books.until_promised(20, STARTS_WITHIN).await?;
    switch(&primary, &standby, &proxy).await?;
    stage.moved_to(&standby.url());
    Ok(Story::rough("old primary read-only, its standby promoted", stage.finish().await?))
}

/// Nothing is under way when it happens, so nobody who only reads is told.
async fn quiet_switch_over(world: &World) -> Result<Story> {
    let (primary, standby, proxy, mut stage) = pair(world, 15).await?;
    for node in &mut stage.nodes {
        node.until_resting(STARTS_WITHIN).await?;
    }
    stage.until_ended().await?;
    switch(&primary, &standby, &proxy).await?;
    stage.moved_to(&standby.url());
    for node in &mut stage.nodes {
        node.go_on().await?;
    }
    Ok(Story::rough("as above, between two rounds of sagas", stage.finish().await?))
}

/// The old primary writes no more, the standby takes its place, and new connections go there.
async fn switch(primary: &Postgres, standby: &Standby, proxy: &Proxy) -> Result<()> {
    let old = pool(&primary.url()).await?;
    let read_only = "ALTER SYSTEM SET default_transaction_read_only = on";
    sqlx::query(read_only).execute(&old).await?;
    sqlx::query("SELECT pg_reload_conf()").execute(&old).await?;
    // Whatever began to write before has ended, and has arrived.
    let at_rest = "SELECT current_setting('default_transaction_read_only')::boolean AND NOT EXISTS (
        SELECT FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_xid IS NOT NULL)";
    until(&old, at_rest, "nobody writes to the old primary").await?;
    let end: String = sqlx::query_scalar("SELECT pg_current_wal_lsn()::text").fetch_one(&old).await?;
    let new = pool(&standby.url()).await?;
    let arrived = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'::pg_lsn");
    while !sqlx::query_scalar::<_, bool>(AssertSqlSafe(arrived.as_str())).fetch_one(&new).await? {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    standby.promote().await?;
    proxy.switch_to(standby.port);
    Ok(())
}
