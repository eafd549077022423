//! Closing the books: what one service says it has, another one must know of, to the unit.

use crate::{Result, delivery, inventory, order, order::Participants, payment};
use serde::de::DeserializeOwned;

/// Prints the books side by side. An error if they differ, or if an order is not finished.
pub async fn close(order: &str, others: &Participants) -> Result<()> {
    let orders: order::Books = read(order).await?;
    let stock: inventory::Books = read(&others.inventory).await?;
    let money: payment::Books = read(&others.payment).await?;
    let parcels: delivery::Books = read(&others.delivery).await?;
    let lines = [
        ("units delivered to us = left + reserved", stock.delivered, stock.left + stock.reserved),
        ("units reserved = in confirmed orders", stock.reserved, orders.units),
        ("money users began with = left + taken", money.opening, money.left + money.taken),
        ("money taken = totals of confirmed orders", money.taken, orders.money),
        ("deliveries = confirmed orders", parcels.deliveries, orders.confirmed),
        ("unfinished orders = none", orders.unfinished, 0),
    ];
    println!("   {:<44}{:>16}{:>16}{:>14}", "", "one book", "the other", "difference");
    for (what, one, other) in lines {
        let mark = if one == other { '✓' } else { '✗' };
        println!(" {mark} {what:<44}{one:>16}{other:>16}{:>14}", one - other);
    }
    match lines.iter().all(|(_, one, other)| one == other) {
        true => Ok(()),
        false => Err("the books do not balance".into()),
    }
}

async fn read<T: DeserializeOwned>(service: &str) -> Result<T> {
    Ok(reqwest::get(format!("{service}/books")).await?.error_for_status()?.json().await?)
}
