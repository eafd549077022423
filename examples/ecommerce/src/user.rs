//! The user service: who may order.

use crate::{
    Result,
    databases::create_tables,
    problem::Problem,
    service::{self, Consistency, Site},
    together::Together,
};
use axum::{
    Json, Router,
    extract::{Path, State},
    routing::get,
};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use std::sync::Arc;

/// The service's name.
pub const NAME: &str = "user";
/// Of its port.
pub const OFFSET: u16 = 1;

/// User 101 is the one who may not order.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS users (
        id     bigint PRIMARY KEY,
        name   text NOT NULL,
        email  text NOT NULL,
        state  text NOT NULL CHECK (state IN ('ACTIVE', 'BLOCKED'))
    );
    INSERT INTO users VALUES
        (1, 'Ada', 'ada@example.com', 'ACTIVE'),
        (2, 'Ben', 'ben@example.com', 'ACTIVE'),
        (101, 'Eve', 'eve@example.com', 'BLOCKED')
        ON CONFLICT DO NOTHING;
    INSERT INTO users SELECT id, 'User ' || id, 'user' || id || '@example.com', 'ACTIVE' FROM generate_series(3, 100) id
        ON CONFLICT DO NOTHING;
    INSERT INTO users SELECT id, 'Load ' || id, 'load' || id || '@example.com', 'ACTIVE' FROM generate_series(1001, 2000) id
        ON CONFLICT DO NOTHING";

pub async fn serve(site: Site) -> Result<()> {
    let db = site.connect().await?;
    create_tables(&db, SCHEMA).await?;
    let asked = {
        let db = db.clone();
        Arc::new(Together::new(move |ids| with_ids(db.clone(), ids)))
    };
    let router = Router::new()
        .route("/users/{id}", get(user).with_state(asked))
        .route("/consistency", get(consistency))
        .route("/openapi.json", service::openapi(include_str!("../openapi/user.json")))
        .with_state(db.clone());
    site.serve(router, db).await
}

/// A user, as others see it.
#[derive(Clone, Debug, Serialize, Deserialize, sqlx::FromRow)]
pub struct User {
    id: i64,
    name: String,
    email: String,
    state: String,
}

impl User {
    pub fn is_active(&self) -> bool {
        self.state == "ACTIVE"
    }
}

/// Every order asks for one.
async fn user(
    State(asked): State<Arc<Together<i64, Option<User>>>>,
    Path(id): Path<i64>,
) -> Result<Json<User>, Problem> {
    Ok(Json(asked.run(id).await?.ok_or_else(|| Problem::not_found("there is no such user"))?))
}

async fn with_ids(db: PgPool, ids: Vec<i64>) -> Result<Vec<Result<Option<User>, Problem>>, Problem> {
    let found = sqlx::query_as("SELECT id, name, email, state FROM users WHERE id = ANY ($1)");
    let found: Vec<User> = found.bind(&ids).fetch_all(&db).await?;
    Ok(ids.into_iter().map(|id| Ok(found.iter().find(|user| user.id == id).cloned())).collect())
}

/// No order changes anything here.
#[derive(Debug, Serialize)]
struct Books {
    users: i64,
}

async fn consistency(State(db): State<PgPool>) -> Result<Json<Consistency<Books>>, Problem> {
    let users = sqlx::query_scalar("SELECT count(*) FROM users").fetch_one(&db).await?;
    Ok(Json(Consistency { balanced: true, books: Books { users } }))
}
