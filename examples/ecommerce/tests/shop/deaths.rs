//! Services that are killed.

use crate::open::Shop;
use futures::{StreamExt, stream};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use tokio::{process::Command, time::sleep};

/// For each death. `ORDERS=200` is the run for those who doubt; CI makes do with less.
fn orders() -> usize {
    std::env::var("ORDERS").map_or(40, |orders| orders.parse().unwrap())
}

/// Each service in turn is killed (`kill -9`) in the middle of some orders, and comes back.
pub async fn orders_survive_when_each_service_is_killed_while_they_are_under_way(shop: &Shop) {
    let (orders, http) = (orders(), Client::new());
    let placed_in_all = async || {
        let found = shop.get("order", "/consistency").await;
        ["unfinished", "confirmed", "cancelled"].map(|state| found[state].as_u64().unwrap()).iter().sum::<u64>()
    };
    let before = placed_in_all().await;
    let victims = ["user", "inventory", "payment", "delivery", "product", "notification", "order", "gateway"];
    for victim in victims {
        let began = Instant::now();
        // Who has a token orders for themselves.
        let (door, one) = if victim == "gateway" { (&shop.gateway, true) } else { (&shop.urls["order"], false) };
        let user = |n| if one { 1 } else { n % 98 + 3 };
        let mut placing = stream::iter(0..orders)
            .map(|n| place(&http, door, &shop.buyer, format!("{victim} {n}"), user(n)))
            .buffer_unordered(20);
        let mut placed = vec![];
        while let Some(order) = placing.next().await {
            placed.push(order);
            if placed.len() == orders / 2 {
                shop.signal(victim, "-9").await;
            }
        }
        let answered = began.elapsed();
        let mut states = BTreeMap::new();
        for order in &placed {
            let state = shop.ended(order).await["state"].as_str().unwrap().to_owned();
            *states.entry(state).or_insert(0) += 1;
        }
        // A service that was away for too long is a reason to turn back.
        let known = |state: &String| ["CONFIRMED", "CANCELLED"].contains(&state.as_str());
        assert!(states.keys().all(known), "{victim}: {states:?}");
        let different: BTreeSet<_> = placed.iter().map(|order| order["id"].to_string()).collect();
        assert_eq!(different.len(), orders, "{victim}");
        let ended = began.elapsed();
        shop.assert_books_balance().await;
        for service in shop.urls.keys() {
            let consistency = shop.get(service, "/consistency").await;
            assert_eq!(consistency["balanced"], true, "{victim} was killed; {service}: {consistency}");
        }
        println!("{victim}: {orders} orders {states:?}; placed after {answered:.1?}, ended after {ended:.1?}");
    }
    assert_eq!(placed_in_all().await, before + (orders * victims.len()) as u64);
}

/// As a customer does who does not give up: with the same key until there is an answer.
async fn place(http: &Client, door: &str, token: &str, key: String, user: usize) -> Value {
    let wanted = json!({ "userId": user, "productId": 1000, "quantity": 1 });
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let request = http.post(format!("{door}/orders")).header("Idempotency-Key", &key);
        let request = request.bearer_auth(token).json(&wanted);
        if let Ok(answer) = request.send().await {
            match answer.status() {
                StatusCode::ACCEPTED => {
                    // It may die while it answers.
                    if let Ok(order) = answer.json().await {
                        return order;
                    }
                }
                status => assert!(status.is_server_error(), "{status}"),
            }
        }
        assert!(Instant::now() < patience, "{key} is not taken");
        sleep(Duration::from_millis(50)).await;
    }
}

pub async fn services_end_with_a_shop_that_is_killed(shop: &mut Shop) {
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
            sleep(Duration::from_millis(50)).await;
        }
    }
}

pub async fn a_product_service_that_does_not_answer_means_no_order(shop: &Shop) {
    let wanted = json!({ "userId": 14, "productId": 1, "quantity": 1 });
    shop.freeze("product").await;
    let (status, problem) = shop.post("order", "/orders", "no product", wanted.clone()).await;
    shop.thaw("product").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{problem}");
    assert_eq!(shop.get("order", "/orders?userId=14").await, json!([]));
    assert_eq!(shop.get("order", "/consistency").await["unfinished"], 0);
    // The key was not used.
    let (status, order) = shop.post("order", "/orders?wait=30s", "no product", wanted).await;
    assert_eq!((status, &order["state"]), (StatusCode::OK, &json!("CONFIRMED")));
    shop.assert_books_balance().await;
}

pub async fn a_user_service_that_does_not_answer_holds_up_nobody(shop: &Shop) {
    shop.sql(
        "inventory",
        "UPDATE stock SET quantity = quantity + 100, delivered = delivered + 100 WHERE product_id = 1",
    )
    .await;
    assert_eq!(shop.order("before", 1, 1, 1).await["userChecked"], true);
    shop.freeze("user").await;
    // Enough of them that the circuit breaker opens.
    let meanwhile = futures::future::join_all((3..23).map(|buyer| {
        let shop = &shop;
        async move { shop.order(&format!("meanwhile {buyer}"), buyer, 1, 1).await }
    }));
    let meanwhile = meanwhile.await;
    assert!(meanwhile.iter().all(|order| order["userChecked"] == false), "{meanwhile:?}");
    shop.thaw("user").await;
    let patience = Instant::now() + Duration::from_secs(60);
    let mut n = 0;
    while shop.order(&format!("after {n}"), 1, 3, 1).await["userChecked"] == false {
        assert!(Instant::now() < patience, "the circuit breaker closes again");
        n += 1;
        sleep(Duration::from_millis(500)).await;
    }
    for order in &meanwhile {
        assert_eq!(shop.ended(order).await["state"], "CONFIRMED");
    }
}
