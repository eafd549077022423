//! The product service: what there is to buy, and what it costs.

use crate::{
    Result,
    databases::create_tables,
    problem::Problem,
    service::{self, Consistency, Site},
    together::Together,
};
use axum::{
    Json, Router,
    extract::{Path, Query, State},
    routing::get,
};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use std::sync::Arc;

/// The service's name.
pub const NAME: &str = "product";
/// Of its port.
pub const OFFSET: u16 = 7;

/// Prices are in the currency's smallest unit.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS product (
        id        bigint PRIMARY KEY,
        name      text NOT NULL,
        price     bigint NOT NULL CHECK (price > 0),
        currency  text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
        category  text NOT NULL
    );
    INSERT INTO product VALUES
        (1, 'MacBook Pro 16', 3500000, 'KRW', 'computers'),
        (2, 'Signed poster', 90000, 'KRW', 'art'),
        (3, 'Mechanical keyboard', 180000, 'KRW', 'computers'),
        (1000, 'Sticker', 100, 'KRW', 'art')
        ON CONFLICT DO NOTHING";

pub async fn serve(site: Site) -> Result<()> {
    let db = site.connect().await?;
    create_tables(&db, SCHEMA).await?;
    let asked = {
        let db = db.clone();
        Arc::new(Together::new(move |ids| with_ids(db.clone(), ids)))
    };
    let router = Router::new()
        .route("/products", get(products))
        .route("/products/{id}", get(product).with_state(asked))
        .route("/consistency", get(consistency))
        .route("/openapi.json", service::openapi(include_str!("../openapi/product.json")))
        .with_state(db.clone());
    site.serve(router, db).await
}

/// A product, as others see it.
#[derive(Clone, Debug, Serialize, Deserialize, sqlx::FromRow)]
pub struct Product {
    pub id: i64,
    pub name: String,
    pub price: i64,
    pub currency: String,
    pub category: String,
}

#[derive(Deserialize)]
struct OfCategory {
    category: Option<String>,
}

async fn products(
    State(db): State<PgPool>,
    Query(OfCategory { category }): Query<OfCategory>,
) -> Result<Json<Vec<Product>>, Problem> {
    let products = sqlx::query_as(
        "SELECT id, name, price, currency, category FROM product WHERE $1::text IS NULL OR category = $1 ORDER BY id",
    );
    Ok(Json(products.bind(category).fetch_all(&db).await?))
}

/// Every order asks for one.
async fn product(
    State(asked): State<Arc<Together<i64, Option<Product>>>>,
    Path(id): Path<i64>,
) -> Result<Json<Product>, Problem> {
    Ok(Json(asked.run(id).await?.ok_or_else(|| Problem::not_found("there is no such product"))?))
}

async fn with_ids(db: PgPool, ids: Vec<i64>) -> Result<Vec<Result<Option<Product>, Problem>>, Problem> {
    let found = sqlx::query_as("SELECT id, name, price, currency, category FROM product WHERE id = ANY ($1)");
    let found: Vec<Product> = found.bind(&ids).fetch_all(&db).await?;
    Ok(ids.into_iter().map(|id| Ok(found.iter().find(|product| product.id == id).cloned())).collect())
}

/// No order changes anything here.
#[derive(Debug, Serialize)]
struct Books {
    products: i64,
}

async fn consistency(State(db): State<PgPool>) -> Result<Json<Consistency<Books>>, Problem> {
    let products = sqlx::query_scalar("SELECT count(*) FROM product").fetch_one(&db).await?;
    Ok(Json(Consistency { balanced: true, books: Books { products } }))
}
