//! What the order service asks others before it takes an order: who orders, and what it costs.

use crate::telemetry::Client;
use crate::{
    breaker::{Breaker, NoAnswer},
    problem::Problem,
    product::Product,
    user::User,
};
use axum::http::StatusCode;
use reqwest::Method;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// A customer waits for it.
const PATIENCE: Duration = Duration::from_secs(2);

pub struct Asking {
    http: Client,
    user: String,
    product: String,
    breaker: Breaker,
}

impl Asking {
    /// Where the two services are.
    pub fn at(user: String, product: String) -> Self {
        Self { http: Client::new(reqwest::Client::new()), user, product, breaker: Breaker::default() }
    }

    /// Without a price there is no order.
    pub async fn product(&self, id: i64) -> Result<Product, Problem> {
        let found = self.get(format!("{}/products/{id}", self.product)).await;
        let found = found.map_err(|_| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "what it costs cannot be found out now: try again")
        })?;
        found.ok_or_else(|| Problem::refused("there is no such product"))
    }

    /// Whether the user was checked. If the user service does not answer, the order is taken all the same: `false`.
    pub async fn check_user(&self, id: i64) -> Result<bool, Problem> {
        match self.breaker.call(self.get::<User>(format!("{}/users/{id}", self.user))).await {
            Ok(Some(user)) if user.is_active() => Ok(true),
            Ok(Some(_)) => Err(Problem::refused("this user is blocked")),
            Ok(None) => Err(Problem::refused("there is no such user")),
            Err(NoAnswer::Open | NoAnswer::Failed(_)) => Ok(false),
        }
    }

    /// `None` if there is no such thing.
    async fn get<T: DeserializeOwned>(&self, url: String) -> Result<Option<T>, reqwest::Error> {
        let answer = self.http.send(self.http.request(Method::GET, &url).timeout(PATIENCE)).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            _ => Ok(Some(answer.error_for_status()?.json().await?)),
        }
    }
}
