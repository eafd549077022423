//! What every service answers: problems, health, and whether its books balance.

use crate::open::Shop;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::collections::HashMap;

pub async fn every_no_is_a_problem(shop: &Shop) {
    let known = uuid::Uuid::nil();
    let json = "application/json";
    let cases = [
        ("order", Method::GET, "/nowhere".to_owned(), json, "", 404),
        ("order", Method::GET, format!("/orders/{known}"), json, "", 404),
        ("order", Method::GET, format!("/orders/{known}/events"), json, "", 404),
        ("order", Method::GET, format!("/orders/{known}/history"), json, "", 404),
        ("order", Method::GET, format!("/orders/{known}/picture"), json, "", 404),
        ("order", Method::GET, format!("/orders/{known}/picture?as=x"), json, "", 400),
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

pub async fn a_key_is_its_users_own(shop: &Shop) {
    let wanted = |user: u32| json!({ "userId": user, "productId": 1000, "quantity": user });
    let (status, first) = shop.post("order", "/orders", "k", wanted(91)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{first}");
    let (status, second) = shop.post("order", "/orders", "k", wanted(93)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{second}");
    assert_ne!(first["id"], second["id"]);
    assert_eq!((&second["userId"], &second["quantity"]), (&json!(93), &json!(93)));
    // Nor does a key reach another user's by what it says.
    let (_, third) = shop.post("order", "/orders", "91/k", wanted(94)).await;
    assert_ne!(first["id"], third["id"]);
    for (user, order) in [(91, &first), (93, &second)] {
        assert_eq!(shop.post("order", "/orders", "k", wanted(user)).await.1["id"], order["id"]);
        assert_eq!(shop.get("order", &format!("/orders?userId={user}")).await.as_array().unwrap().len(), 1);
        shop.ended(order).await;
    }
    shop.ended(&third).await;
    shop.assert_books_balance().await;
}

pub async fn each_service_says_how_it_is(shop: &Shop) {
    for service in shop.urls.keys() {
        assert_eq!(shop.get(service, "/health/live").await["status"], "up");
        assert_eq!(shop.get(service, "/health/ready").await["status"], "up");
        assert_eq!(shop.get(service, "/consistency").await["balanced"], true, "{service}");
    }

    // Whose books were tampered with says so.
    shop.ended(&shop.order("health", 13, 1, 1).await).await;
    shop.assert_books_balance().await;
    shop.sql("inventory", "UPDATE stock SET quantity = quantity - 1 WHERE product_id = 1").await;
    shop.sql("payment", "UPDATE account SET balance = balance + 1 WHERE user_id = 13").await;
    shop.sql("order", "UPDATE orders SET total = total - 1").await;
    shop.sql("delivery", "INSERT INTO delivery (order_id, user_id) SELECT order_id, user_id FROM delivery").await;
    shop.sql("notification", "INSERT INTO notification (order_id, user_id, channel, message) SELECT order_id, user_id, channel, message FROM notification").await;
    for service in ["inventory", "payment", "order", "delivery", "notification"] {
        assert_eq!(shop.get(service, "/consistency").await["balanced"], false, "{service}");
    }

    // One whose database is gone lives, but is not ready.
    let (_, gone) = shop.databases["user"].rsplit_once('/').unwrap();
    let mut other = PgConnection::connect(&shop.databases["order"]).await.unwrap();
    let close = "UPDATE pg_database SET datallowconn = false WHERE datname = $1";
    sqlx::query(close).bind(gone).execute(&mut other).await.unwrap();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
    sqlx::query(end).bind(gone).execute(&mut other).await.unwrap();
    let ready = shop.http.get(format!("{}/health/ready", shop.urls["user"])).send().await.unwrap();
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(shop.get("user", "/health/live").await["status"], "up");
}

pub async fn each_service_answers_as_its_document_says(shop: &Shop) {
    let order = shop.ended(&shop.order("document", 1, 1, 1).await).await;
    let id = order["id"].as_str().unwrap();
    for (service, url) in &shop.urls {
        let document = shop.get(service, "/openapi.json").await;
        assert_eq!(document["openapi"], "3.1.0");
        for (path, methods) in document["paths"].as_object().unwrap() {
            let id = if service == "order" { id } else { "1" };
            let place = path.replace("{id}", id).replace("{product}", "1").replace("{user}", "1");
            for (method, operation) in methods.as_object().unwrap() {
                let told = format!("{service}: {method} {path}");
                let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
                // What it is for, and what it refuses.
                for query in ["?userId=1", ""] {
                    let request = shop.http.request(method.clone(), format!("{url}{place}{query}"));
                    let answer = request.header("content-type", "application/json").body("{}").send().await.unwrap();
                    let status = answer.status();
                    assert!(
                        status.is_success() || method != Method::GET || query.is_empty(),
                        "{told} answers {status}"
                    );
                    let described = match &operation["responses"][status.as_str()] {
                        reference if reference["$ref"].is_string() => &document["components"]["responses"]["Problem"],
                        described => described,
                    };
                    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
                    let schema = &described["content"][kind.split(';').next().unwrap()]["schema"];
                    assert!(schema.is_object(), "{told} answers {status}, {kind}");
                    if kind.ends_with("json") {
                        assert_is(&document, schema, &answer.json().await.unwrap(), &told);
                    }
                }
            }
        }
    }
}

/// An object has the fields that the document says, and no others.
fn assert_is(document: &Value, schema: &Value, value: &Value, told: &str) {
    let fields = fields(document, schema);
    match value {
        Value::Array(items) => items.iter().for_each(|item| assert_is(document, &schema["items"], item, told)),
        Value::Object(found) => {
            let unknown: Vec<_> = found.keys().filter(|name| !fields.contains_key(*name)).collect();
            assert!(unknown.is_empty(), "{told} says {unknown:?} besides");
            let missing: Vec<_> =
                fields.iter().filter(|(name, required)| **required && !found.contains_key(*name)).collect();
            assert!(missing.is_empty(), "{told} does not say {missing:?}");
        }
        _ => {}
    }
}

/// The fields that a schema says, and whether they are required.
fn fields(document: &Value, schema: &Value) -> HashMap<String, bool> {
    if let Some(place) = schema["$ref"].as_str() {
        return fields(document, document.pointer(place.trim_start_matches('#')).unwrap());
    }
    let parts = schema["allOf"].as_array().into_iter().flatten().flat_map(|part| fields(document, part));
    let required = |name: &String| schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
    let own = schema["properties"].as_object().into_iter().flatten().map(|(name, _)| (name.clone(), required(name)));
    parts.chain(own).collect()
}
