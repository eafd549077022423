//! Services that are killed.

use crate::open::Shop;
use reqwest::StatusCode;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::process::Command;

pub async fn orders_survive_when_each_service_is_killed_while_they_are_under_way(shop: Shop) {
    shop.sql("inventory", "UPDATE stock SET quantity = 100, delivered = 100 WHERE product_id = 1").await;
    let mut orders = vec![];
    for victim in ["user", "inventory", "payment", "delivery", "product", "notification", "order"] {
        for _ in 0..10 {
            let buyer = u32::try_from(orders.len()).unwrap() + 3;
            orders.push(shop.order(&format!("buyer {buyer}"), buyer, 1, 1).await);
        }
        shop.signal(victim, "-9").await;
    }
    for order in &orders {
        let ended = shop.ended(order).await;
        // A service that was away for too long is a reason to turn back.
        assert!(ended["state"] == "CONFIRMED" || ended["state"] == "CANCELLED", "{ended}");
    }
    shop.assert_books_balance().await;
}

pub async fn services_end_with_a_shop_that_is_killed(mut shop: Shop) {
    shop.ended(&shop.order("k", 1, 1, 1).await).await;
    shop.process.kill().await.unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    for (service, process) in &shop.processes {
        loop {
            let state = Command::new("ps").args(["-o", "stat=", "-p", process]).output().await.unwrap();
            // Gone, or waiting for somebody to ask how it ended.
            if state.stdout.is_empty() || state.stdout.starts_with(b"Z") {
                break;
            }
            assert!(Instant::now() < patience, "{service} lives on");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

pub async fn a_product_service_that_does_not_answer_means_no_order(shop: Shop) {
    let wanted = json!({ "userId": 1, "productId": 1, "quantity": 1 });
    shop.signal("product", "-STOP").await;
    let (status, problem) = shop.post("order", "/orders", "k", wanted.clone()).await;
    shop.signal("product", "-CONT").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{problem}");
    assert_eq!(shop.get("order", "/orders?userId=1").await, json!([]));
    assert_eq!(shop.get("order", "/consistency").await["unfinished"], 0);
    // The key was not used.
    let (status, order) = shop.post("order", "/orders?wait=30s", "k", wanted).await;
    assert_eq!((status, &order["state"]), (StatusCode::OK, &json!("CONFIRMED")));
    shop.assert_books_balance().await;
}

pub async fn a_user_service_that_does_not_answer_holds_up_nobody(shop: Shop) {
    shop.sql("inventory", "UPDATE stock SET quantity = 100, delivered = 100 WHERE product_id = 1").await;
    assert_eq!(shop.order("before", 1, 1, 1).await["userChecked"], true);
    shop.signal("user", "-STOP").await;
    // Enough of them that the circuit breaker opens.
    let meanwhile = futures::future::join_all((3..23).map(|buyer| {
        let shop = &shop;
        async move { shop.order(&format!("buyer {buyer}"), buyer, 1, 1).await }
    }));
    let meanwhile = meanwhile.await;
    assert!(meanwhile.iter().all(|order| order["userChecked"] == false), "{meanwhile:?}");
    shop.signal("user", "-CONT").await;
    let patience = Instant::now() + Duration::from_secs(60);
    let mut n = 0;
    while shop.order(&format!("after {n}"), 1, 3, 1).await["userChecked"] == false {
        assert!(Instant::now() < patience, "the circuit breaker closes again");
        n += 1;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for order in &meanwhile {
        assert_eq!(shop.ended(order).await["state"], "CONFIRMED");
    }
}
