//! Who may do what, and schemas that are not as they should be.

use super::{
    Row, Story,
    refusal::{self, Start},
};
use crate::{
    Result,
    place::Place,
    program::free_port,
    stage::{Stage, pool},
    world::World,
};
use saga_postgres::{PgStore, testing::Postgres};
use sqlx::{AssertSqlSafe, PgPool};

pub const ROWS: &[Row] = &[
    Row { environment: "least privilege", short: true, run: |world| Box::pin(least_privilege(world)) },
    Row { environment: "a missing right", short: true, run: |_| Box::pin(a_missing_right()) },
    Row { environment: "row level security without a policy", short: true, run: |_| Box::pin(row_level_security()) },
    Row {
        environment: "migrate() by an owner without rights on the database",
        short: true,
        run: |_| Box::pin(owner()),
    },
    Row { environment: "a schema that is named `order`", short: true, run: |world| Box::pin(keyword(world)) },
    Row { environment: "a schema that was never migrated", short: true, run: |_| Box::pin(unmigrated()) },
    Row { environment: "a schema that is half migrated", short: true, run: |_| Box::pin(half_migrated()) },
    Row { environment: "a wrong port, a wrong host", short: true, run: |_| Box::pin(nowhere()) },
];

/// What a service that does not migrate by itself is given.
const APP: &str = "
    CREATE ROLE app LOGIN;
    GRANT USAGE ON SCHEMA saga TO app;
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA saga TO app;
    GRANT USAGE ON ALL SEQUENCES IN SCHEMA saga TO app;
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA saga TO app";

/// A server whose schema is migrated and used by somebody who owns nothing.
async fn with_app() -> Result<(Postgres, PgPool, Place)> {
    let postgres = Postgres::private().await?;
    Place::server(postgres.url()).connect().await?.migrate().await?;
    let admin = pool(&postgres.url()).await?;
    sqlx::raw_sql(APP).execute(&admin).await?;
    let place = Place::server(format!("postgres://app@127.0.0.1:{}/postgres", postgres.port()));
    Ok((postgres, admin, place))
}

async fn least_privilege(world: &World) -> Result<Story> {
    let (postgres, admin, place) = with_app().await?;
    sqlx::raw_sql("REVOKE ALL ON DATABASE postgres FROM PUBLIC; GRANT CONNECT ON DATABASE postgres TO app")
        .execute(&admin)
        .await?;
    let mut stage = Stage::open(world, place, &postgres.url()).await?;
    Ok(Story::quiet("two nodes that own nothing", stage.two_nodes().await?))
}

/// Each of these rights is needed sooner or later.
const NEEDED: [(&str, &str); 5] = [
    ("INSERT", "TABLE saga.saga_journal"),
    ("UPDATE", "TABLE saga.saga"),
    ("DELETE", "TABLE saga.saga_worker"),
    ("SELECT", "TABLE saga.saga_mailbox"),
    ("USAGE", "SCHEMA saga"),
];

async fn a_missing_right() -> Result<Story> {
    let (_postgres, admin, place) = with_app().await?;
    let (mut said, mut wrong) = (String::new(), vec![]);
    for (right, what) in NEEDED {
        let sql = |verb: &str, whom: &str| AssertSqlSafe(format!("{verb} {right} ON {what} {whom} app"));
        sqlx::raw_sql(sql("REVOKE", "FROM")).execute(&admin).await?;
        let named = what.rsplit(['.', ' ']).next().unwrap_or(what);
        match refusal::expect(&place, Start::AsItIs, &[named, right, "grant"]).await {
            Ok(refused) => said = refused,
            Err(error) => wrong.push(format!("without {right} on {what}: {error}")),
        }
        sqlx::raw_sql(sql("GRANT", "TO")).execute(&admin).await?;
    }
    match wrong.is_empty() {
        true => Ok(Story::refused(format!("{} of them, one after the other; the last: {said}", NEEDED.len()))),
        false => Err(wrong.join("; ").into()),
    }
}

async fn row_level_security() -> Result<Story> {
    let (_postgres, admin, place) = with_app().await?;
    sqlx::raw_sql("ALTER TABLE saga.saga ENABLE ROW LEVEL SECURITY").execute(&admin).await?;
    let words = ["row level security|row-level security|row security", "policy|BYPASSRLS"];
    Ok(Story::refused(refusal::expect(&place, Start::AsItIs, &words).await?))
}

/// What is up to date needs no rights to create anything.
async fn owner() -> Result<Story> {
    let postgres = Postgres::private().await?;
    let admin = pool(&postgres.url()).await?;
    let role = "CREATE ROLE owner LOGIN; GRANT CREATE ON DATABASE postgres TO owner";
    sqlx::raw_sql(role).execute(&admin).await?;
    let place = Place::server(format!("postgres://owner@127.0.0.1:{}/postgres", postgres.port()));
    let store = place.connect().await?;
    store.migrate().await?;
    sqlx::raw_sql("REVOKE ALL ON DATABASE postgres FROM owner, PUBLIC; GRANT CONNECT ON DATABASE postgres TO owner")
        .execute(&admin)
        .await?;
    store.migrate().await.map_err(|error| format!("the second time: {error}"))?;
    Ok(Story::refused("migrated once with CREATE on the database, once without"))
}

async fn keyword(world: &World) -> Result<Story> {
    let postgres = Postgres::private().await?;
    let place = Place { schema: "order".into(), ..Place::server(postgres.url()) };
    let mut stage = Stage::open(world, place, &postgres.url()).await?;
    stage.migrate().await?;
    Ok(Story::quiet("two nodes", stage.two_nodes().await?))
}

async fn unmigrated() -> Result<Story> {
    let postgres = Postgres::private().await?;
    let place = Place::server(postgres.url());
    Ok(Story::refused(refusal::expect(&place, Start::AsItIs, &["migrate", "saga"]).await?))
}

async fn half_migrated() -> Result<Story> {
    let postgres = Postgres::private().await?;
    let all = PgStore::migrations("saga");
    let (first, _) = all.split_once("-- Migration 5").ok_or("the printed migrations have no number 5")?;
    let admin = pool(&postgres.url()).await?;
    sqlx::raw_sql(AssertSqlSafe(first)).execute(&admin).await?;
    let place = Place::server(postgres.url());
    Ok(Story::refused(refusal::expect(&place, Start::AsItIs, &["migrate", "saga"]).await?))
}

async fn nowhere() -> Result<Story> {
    let nobody = format!("127.0.0.1:{}", free_port()?);
    let mut said = vec![];
    for address in [nobody.as_str(), "nowhere.invalid:5432"] {
        let place = Place::server(format!("postgres://postgres@{address}/postgres"));
        said.push(refusal::expect(&place, Start::AsItIs, &[address]).await?);
    }
    Ok(Story::refused(said.join("; ")))
}
