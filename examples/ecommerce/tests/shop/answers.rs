//! What every service answers: problems, health, and whether its books balance.

use crate::open::Shop;
use reqwest::{Method, StatusCode};
use serde_json::Value;

pub async fn every_no_is_a_problem(shop: Shop) {
    let known = uuid::Uuid::nil();
    let json = "application/json";
    let cases = [
        ("order", Method::GET, "/nowhere".to_owned(), json, "", 404),
        ("order", Method::GET, format!("/orders/{known}"), json, "", 404),
        ("order", Method::GET, format!("/orders/{known}/events"), json, "", 404),
        ("order", Method::GET, format!("/orders/{known}/history"), json, "", 404),
        ("order", Method::GET, "/orders/1".into(), json, "", 400),
        ("order", Method::GET, "/orders".into(), json, "", 400),
        ("order", Method::GET, "/orders?userId=x".into(), json, "", 400),
        ("order", Method::DELETE, "/orders".into(), json, "", 405),
        ("order", Method::POST, "/orders".into(), json, "{", 400),
        ("order", Method::POST, "/orders".into(), json, "[]", 422),
        ("order", Method::POST, "/orders".into(), "text/plain", "{}", 415),
        ("user", Method::GET, "/users/0".into(), json, "", 404),
        ("user", Method::GET, "/users/x".into(), json, "", 400),
        ("product", Method::GET, "/products/99".into(), json, "", 404),
        ("product", Method::POST, "/products".into(), json, "{}", 405),
        ("inventory", Method::GET, "/inventory/99".into(), json, "", 404),
        ("inventory", Method::POST, "/reservations".into(), json, "{}", 400),
        ("payment", Method::GET, "/accounts/0".into(), json, "", 404),
        ("delivery", Method::GET, "/deliveries".into(), json, "", 400),
        ("notification", Method::GET, "/notifications?userId=".into(), json, "", 400),
    ];
    for (service, method, path, kind, body, expected) in cases {
        let request = shop.http.request(method.clone(), format!("{}{path}", shop.urls[service]));
        let answer = request.header("content-type", kind).body(body).send().await.unwrap();
        let told = format!("{service}: {method} {path} {body}");
        assert_eq!(answer.status(), expected, "{told}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{told}");
        assert_eq!(answer.headers().contains_key("allow"), expected == 405, "{told}");
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["status"], expected, "{told}");
        assert!(!problem["title"].as_str().unwrap().is_empty(), "{told}: {problem}");
        assert!(!problem["detail"].as_str().unwrap().is_empty(), "{told}: {problem}");
    }
}

pub async fn each_service_says_how_it_is(shop: Shop) {
    for service in shop.urls.keys() {
        assert_eq!(shop.get(service, "/health/live").await["status"], "up");
        assert_eq!(shop.get(service, "/health/ready").await["status"], "up");
        assert_eq!(shop.get(service, "/consistency").await["balanced"], true, "{service}");
    }

    // Whose books were tampered with says so.
    shop.ended(&shop.order("k", 1, 1, 1).await).await;
    shop.assert_books_balance().await;
    shop.sql("inventory", "UPDATE stock SET quantity = quantity - 1 WHERE product_id = 1").await;
    shop.sql("payment", "UPDATE account SET balance = balance + 1 WHERE user_id = 1").await;
    shop.sql("order", "UPDATE orders SET total = total - 1").await;
    shop.sql("delivery", "INSERT INTO delivery (order_id, user_id) SELECT order_id, user_id FROM delivery").await;
    shop.sql("notification", "INSERT INTO notification (order_id, user_id, channel, message) SELECT order_id, user_id, channel, message FROM notification").await;
    for service in ["inventory", "payment", "order", "delivery", "notification"] {
        assert_eq!(shop.get(service, "/consistency").await["balanced"], false, "{service}");
    }

    // One whose database is gone lives, but is not ready.
    shop.sql(
        "order",
        "UPDATE pg_database SET datallowconn = false WHERE datname = 'ecommerce_user';
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'ecommerce_user'",
    )
    .await;
    let ready = shop.http.get(format!("{}/health/ready", shop.urls["user"])).send().await.unwrap();
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(shop.get("user", "/health/live").await["status"], "up");
}
