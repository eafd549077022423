//! Following an order to its end.

use crate::open::Shop;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::time::Duration;
use tokio::time::timeout;

async fn post(shop: &Shop, path: &str, user: u32, product: u32) -> Response {
    let wanted = json!({ "userId": user, "productId": product, "quantity": 1 });
    shop.http.post(format!("{}{path}", shop.urls["order"])).json(&wanted).send().await.unwrap()
}

pub async fn who_waits_is_answered_when_the_order_has_ended(shop: &Shop) {
    let at_once = post(shop, "/orders", 11, 1).await;
    assert_eq!(at_once.status(), StatusCode::ACCEPTED);
    let place = at_once.headers()["location"].to_str().unwrap().to_owned();
    let order: Value = at_once.json().await.unwrap();
    assert_eq!(place, format!("/orders/{}", order["id"].as_str().unwrap()));
    assert_eq!(shop.get("order", &format!("{place}?wait=30s")).await["state"], "CONFIRMED");

    let good = post(shop, "/orders?wait=30s", 11, 1).await;
    assert_eq!(good.status(), StatusCode::OK);
    assert_eq!(good.json::<Value>().await.unwrap()["state"], "CONFIRMED");
    let declined: Value = post(shop, "/orders?wait=30s", 2, 1).await.json().await.unwrap();
    assert_eq!((&declined["state"], &declined["reason"]), (&json!("CANCELLED"), &json!("payment declined")));

    let in_use = in_use(shop).await;
    let slow = post(shop, "/orders?wait=100ms", 11, 1).await;
    assert_eq!(slow.status(), StatusCode::ACCEPTED);
    let slow: Value = slow.json().await.unwrap();
    assert_eq!(slow["state"], "PENDING");
    for wait in ["31s", "-1", "long"] {
        let refused = post(shop, &format!("/orders?wait={wait}"), 11, 1).await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST, "{wait}");
    }
    in_use.close().await.unwrap();
    assert_eq!(shop.ended(&slow).await["state"], "CONFIRMED");
}

/// Somebody has the stock of product 1 in use: orders of it have to wait.
async fn in_use(shop: &Shop) -> PgConnection {
    let mut holder = PgConnection::connect(&shop.databases["inventory"]).await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT FROM stock WHERE product_id = 1 FOR UPDATE").execute(&mut holder).await.unwrap();
    holder
}

async fn events(shop: &Shop, order: &Value, heard: &str) -> Response {
    let url = format!("{}/orders/{}/events", shop.urls["order"], order["id"].as_str().unwrap());
    shop.http.get(url).header("Last-Event-ID", heard).send().await.unwrap()
}

/// Name, id and data of each event.
fn read(stream: &str) -> Vec<(String, String, Value)> {
    let event = |text: &str| {
        let field = |name: &str| {
            let lines = text.lines().find_map(|line| line.strip_prefix(name));
            lines.unwrap_or_default().trim().to_owned()
        };
        (field("event:"), field("id:"), serde_json::from_str(&field("data:")).unwrap())
    };
    stream.split("\n\n").filter(|text| text.contains("data:")).map(event).collect()
}

pub async fn each_change_of_an_order_is_told_until_its_end_and_none_twice(shop: &Shop) {
    let order = shop.order("followed", 10, 1, 1).await;
    let live = read(&events(shop, &order, "").await.text().await.unwrap());
    let (first, last) = (&live[0], live.last().unwrap());
    assert_eq!((first.0.as_str(), &first.2["id"]), ("order", &order["id"]));
    assert_eq!(
        (last.0.as_str(), &last.2["state"], &last.2["saga"]),
        ("ended", &json!("CONFIRMED"), &json!("Completed"))
    );
    let steps = &live[1..live.len() - 1];
    let ids: Vec<_> = steps.iter().map(|step| step.1.clone()).collect();
    assert_eq!(ids, (1..=steps.len()).map(|n| n.to_string()).collect::<Vec<_>>());
    for done in ["place-order", "reserve-stock", "charge-payment", "start-delivery", "confirm-order"] {
        let succeeded = |step: &&(String, String, Value)| {
            step.2["what"].as_str().unwrap().starts_with(&format!("{done} succeeded"))
        };
        assert_eq!(steps.iter().filter(succeeded).count(), 1, "{done}: {steps:?}");
    }

    // Later it is the same story, and who comes again hears the rest of it.
    let what = |events: &[(String, String, Value)]| {
        events.iter().map(|event| (event.1.clone(), event.2["what"].clone())).collect::<Vec<_>>()
    };
    let later = read(&events(shop, &order, "").await.text().await.unwrap());
    assert_eq!(what(&later), what(&live));
    let rest = read(&events(shop, &order, "2").await.text().await.unwrap());
    assert_eq!(what(&rest[1..]), what(&live[3..]));
    assert_eq!(events(shop, &order, "end").await.status(), StatusCode::NO_CONTENT);
    let unknown = events(shop, &json!({ "id": uuid::Uuid::nil().to_string() }), "").await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
}

pub async fn who_follows_or_waits_does_not_keep_a_shop_from_closing(shop: &mut Shop) {
    let _in_use = in_use(shop).await;
    let order = shop.order("followed", 10, 1, 1).await;
    let following = events(shop, &order, "").await;
    let waiting = tokio::spawn({
        let (http, url) = (shop.http.clone(), shop.urls["order"].clone());
        async move { http.get(format!("{url}/orders/{}?wait=30s", order["id"].as_str().unwrap())).send().await.unwrap() }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    shop.signal("order", "-TERM").await;
    let told = timeout(Duration::from_secs(60), following.text()).await.unwrap().unwrap();
    assert_eq!(read(&told)[0].2["state"], "PENDING");
    assert_eq!(waiting.await.unwrap().json::<Value>().await.unwrap()["state"], "PENDING");
    assert!(timeout(Duration::from_secs(60), shop.process.wait()).await.unwrap().unwrap().success());
}
