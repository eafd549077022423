//! Closing the books: what one service says it has, another one must know of, to the unit.

use crate::{
    Result, delivery, inventory, notification,
    order::{self, Others},
    payment,
};
use serde::{Serialize, de::DeserializeOwned};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How long after the last order somebody may still be told.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the services are that have books.
#[derive(Debug, clap::Args)]
pub struct Places {
    #[arg(long, default_value = "http://127.0.0.1:8082")]
    pub order: String,
    #[command(flatten)]
    pub others: Others,
    #[arg(long, default_value = "http://127.0.0.1:8088")]
    pub notification: String,
}

/// Two books that must agree.
#[derive(Debug, Serialize)]
pub struct Line {
    pub what: &'static str,
    pub one: i64,
    pub other: i64,
}

/// Prints the books side by side. An error if they differ, or if an order is not finished.
pub async fn close(places: &Places) -> Result<()> {
    let lines = compare(places).await?;
    print(&lines);
    if balance(&lines) { Ok(()) } else { Err("the books do not balance".into()) }
}

/// The books when everybody has been told.
pub async fn compare(Places { order, others, notification }: &Places) -> Result<Vec<Line>> {
    let (orders, told) = when_all_are_told(order, notification).await?;
    lines(&orders, &told, others).await
}

pub fn balance(lines: &[Line]) -> bool {
    lines.iter().all(|line| line.one == line.other)
}

pub fn print(lines: &[Line]) {
    println!("   {:<44}{:>16}{:>16}{:>14}", "", "one book", "the other", "difference");
    for Line { what, one, other } in lines {
        let mark = if one == other { '✓' } else { '✗' };
        println!(" {mark} {what:<44}{one:>16}{other:>16}{:>14}", one - other);
    }
}

/// The books as they are at this moment, in which something may be under way.
pub async fn now(order: &str, others: &Others, notification: &str) -> Result<Vec<Line>> {
    lines(&read(order).await?, &read(notification).await?, others).await
}

async fn lines(orders: &order::Books, told: &notification::Books, others: &Others) -> Result<Vec<Line>> {
    let stock: inventory::Books = read(&others.inventory).await?;
    let money: payment::Books = read(&others.payment).await?;
    let parcels: delivery::Books = read(&others.delivery).await?;
    let lines = [
        ("units delivered to us = left + reserved", stock.delivered, stock.left + stock.reserved),
        ("units reserved = in confirmed orders", stock.reserved, orders.units),
        ("money users began with = left + taken", money.opening, money.left + money.taken),
        ("money taken = totals of confirmed orders", money.taken, orders.money),
        ("deliveries = confirmed orders", parcels.deliveries, orders.confirmed),
        ("deliveries under way = none", parcels.under_way, 0),
        ("notifications = 3 if confirmed, 2 if cancelled", told.notifications, due(orders)),
        ("unfinished orders = none", orders.unfinished, 0),
    ];
    Ok(lines.into_iter().map(|(what, one, other)| Line { what, one, other }).collect())
}

/// A customer is told when an order was placed, and when it was cancelled, or its delivery started and was completed.
const fn due(orders: &order::Books) -> i64 {
    3 * orders.confirmed + 2 * orders.cancelled + orders.unfinished
}

/// Customers are told a moment after it happened, and a delivery takes a while.
async fn when_all_are_told(order: &str, notification: &str) -> Result<(order::Books, notification::Books)> {
    let began = Instant::now();
    loop {
        let (orders, told): (order::Books, notification::Books) = (read(order).await?, read(notification).await?);
        if told.notifications >= due(&orders) || began.elapsed() > PATIENCE {
            return Ok((orders, told));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn read<T: DeserializeOwned>(service: &str) -> Result<T> {
    Ok(reqwest::get(format!("{service}/consistency")).await?.error_for_status()?.json().await?)
}
