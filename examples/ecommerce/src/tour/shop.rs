//! The shop of the tour, as its customers see it.

use crate::{Result, gateway::LocalKey, identity::Role, opening::Services, process::Process};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::time::sleep;
use uuid::Uuid;

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at something that takes its time.
const PAUSE: Duration = Duration::from_millis(50);

/// The shop as its customers see it, through its gateway; and its processes.
pub struct Shop {
    pub http: Client,
    pub key: LocalKey,
    pub gateway: Process,
    pub services: Services,
    pub mermaid: bool,
}

/// An order, and whose it is.
pub struct Placed {
    user: u32,
    pub id: Uuid,
}

impl Shop {
    pub async fn order(&self, user: u32, product: u32, quantity: u32) -> Result<Placed> {
        println!("   POST /orders {{\"userId\":{user},\"productId\":{product},\"quantity\":{quantity}}}");
        self.placed(user, product, quantity).await
    }

    /// As a customer should: again with the same key as long as the shop says so.
    pub async fn placed(&self, user: u32, product: u32, quantity: u32) -> Result<Placed> {
        let (key, wanted) = (Uuid::new_v4(), json!({ "userId": user, "productId": product, "quantity": quantity }));
        let token = self.key.token(&user.to_string(), Role::Buyer)?;
        let began = Instant::now();
        loop {
            let request = self.http.post(format!("{}/orders", self.gateway.url)).bearer_auth(&token);
            let answer = request.header("Idempotency-Key", key.to_string()).json(&wanted).send().await?;
            if answer.status() == StatusCode::SERVICE_UNAVAILABLE && began.elapsed() < PATIENCE {
                sleep(PAUSE).await;
                continue;
            }
            let order: Value = answer.error_for_status()?.json().await?;
            return Ok(Placed { user, id: order["id"].as_str().ok_or("an order without an id")?.parse()? });
        }
    }

    pub async fn look_up(&self, order: &Placed) -> Result<Value> {
        Ok(serde_json::from_str(&self.of(order, "").await?)?)
    }

    /// Waits for the end of an order.
    pub async fn ended(&self, order: &Placed) -> Result<Value> {
        let began = Instant::now();
        loop {
            let found: Value = serde_json::from_str(&self.of(order, "?wait=10s").await?)?;
            if found["saga"] == "Completed" || found["saga"] == "RolledBack" {
                return Ok(found);
            }
            if found["saga"] == "Parked" || began.elapsed() > PATIENCE {
                return Err(format!("the order has not ended: {found}").into());
            }
        }
    }

    /// Waits until an order has to wait for a step: it was refused a connection, or its command has no reply for a while.
    pub async fn waits_for(&self, order: &Placed, step: &str) -> Result<()> {
        let signs = [format!("{step} will be tried again"), format!("{step} was commanded")];
        let began = Instant::now();
        loop {
            let history = self.of(order, "/history").await?;
            if signs.iter().any(|sign| history.contains(sign)) {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("the order does not wait for {step}: {history}").into());
            }
            sleep(PAUSE).await;
        }
    }

    pub async fn picture(&self, order: &Placed) -> Result<()> {
        let form = if self.mermaid { "mermaid" } else { "text" };
        println!("\n{}", self.of(order, &format!("/picture?as={form}")).await?.trim_end());
        Ok(())
    }

    pub async fn stock(&self, product: u32) -> Result<i64> {
        number(&self.get("operator", Role::Operator, &format!("/inventory/{product}")).await?, "quantity")
    }

    pub async fn balance(&self, user: u32) -> Result<i64> {
        number(&self.get(&user.to_string(), Role::Buyer, &format!("/accounts/{user}")).await?, "balance")
    }

    /// Waits until a user has that much left.
    pub async fn charged(&self, user: u32, left: i64) -> Result<()> {
        let began = Instant::now();
        while self.balance(user).await? != left {
            if began.elapsed() > PATIENCE {
                return Err(format!("user {user} was not charged").into());
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// What was taken of all users, as the payment service says itself.
    pub async fn taken(&self) -> Result<i64> {
        let books = self.http.get(format!("{}/consistency", self.services.payment.url)).send().await?;
        number(&books.error_for_status()?.text().await?, "taken")
    }

    /// What the buyer of an order hears of it.
    async fn of(&self, order: &Placed, what: &str) -> Result<String> {
        self.get(&order.user.to_string(), Role::Buyer, &format!("/orders/{}{what}", order.id)).await
    }

    /// A service that is just starting again is asked again.
    async fn get(&self, who: &str, role: Role, path: &str) -> Result<String> {
        let token = self.key.token(who, role)?;
        let began = Instant::now();
        loop {
            let answer = self.http.get(format!("{}{path}", self.gateway.url)).bearer_auth(&token).send().await?;
            if answer.status().is_server_error() && began.elapsed() < PATIENCE {
                sleep(PAUSE).await;
                continue;
            }
            return Ok(answer.error_for_status()?.text().await?);
        }
    }
}

fn number(answer: &str, field: &str) -> Result<i64> {
    let answer: Value = serde_json::from_str(answer)?;
    Ok(answer[field].as_i64().ok_or_else(|| format!("there is no number {field} in {answer}"))?)
}
