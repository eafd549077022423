//! One of the users.

use super::{Answer, Options, Order, PRODUCT, Seen, lock};
use chrono::{DateTime, Utc};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde::Deserialize;
use serde_json::json;
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};
use tokio::time::sleep_until;
use uuid::Uuid;

const BETWEEN: Duration = Duration::from_secs(1);
const LATE: Duration = Duration::from_secs(10);
/// How many orders are placed between two looks at what became of them; the shop tells of the last hundred.
const BETWEEN_LOOKS: usize = 50;

pub(super) struct User {
    id: i64,
    url: String,
    token: Option<String>,
    http: Client,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    id: String,
    user_id: i64,
    product_id: i64,
    quantity: i64,
    unit_price: i64,
    total: i64,
    state: String,
    ended_at: Option<DateTime<Utc>>,
}

impl User {
    pub(super) fn new(id: i64, options: &Options, http: Client, seen: Arc<Mutex<Seen>>) -> Self {
        let url = format!("{}/orders", options.url.trim_end_matches('/'));
        Self { id, url, token: options.token.clone(), http, seen }
    }

    /// Orders once a second; at once, if the answer to the one before took longer than that. Who is still late when all should be over gives up.
    pub(super) async fn act(self, starts: Instant, until: Instant) -> Self {
        sleep_until(starts.into()).await;
        lock(&self.seen).users += 1;
        let mut meant = starts;
        let mut placed = 0;
        while meant < until && Instant::now() < until + LATE {
            sleep_until(meant.into()).await;
            self.order(meant).await;
            placed += 1;
            if placed % BETWEEN_LOOKS == 0 {
                self.look_up().await;
            }
            meant += BETWEEN;
        }
        let mut seen = lock(&self.seen);
        seen.users -= 1;
        while meant < until {
            seen.missed += 1;
            meant += BETWEEN;
        }
        drop(seen);
        self
    }

    async fn order(&self, meant: Instant) {
        let wanted = json!({ "userId": self.id, "productId": PRODUCT, "quantity": 1 });
        let request = self.http.post(&self.url).header("Idempotency-Key", Uuid::now_v7().to_string()).json(&wanted);
        let answer = self.answer(request).await;
        let (at, now) = (Instant::now(), SystemTime::now());
        let took = at - meant;
        let mut seen = lock(&self.seen);
        seen.last_answer = Some(now);
        match answer {
            Ok(id) => {
                seen.answers.push(Answer { at, took });
                seen.orders.insert(id, Order { meant: now - took, ended: None });
            }
            Err(wrong) => seen.failed.push(wrong),
        }
    }

    /// The order's id, if it is the order that was asked for.
    async fn answer(&self, request: RequestBuilder) -> Result<String, String> {
        let answer = self.known(request).send().await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| error.to_string())?;
        if status != StatusCode::ACCEPTED {
            return Err(format!("{status}: {text}"));
        }
        let order: Told = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        let is_right = order.user_id == self.id
            && order.product_id == PRODUCT
            && order.quantity == 1
            && order.total == order.unit_price
            && order.state != "CANCELLED";
        if is_right { Ok(order.id) } else { Err(format!("not what was ordered: {text}")) }
    }

    fn known(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// What became of its orders.
    pub(super) async fn look_up(&self) {
        let request = self.known(self.http.get(&self.url).query(&[("userId", self.id)]));
        let told = async { request.send().await?.error_for_status()?.json::<Vec<Told>>().await };
        let told = match told.await {
            Ok(told) => told,
            Err(error) => return lock(&self.seen).failed.push(error.to_string()),
        };
        let mut seen = lock(&self.seen);
        for Told { id, state, ended_at, .. } in told {
            if let (Some(order), Some(at)) = (seen.orders.get_mut(&id), ended_at) {
                order.ended = Some((state, at.into()));
            }
        }
    }
}
