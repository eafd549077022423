//! The tour: seven scenes, each with a picture of what happened, then the books.

mod shop;

use crate::{
    Result,
    account::AccountInUse,
    books,
    broker::Broker,
    databases::Databases,
    gateway::LocalKey,
    money::Money,
    opening::Services,
    order::{Others, Way},
    payment::ChargePayment,
    process::Process,
    serve::Ports,
    twice::Repeats,
};
use futures::future::try_join_all;
use reqwest::Client;
use serde_json::json;
use shop::{PATIENCE, Shop};
use tokio::time::timeout;
use uuid::Uuid;

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
        let placed = try_join_all((1..=100).map(|user| self.placed(user, 2, 1))).await?;
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
        self.services.order.freeze().await?;
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
        self.services.delivery.freeze().await?;
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

fn headline(text: &str) {
    println!("\n{text}\n");
}

fn check(holds: bool, what: &str) -> Result<()> {
    println!(" {} {what}", if holds { '✓' } else { '✗' });
    if holds { Ok(()) } else { Err(format!("this does not hold: {what}").into()) }
}
