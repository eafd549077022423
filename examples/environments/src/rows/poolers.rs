//! PgBouncer, in each mode that can work, and in those that cannot.

use super::{
    Row, Story,
    refusal::{self, Start},
};
use crate::{
    Result,
    place::Place,
    pooler::{PgBouncer, Version},
    stage::{Stage, pool},
    workload::{Errand, Fate, Order},
    world::World,
};
use saga_core::Engine;
use saga_postgres::{InTransaction, testing::Postgres};
use std::time::{Duration, Instant};
use tokio::{task::JoinSet, time::sleep};

const SESSION: &str = "pool_mode = session";
const SESSION_IGNORING: &str = "pool_mode = session\nignore_startup_parameters = extra_float_digits,options";
const TRACKED: &str = "pool_mode = transaction\nmax_prepared_statements = 200";
/// A release before 1.21 does not know the other setting.
const UNTRACKED_BEFORE_1_21: &str = "pool_mode = transaction";
const UNTRACKED: &str = "pool_mode = transaction\nmax_prepared_statements = 0";

pub const ROWS: &[Row] = &[
    Row {
        environment: "PgBouncer as packaged, session mode",
        short: true,
        run: |world| Box::pin(session(world, Version::Packaged, SESSION)),
    },
    Row {
        environment: "PgBouncer as packaged, session mode, start-up parameters ignored",
        short: true,
        run: |world| Box::pin(session(world, Version::Packaged, SESSION_IGNORING)),
    },
    Row {
        environment: "PgBouncer as packaged, transaction mode",
        short: true,
        run: |world| Box::pin(shared(world, Version::Packaged, UNTRACKED)),
    },
    Row {
        environment: "PgBouncer as packaged, transaction mode that nobody mentioned",
        short: true,
        run: |world| Box::pin(unmentioned(world, Version::Packaged)),
    },
    Row {
        environment: "PgBouncer 1.24, session mode",
        short: false,
        run: |world| Box::pin(session(world, Version::Newer, SESSION)),
    },
    Row {
        environment: "PgBouncer 1.24, session mode, start-up parameters ignored",
        short: false,
        run: |world| Box::pin(session(world, Version::Newer, SESSION_IGNORING)),
    },
    Row {
        environment: "PgBouncer 1.24, transaction mode, statements tracked",
        short: false,
        run: |world| Box::pin(shared(world, Version::Newer, TRACKED)),
    },
    Row {
        environment: "PgBouncer 1.24, transaction mode, statements not tracked",
        short: false,
        run: |world| Box::pin(shared(world, Version::Newer, UNTRACKED)),
    },
    Row {
        environment: "PgBouncer 1.24, transaction mode that nobody mentioned",
        short: false,
        run: |world| Box::pin(unmentioned(world, Version::Newer)),
    },
];

async fn session(world: &World, version: Version, settings: &str) -> Result<Story> {
    let postgres = Postgres::private().await?;
    let pooler = PgBouncer::start(world, version, postgres.port(), settings).await?;
    pooled(world, &postgres, &pooler, Place::server(pooler.url())).await
}

/// Sessions are shared between transactions, and the store is told so.
async fn shared(world: &World, version: Version, settings: &str) -> Result<Story> {
    let postgres = Postgres::private().await?;
    let pooler = in_transaction_mode(world, version, postgres.port(), settings).await?;
    pooled(world, &postgres, &pooler, Place::transaction_pooler(pooler.url(), postgres.url())).await
}

async fn pooled(world: &World, postgres: &Postgres, pooler: &PgBouncer, place: Place) -> Result<Story> {
    let mut stage = Stage::open(world, place, &postgres.url()).await?;
    stage.migrate().await?;
    stage.node().await?;
    stage.node().await?;
    let slowest = while_a_key_is_held(postgres, &stage).await?;
    let done = format!("{}, two nodes; slowest call beside a key that is held: {slowest:.1?}", pooler.version);
    let mut verdict = stage.finish().await?;
    if slowest > Duration::from_secs(3) {
        verdict.wrong.push(format!("a call beside a key that is held took {slowest:.1?}"));
    }
    Ok(Story::quiet(done, verdict))
}

/// Somebody's open transaction holds a key that is submitted again. Other sagas of the same process are started
/// meanwhile: how long did the slowest of these calls take?
async fn while_a_key_is_held(postgres: &Postgres, stage: &Stage) -> Result<Duration> {
    let engine = Engine::builder(stage.connect().await?).start().await?;
    let sagas = engine.sagas::<Errand>();
    let order = Order { number: 0, fate: Fate::Completes };
    let held = "held-1";
    // The one who holds it is somewhere else.
    let direct = Place::server(postgres.url()).connect().await?;
    let users = pool(&postgres.url()).await?;
    let mut tx = users.begin().await?;
    sagas.submit_in(&direct, &mut tx, held, order).await?;
    let same = tokio::spawn({
        let sagas = sagas.clone();
        async move { sagas.submit(held, order).await.map(|started| started.is_new()) }
    });
    let (began, mut calls) = (Instant::now(), JoinSet::new());
    let mut number = 1;
    // Calls of all of this time, also of those moments at which the one above waits for its lock.
    while began.elapsed() < Duration::from_secs(2) {
        let sagas = sagas.clone();
        calls.spawn(async move {
            let called = Instant::now();
            sagas.submit(format!("beside-{number}"), order).await.map(|_| called.elapsed())
        });
        number += 3;
        sleep(Duration::from_millis(50)).await;
    }
    let mut slowest = Duration::ZERO;
    for call in calls.join_all().await {
        slowest = slowest.max(call.map_err(|error| format!("beside a key that is held: {error}"))?);
    }
    tx.commit().await?;
    // It may have been told to try again.
    if same.await?.unwrap_or(false) {
        return Err("a key that was held was used twice".into());
    }
    engine.shutdown(Duration::from_secs(1)).await;
    users.close().await;
    Ok(slowest)
}

/// Nobody has said that the URL goes through a pooler in transaction mode, and the best of them would not do.
async fn unmentioned(world: &World, version: Version) -> Result<Story> {
    let postgres = Postgres::private().await?;
    let pooler = in_transaction_mode(world, version, postgres.port(), TRACKED).await?;
    let refused = refusal::expect(&Place::server(pooler.url()), Start::Migrating, &["transaction_pooler"]).await?;
    Ok(Story::refused(format!("{}, {refused}", pooler.version)))
}

async fn in_transaction_mode(world: &World, version: Version, upstream: u16, settings: &str) -> Result<PgBouncer> {
    let before_1_21 = PgBouncer::version(world, version)
        .await?
        .split('.')
        .nth(1)
        .is_some_and(|minor| minor.parse::<u32>().is_ok_and(|minor| minor < 21));
    let settings = if before_1_21 { UNTRACKED_BEFORE_1_21 } else { settings };
    PgBouncer::start(world, version, upstream, settings).await
}
