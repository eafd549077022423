//! The tour: three orders with three fates, then the books.

use crate::{
    Result,
    account::AccountInUse,
    books,
    broker::Broker,
    databases::Databases,
    opening::Services,
    order::{Others, Way},
    serve::Ports,
};
use serde_json::Value;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);

pub async fn tour(way: Way) -> Result<()> {
    let run = Uuid::new_v4().simple().to_string();
    let mut postgres = Databases::start(format!("ecommerce_tour_{}", &run[..8])).await?;
    let told = tell(&mut postgres, way).await;
    postgres.remove().await?;
    told
}

async fn tell(postgres: &mut Databases, way: Way) -> Result<()> {
    headline("The shop opens");
    let broker = Broker::start().await?;
    let mut services = Services::start(postgres, &broker, way, Ports::ANY).await?;
    println!("   {}\n   {}\n   {}", postgres.in_use(), broker.in_use(), way.told());
    for service in services.all() {
        println!("   {:<12} {}  process {:<8} a database of its own", service.name, service.url, service.id());
    }
    let shop = Shop {
        order: services.order.url.clone(),
        inventory: services.inventory.url.clone(),
        payment: services.payment.url.clone(),
    };

    headline("1. A completed order");
    let first = shop.order(1, 1).await?;
    let ended = shop.ended(&first).await?;
    check(ended["state"] == "CONFIRMED", "the order is CONFIRMED")?;
    check(ended["total"] == 3_500_000, "its total is the shop's price, 3500000")?;
    check(shop.stock().await? == 4, "stock: 5 -> 4")?;
    check(shop.balance(1).await? == 16_500_000, "balance of user 1: 20000000 -> 16500000")?;

    headline("2. A declined payment, rolled back");
    let second = shop.order(2, 1).await?;
    let ended = shop.ended(&second).await?;
    check(ended["state"] == "CANCELLED", "the order is CANCELLED")?;
    check(ended["reason"] == "payment declined", "because: payment declined")?;
    check(shop.stock().await? == 4, "stock: 4, what had been reserved is back")?;
    check(shop.balance(2).await? == 1_000_000, "balance of user 2: 1000000, nothing was taken")?;

    headline("3. An order whose process is killed half-way");
    let account = AccountInUse::begin(&services.payment.database, 1).await?;
    println!("   somebody else is at the account of user 1: a charge has to wait");
    let third = shop.order(1, 2).await?;
    timeout(PATIENCE, account.awaited()).await??;
    let order = &mut services.order;
    order.freeze()?;
    println!("   the charge is asked for; whoever asked is frozen, and does not hear the answer");
    account.end().await?;
    timeout(PATIENCE, shop.charged(1, 9_500_000)).await??;
    let killed = order.id();
    order.kill().await?;
    println!("   kill -9 {killed}: the order service is gone, in the middle of this order");
    check(shop.stock().await? == 2, "stock: 4 -> 2, reserved")?;
    check(shop.balance(1).await? == 9_500_000, "balance of user 1: 16500000 -> 9500000, charged")?;
    order.start_again().await?;
    let found = shop.look_up(&third).await?;
    println!("   started again, as process {}: the order is {}", order.id(), found["state"].as_str().unwrap_or("gone"));
    let ended = shop.ended(&third).await?;
    check(ended["state"] == "CONFIRMED", "the order is CONFIRMED")?;
    check(shop.stock().await? == 2, "stock: 2, reserved once")?;
    check(shop.balance(1).await? == 9_500_000, "balance of user 1: 9500000, charged once")?;

    headline("The books");
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
    for service in services.into_all() {
        service.stop().await?;
    }
    Ok(())
}

/// The shop as its customers see it.
struct Shop {
    order: String,
    inventory: String,
    payment: String,
}

impl Shop {
    /// Orders product 1; returns the order's id.
    async fn order(&self, user: u32, quantity: u32) -> Result<String> {
        let wanted = format!(r#"{{"userId":{user},"productId":1,"quantity":{quantity}}}"#);
        println!("   POST /orders {wanted}");
        let answer = reqwest::Client::new()
            .post(format!("{}/orders", self.order))
            .header("content-type", "application/json")
            .body(wanted)
            .send()
            .await?;
        println!("   {}", answer.status());
        let order: Value = answer.error_for_status()?.json().await?;
        Ok(order["id"].as_str().ok_or("an order without an id")?.to_owned())
    }

    async fn look_up(&self, order: &str) -> Result<Value> {
        get(&format!("{}/orders/{order}", self.order)).await
    }

    /// Waits for the end of an order, and tells what came of its saga's steps. When commands were sent is in the history too, but is another story each time.
    async fn ended(&self, order: &str) -> Result<Value> {
        let began = Instant::now();
        loop {
            let found = self.look_up(order).await?;
            if found["saga"] == "Completed" || found["saga"] == "RolledBack" {
                let history = reqwest::get(format!("{}/orders/{order}/history", self.order)).await?.text().await?;
                let outcomes = history.lines().filter(|line| !line.contains("commanded"));
                outcomes.for_each(|line| println!("      {line}"));
                println!("   ended after {:.2?}", began.elapsed());
                return Ok(found);
            }
            if found["saga"] == "Parked" || began.elapsed() > PATIENCE {
                return Err(format!("the order has not ended: {found}").into());
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn stock(&self) -> Result<i64> {
        let stock = get(&format!("{}/inventory/1", self.inventory)).await?;
        Ok(stock["quantity"].as_i64().ok_or("a stock without a quantity")?)
    }

    async fn balance(&self, user: u32) -> Result<i64> {
        let account = get(&format!("{}/accounts/{user}", self.payment)).await?;
        Ok(account["balance"].as_i64().ok_or("an account without a balance")?)
    }

    /// Waits until the payment service has charged a user, who then has that much left.
    async fn charged(&self, user: u32, left: i64) -> Result<()> {
        while self.balance(user).await? != left {
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

async fn get(url: &str) -> Result<Value> {
    Ok(reqwest::get(url).await?.error_for_status()?.json().await?)
}

fn headline(text: &str) {
    println!("\n{text}\n");
}

fn check(holds: bool, what: &str) -> Result<()> {
    println!(" {} {what}", if holds { '✓' } else { '✗' });
    if holds { Ok(()) } else { Err(format!("this does not hold: {what}").into()) }
}
