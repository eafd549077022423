//! The tour: seven scenes, each with a picture of what happened, then the books.

use crate::{
    Result,
    account::AccountInUse,
    books,
    broker::Broker,
    databases::Databases,
    gateway::LocalKey,
    identity::Role,
    money::Money,
    opening::Services,
    order::{Others, Way},
    payment::ChargePayment,
    process::Process,
    serve::Ports,
    twice::Repeats,
};
use futures::future::{join_all, try_join_all};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at something that takes its time.
const PAUSE: Duration = Duration::from_millis(50);

pub async fn tour(way: Way, mermaid: bool) -> Result<()> {
    let run = Uuid::new_v4().simple().to_string();
    let mut postgres = Databases::start(format!("ecommerce_tour_{}", &run[..8])).await?;
    let told = tell(&mut postgres, way, mermaid).await;
    postgres.remove().await?;
    told
}

async fn tell(postgres: &mut Databases, way: Way, mermaid: bool) -> Result<()> {
    headline("The shop opens");
    let broker = Broker::start().await?;
    println!("   {}\n   {}\n   {}", postgres.in_use(), broker.in_use(), way.told());
    let services = Services::start(postgres, &broker, way, Ports::ANY).await?;
    let key = LocalKey::new()?;
    let gateway = services.gateway(Ports::ANY, vec![format!("--jwks={}", key.jwks()?)]).await?;
    for service in services.all() {
        println!("   {:<12} {}  process {:<8} a database of its own", service.name, service.url, service.id());
    }
    println!("   {:<12} {}  process {:<8} the door, for who has a token", gateway.name, gateway.url, gateway.id());

    let mut shop = Shop { http: Client::new(), key, gateway, services, mermaid };
    shop.a_happy_order().await?;
    shop.a_declined_payment().await?;
    shop.too_large_an_order().await?;
    shop.a_hundred_buyers_of_the_last_item().await?;
    shop.a_service_that_is_away().await?;
    shop.a_process_that_is_killed().await?;
    shop.a_participant_that_answers_twice(way, &broker).await?;
    shop.close().await
}

/// The scenes.
impl Shop {
    async fn a_happy_order(&self) -> Result<()> {
        headline("1. A happy order");
        let order = self.order(1, 1, 1).await?;
        let ended = self.ended(&order).await?;
        check(ended["state"] == "CONFIRMED", "the order is CONFIRMED")?;
        check(ended["total"] == 3_500_000, "its total is the shop's price, 3500000")?;
        check(self.stock(1).await? == 4, "stock: 5 -> 4")?;
        check(self.balance(1).await? == 16_500_000, "balance of user 1: 20000000 -> 16500000")?;
        self.picture(&order).await
    }

    async fn a_declined_payment(&self) -> Result<()> {
        headline("2. A payment that is declined");
        let order = self.order(2, 1, 1).await?;
        let ended = self.ended(&order).await?;
        check(ended["state"] == "CANCELLED", "the order is CANCELLED")?;
        check(ended["reason"] == "payment declined", "because: payment declined")?;
        check(self.stock(1).await? == 4, "stock: 4, what had been reserved is back")?;
        check(self.balance(2).await? == 1_000_000, "balance of user 2: 1000000, nothing was taken")?;
        self.picture(&order).await
    }

    async fn too_large_an_order(&self) -> Result<()> {
        headline("3. Too large an order");
        let order = self.order(3, 1, 999).await?;
        let ended = self.ended(&order).await?;
        check(ended["state"] == "CANCELLED", "the order is CANCELLED")?;
        check(ended["reason"] == "out of stock", "because: out of stock")?;
        check(self.stock(1).await? == 4, "stock: 4, as before")?;
        check(self.balance(3).await? == 20_000_000, "balance of user 3: 20000000, as before")?;
        self.picture(&order).await
    }

    async fn a_hundred_buyers_of_the_last_item(&self) -> Result<()> {
        headline("4. A hundred buyers of the last item, at once");
        check(self.stock(2).await? == 1, "stock of product 2: 1")?;
        let before = self.taken().await?;
        println!("   POST /orders {{\"userId\":1 to 100,\"productId\":2,\"quantity\":1}}");
        let placed = join_all((1..=100).map(|user| self.placed(user, 2, 1))).await;
        let placed = placed.into_iter().collect::<Result<Vec<_>>>()?;
        let ended = try_join_all(placed.iter().map(|order| self.ended(order))).await?;
        let winner = ended.iter().position(|order| order["state"] == "CONFIRMED").ok_or("nobody got it")?;
        let loser = ended.iter().position(|order| order["reason"] == "out of stock").ok_or("everybody got it")?;
        check(ended.iter().filter(|order| order["state"] == "CONFIRMED").count() == 1, "one order is CONFIRMED")?;
        check(ended.iter().filter(|order| order["reason"] == "out of stock").count() == 99, "99 are out of stock")?;
        check(self.stock(2).await? == 0, "stock of product 2: 0")?;
        check(self.taken().await? == before + 90_000, "money was taken for one, 90000")?;
        println!("\n   who got it:");
        self.picture(&placed[winner]).await?;
        println!("\n   one of the others:");
        self.picture(&placed[loser]).await
    }

    async fn a_service_that_is_away(&mut self) -> Result<()> {
        headline("5. A service that is away, and comes back");
        let before = self.balance(5).await?;
        self.services.payment.stop().await?;
        println!("   the payment service is stopped");
        let order = self.order(5, 3, 1).await?;
        self.waits_for(&order, "charge-payment").await?;
        let waiting = self.look_up(&order).await?;
        check(waiting["state"] == "PENDING", "the order is PENDING: it waits for its payment")?;
        self.services.payment.start_again().await?;
        println!("   the payment service is back, as process {}", self.services.payment.id());
        let ended = self.ended(&order).await?;
        check(ended["state"] == "CONFIRMED", "the order is CONFIRMED")?;
        check(self.balance(5).await? == before - 180_000, "user 5 paid 180000, once")?;
        self.picture(&order).await
    }

    async fn a_process_that_is_killed(&mut self) -> Result<()> {
        headline("6. A process that is killed half-way");
        let before = self.balance(6).await?;
        let account = AccountInUse::begin(&self.services.payment.database, 6).await?;
        println!("   somebody else is at the account of user 6: a charge has to wait");
        let order = self.order(6, 3, 2).await?;
        timeout(PATIENCE, account.awaited()).await??;
        self.services.order.freeze()?;
        println!("   the charge is asked for; whoever asked is frozen, and does not hear the answer");
        account.end().await?;
        self.charged(6, before - 360_000).await?;
        let killed = self.services.order.id();
        self.services.order.kill().await?;
        println!("   kill -9 {killed}: the order service is gone, between the charge and its answer");
        check(self.stock(3).await? == 17, "stock: 19 -> 17, reserved")?;
        check(self.balance(6).await? == before - 360_000, "user 6 paid 360000")?;
        self.services.order.start_again().await?;
        println!("   started again, as process {}", self.services.order.id());
        let ended = self.ended(&order).await?;
        check(ended["state"] == "CONFIRMED", "the order is CONFIRMED")?;
        check(self.stock(3).await? == 17, "stock: 17, reserved once")?;
        check(self.balance(6).await? == before - 360_000, "user 6 paid 360000, once")?;
        self.picture(&order).await
    }

    async fn a_participant_that_answers_twice(&mut self, way: Way, broker: &Broker) -> Result<()> {
        headline("7. A participant that answers twice");
        let before = self.balance(7).await?;
        let mut charges = Repeats::listen(way, broker, &self.services.payment.url).await?;
        self.services.delivery.freeze()?;
        println!("   the delivery service is frozen, so that the order is still under way");
        let order = self.order(7, 3, 1).await?;
        self.charged(7, before - 180_000).await?;
        let due = Money { amount: 180_000, currency: "KRW".into() };
        let charge = ChargePayment { user_id: 7, due };
        let answer = timeout(PATIENCE, charges.repeat(order.id.into(), &charge)).await??;
        println!("   the charge comes a second time: the same command over Kafka, or the same request over HTTP");
        check(answer == json!(charge.due), "the payment service answers a second time, as before")?;
        check(self.balance(7).await? == before - 180_000, "user 7 paid 180000")?;
        self.services.delivery.thaw()?;
        println!("   the delivery service goes on");
        let ended = self.ended(&order).await?;
        check(ended["state"] == "CONFIRMED", "the order is CONFIRMED")?;
        check(self.balance(7).await? == before - 180_000, "user 7 paid 180000, once")?;
        check(self.stock(3).await? == 16, "stock: 17 -> 16, reserved once")?;
        charges.stop().await;
        println!("\n   the journal knows of one answer:");
        self.picture(&order).await
    }

    async fn close(self) -> Result<()> {
        headline("The books");
        let services = self.services;
        let others = Others {
            user: services.user.url.clone(),
            inventory: services.inventory.url.clone(),
            payment: services.payment.url.clone(),
            delivery: services.delivery.url.clone(),
            product: services.product.url.clone(),
        };
        let (order, notification) = (services.order.url.clone(), services.notification.url.clone());
        books::close(&books::Places { order, others, notification }).await?;
        println!("\n   They balance: nothing was lost, nothing was done twice.");
        let mut all: Vec<Process> = services.into_all().into_iter().chain([self.gateway]).collect();
        try_join_all(all.iter_mut().map(Process::stop)).await?;
        Ok(())
    }
}

/// The shop as its customers see it, through its gateway; and its processes.
struct Shop {
    http: Client,
    key: LocalKey,
    gateway: Process,
    services: Services,
    mermaid: bool,
}

/// An order, and whose it is.
struct Placed {
    user: u32,
    id: Uuid,
}

impl Shop {
    async fn order(&self, user: u32, product: u32, quantity: u32) -> Result<Placed> {
        println!("   POST /orders {{\"userId\":{user},\"productId\":{product},\"quantity\":{quantity}}}");
        self.placed(user, product, quantity).await
    }

    /// As a customer should: again with the same key as long as the shop says so.
    async fn placed(&self, user: u32, product: u32, quantity: u32) -> Result<Placed> {
        let (key, wanted) = (Uuid::new_v4(), json!({ "userId": user, "productId": product, "quantity": quantity }));
        let token = self.key.token(&user.to_string(), Role::Buyer)?;
        let began = Instant::now();
        loop {
            let request = self.http.request(Method::POST, format!("{}/orders", self.gateway.url));
            let request = request.bearer_auth(&token).header("Idempotency-Key", key.to_string());
            let answer = request.json(&wanted).send().await?;
            if answer.status() == StatusCode::SERVICE_UNAVAILABLE && began.elapsed() < PATIENCE {
                sleep(PAUSE).await;
                continue;
            }
            let order: Value = answer.error_for_status()?.json().await?;
            return Ok(Placed { user, id: order["id"].as_str().ok_or("an order without an id")?.parse()? });
        }
    }

    async fn look_up(&self, order: &Placed) -> Result<Value> {
        let answer = self.get(&order.user.to_string(), Role::Buyer, &format!("/orders/{}", order.id)).await?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// Waits for the end of an order.
    async fn ended(&self, order: &Placed) -> Result<Value> {
        let (began, path) = (Instant::now(), format!("/orders/{}?wait=10s", order.id));
        loop {
            let found: Value = serde_json::from_str(&self.get(&order.user.to_string(), Role::Buyer, &path).await?)?;
            if found["saga"] == "Completed" || found["saga"] == "RolledBack" {
                return Ok(found);
            }
            if found["saga"] == "Parked" || began.elapsed() > PATIENCE {
                return Err(format!("the order has not ended: {found}").into());
            }
        }
    }

    /// Waits until an order has to wait for a step: it was refused a connection, or its command has no reply for a while.
    async fn waits_for(&self, order: &Placed, step: &str) -> Result<()> {
        let signs = [format!("{step} will be tried again"), format!("{step} was commanded")];
        let (began, path) = (Instant::now(), format!("/orders/{}/history", order.id));
        loop {
            let history = self.get(&order.user.to_string(), Role::Buyer, &path).await?;
            if signs.iter().any(|sign| history.contains(sign)) {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("the order does not wait for {step}: {history}").into());
            }
            sleep(PAUSE).await;
        }
    }

    async fn picture(&self, order: &Placed) -> Result<()> {
        let form = if self.mermaid { "mermaid" } else { "text" };
        let path = format!("/orders/{}/picture?as={form}", order.id);
        println!("\n{}", self.get(&order.user.to_string(), Role::Buyer, &path).await?.trim_end());
        Ok(())
    }

    async fn stock(&self, product: u32) -> Result<i64> {
        let stock: Value =
            serde_json::from_str(&self.get("tour", Role::Operator, &format!("/inventory/{product}")).await?)?;
        Ok(stock["quantity"].as_i64().ok_or("a stock without a quantity")?)
    }

    async fn balance(&self, user: u32) -> Result<i64> {
        let path = format!("/accounts/{user}");
        let account: Value = serde_json::from_str(&self.get(&user.to_string(), Role::Buyer, &path).await?)?;
        Ok(account["balance"].as_i64().ok_or("an account without a balance")?)
    }

    /// Waits until a user has that much left.
    async fn charged(&self, user: u32, left: i64) -> Result<()> {
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
    async fn taken(&self) -> Result<i64> {
        let books = self.http.get(format!("{}/consistency", self.services.payment.url)).send().await?;
        let books: Value = books.error_for_status()?.json().await?;
        Ok(books["taken"].as_i64().ok_or("books that do not say what was taken")?)
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

fn headline(text: &str) {
    println!("\n{text}\n");
}

fn check(holds: bool, what: &str) -> Result<()> {
    println!(" {} {what}", if holds { '✓' } else { '✗' });
    if holds { Ok(()) } else { Err(format!("this does not hold: {what}").into()) }
}
