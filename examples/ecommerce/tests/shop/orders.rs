//! Orders, and what becomes of them.

use crate::open::Shop;
use reqwest::{StatusCode, header::HeaderValue};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// Stock of product 1, for the next test.
async fn more(shop: &Shop) -> i64 {
    let more = "UPDATE stock SET quantity = quantity + 10, delivered = delivered + 10 WHERE product_id = 1";
    shop.sql("inventory", more).await;
    shop.stock(1).await.as_i64().unwrap()
}

pub async fn one_of_a_hundred_buyers_gets_the_last_item_ten_times_over(shop: &Shop) {
    let before = shop.get("payment", "/consistency").await["taken"].as_i64().unwrap();
    for round in 1..=10 {
        if round > 1 {
            shop.sql("inventory", "UPDATE stock SET quantity = 1, delivered = delivered + 1 WHERE product_id = 2")
                .await;
        }
        let buyers = (0..100).map(|buyer| {
            let key = format!("round {round} buyer {buyer}");
            async move { shop.order(&key, 1001 + buyer, 2, 1).await }
        });
        let mut orders = vec![];
        // One is asked for at a time, so that the shop is busy with orders, not with questions.
        for order in futures::future::join_all(buyers).await {
            orders.push(shop.ended(&order).await);
        }
        let confirmed = orders.iter().filter(|order| order["state"] == "CONFIRMED").count();
        let sold_out =
            orders.iter().filter(|order| order["state"] == "CANCELLED" && order["reason"] == "out of stock").count();
        let reasons = || orders.iter().map(|order| &order["reason"]).collect::<Vec<_>>();
        assert_eq!((confirmed, sold_out), (1, 99), "round {round}: {:?}", reasons());
        assert_eq!(shop.stock(2).await, 0);
        assert_eq!(shop.get("payment", "/consistency").await["taken"], before + 90_000 * round);
    }
    shop.assert_books_balance().await;
}

pub async fn an_order_is_placed_once_for_each_key_at_the_shops_price(shop: &Shop) {
    let stock = more(shop).await;
    let wanted = json!({ "userId": 4, "productId": 1, "quantity": 1, "price": 1 });
    let (status, order) = shop.post("order", "/orders", "once", wanted.clone()).await;
    assert_eq!((status, &order["total"]), (StatusCode::ACCEPTED, &json!(3_500_000)));
    let again = futures::future::join_all((0..10).map(|_| shop.post("order", "/orders", "once", wanted.clone()))).await;
    assert!(
        again.iter().all(|(status, same)| *status == StatusCode::ACCEPTED && same["id"] == order["id"]),
        "{again:?}"
    );
    let other = json!({ "userId": 4, "productId": 1, "quantity": 2 });
    assert_eq!(shop.post("order", "/orders", "once", other).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    let unknown = json!({ "userId": 4, "productId": 99, "quantity": 1 });
    assert_eq!(shop.post("order", "/orders", "unknown", unknown).await.0, StatusCode::UNPROCESSABLE_ENTITY);

    assert_eq!(shop.ended(&order).await["state"], "CONFIRMED");
    let too_many = shop.ended(&shop.order("too many", 4, 1, 999).await).await;
    assert_eq!((&too_many["state"], &too_many["reason"]), (&json!("CANCELLED"), &json!("out of stock")));
    assert_eq!(shop.stock(1).await, stock - 1);
    assert_eq!(shop.get("order", "/orders?userId=4").await.as_array().unwrap().len(), 2);
    shop.assert_books_balance().await;
}

pub async fn a_customer_is_told_once_what_becomes_of_an_order(shop: &Shop) {
    more(shop).await;
    let confirmed = shop.ended(&shop.order("told", 5, 1, 1).await).await;
    let cancelled = shop.ended(&shop.order("not told", 5, 1, 999).await).await;
    // Waits until the last one is told.
    shop.assert_books_balance().await;
    let told = shop.get("notification", "/notifications?userId=5").await;
    let of = |order: &Value| -> BTreeSet<String> {
        let of_order = told.as_array().unwrap().iter().filter(|each| each["orderId"] == order["id"]);
        of_order.map(|each| format!("{}: {}", each["channel"], each["message"]).replace('"', "")).collect()
    };
    let begins = "MAIL: We have your order.";
    let well = [begins, "SMS: Your order is on its way.", "SMS: Your order has arrived."];
    assert_eq!(of(&confirmed), well.map(String::from).into());
    assert_eq!(of(&cancelled), [begins, "MAIL: Your order was cancelled."].map(String::from).into());
    assert_eq!(told.as_array().unwrap().len(), 5);
    let delivered = shop.get("delivery", "/deliveries?userId=5").await;
    assert_eq!((&delivered[0]["orderId"], &delivered[0]["state"]), (&confirmed["id"], &json!("COMPLETED")));
    assert_eq!(delivered.as_array().unwrap().len(), 1);
}

pub async fn books_that_do_not_balance_exit_with_an_error(shop: &Shop) {
    more(shop).await;
    shop.ended(&shop.order("books", 6, 1, 1).await).await;
    shop.assert_books_balance().await;
    shop.sql("inventory", "UPDATE stock SET quantity = quantity + 1 WHERE product_id = 1").await;
    let books = shop.books().await;
    assert_eq!(books.status.code(), Some(1));
    assert!(String::from_utf8(books.stdout).unwrap().contains("✗ units delivered to us"));
    assert!(String::from_utf8(books.stderr).unwrap().contains("the books do not balance"));
    shop.sql("inventory", "UPDATE stock SET quantity = quantity - 1 WHERE product_id = 1").await;
    shop.assert_books_balance().await;
}

pub async fn an_order_keeps_the_name_and_the_price_of_its_day(shop: &Shop) {
    more(shop).await;
    let before = shop.order("before", 7, 1, 1).await;
    shop.sql("product", "UPDATE product SET price = 3600000, name = 'MacBook Pro 17' WHERE id = 1").await;
    let after = shop.order("after", 7, 1, 2).await;
    let known = |order: &Value| [&order["product"], &order["unitPrice"], &order["total"]].map(Value::to_string);
    assert_eq!(known(&shop.ended(&before).await), ["\"MacBook Pro 16\"", "3500000", "3500000"]);
    assert_eq!(known(&shop.ended(&after).await), ["\"MacBook Pro 17\"", "3600000", "7200000"]);
    assert_eq!(shop.get("payment", "/accounts/7").await["balance"], 20_000_000 - 3_500_000 - 7_200_000);
    shop.assert_books_balance().await;
    shop.sql("product", "UPDATE product SET price = 3500000, name = 'MacBook Pro 16' WHERE id = 1").await;
}

pub async fn an_order_that_makes_no_sense_is_refused_and_leaves_nothing(shop: &Shop) {
    shop.sql("product", "INSERT INTO product VALUES (9, 'The moon', 9223372036854775807, 'KRW', 'art')").await;
    let refused = [
        (json!({ "userId": 101, "productId": 1, "quantity": 1 }), "this user is blocked"),
        (json!({ "userId": 9999, "productId": 1, "quantity": 1 }), "there is no such user"),
        (json!({ "userId": 1, "productId": 99, "quantity": 1 }), "there is no such product"),
        (json!({ "userId": 1, "productId": -1, "quantity": 1 }), "there is no such product"),
        (json!({ "userId": 1, "productId": 1, "quantity": 0 }), "the quantity is 1 to 1000"),
        (json!({ "userId": 1, "productId": 1, "quantity": -5 }), "the quantity is 1 to 1000"),
        (json!({ "userId": 1, "productId": 1, "quantity": 1001 }), "the quantity is 1 to 1000"),
        (json!({ "userId": 1, "productId": 1, "quantity": i64::MAX }), "the quantity is 1 to 1000"),
        (json!({ "userId": 1, "productId": 1, "quantity": u64::MAX }), "quantity"),
        (json!({ "userId": 1, "productId": 1, "quantity": 1.5 }), "quantity"),
        (json!({ "userId": 1, "productId": 1, "quantity": "1" }), "quantity"),
        (json!({ "userId": "1; DROP TABLE orders", "productId": 1, "quantity": 1 }), "userId"),
        (json!({ "userId": 1, "quantity": 1 }), "productId"),
        (json!({ "userId": 1, "productId": 9, "quantity": 2 }), "that is more than can be paid"),
    ];
    for (wanted, because) in refused {
        let (status, problem) = shop.post("order", "/orders", &wanted.to_string(), wanted.clone()).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{wanted}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(because), "{wanted}: {problem}");
    }
    assert_eq!(shop.get("order", "/consistency").await["unfinished"], 0);
    assert_eq!(shop.get("order", "/orders?userId=1").await, json!([]));
    shop.assert_books_balance().await;
}

pub async fn a_repeat_is_answered_whatever_changed_meanwhile(shop: &Shop) {
    let order = shop.ended(&shop.order("repeat", 8, 3, 1).await).await;
    let wanted = json!({ "userId": 8, "productId": 3, "quantity": 1 });
    shop.sql("product", "UPDATE product SET price = price + 1 WHERE id = 3").await;
    assert_eq!(shop.post("order", "/orders", "repeat", wanted.clone()).await, (StatusCode::ACCEPTED, order.clone()));
    let another = json!({ "userId": 8, "productId": 3, "quantity": 2 });
    let (status, problem) = shop.post("order", "/orders", "repeat", another).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("another order's"), "{problem}");
    shop.sql("user", "UPDATE users SET state = 'BLOCKED' WHERE id = 8").await;
    shop.sql("product", "DELETE FROM product WHERE id = 3").await;
    assert_eq!(shop.post("order", "/orders", "repeat", wanted.clone()).await, (StatusCode::ACCEPTED, order));
    let (status, _) = shop.post("order", "/orders", "no repeat", wanted).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
}

pub async fn products_are_listed_by_category_too(shop: &Shop) {
    let first =
        json!({ "id": 1, "name": "MacBook Pro 16", "price": 3_500_000, "currency": "KRW", "category": "computers" });
    assert_eq!(shop.get("product", "/products/1").await, first);
    let ids = async |path| {
        let found = shop.get("product", path).await;
        found.as_array().unwrap().iter().map(|product| product["id"].as_i64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(ids("/products").await, [1, 2, 3, 1000]);
    assert_eq!(ids("/products?category=computers").await, [1, 3]);
    assert!(ids("/products?category=none").await.is_empty());
    let user = json!({ "id": 101, "name": "Eve", "email": "eve@example.com", "state": "BLOCKED" });
    assert_eq!(shop.get("user", "/users/101").await, user);
}

pub async fn a_key_that_cannot_be_read_orders_nothing(shop: &Shop) {
    let long = "k".repeat(256);
    for keys in [vec![""], vec!["schlüssel"], vec![long.as_str()], vec!["one", "two"]] {
        let mut request = shop.http.post(format!("{}/orders", shop.urls["order"]));
        for key in &keys {
            request = request.header("Idempotency-Key", HeaderValue::from_bytes(key.as_bytes()).unwrap());
        }
        let wanted = json!({ "userId": 1, "productId": 1, "quantity": 1 });
        let answer = request.json(&wanted).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{keys:?}");
    }
    assert_eq!(shop.get("order", "/orders?userId=1").await, json!([]));
}

pub async fn an_order_is_placed_though_the_customer_has_hung_up(shop: &Shop) {
    more(shop).await;
    let mut holder = PgConnection::connect(&shop.databases["order"]).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE orders").execute(&mut holder).await.unwrap();
    let wanted = json!({ "userId": 9, "productId": 1, "quantity": 1 });
    let request = shop.http.post(format!("{}/orders", shop.urls["order"])).json(&wanted);
    let hung_up = tokio::spawn(request.send());
    let waits =
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')";
    while !sqlx::query_scalar::<_, bool>(waits).fetch_one(&mut holder).await.unwrap() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    hung_up.abort();
    assert!(hung_up.await.unwrap_err().is_cancelled());
    // The service has noticed by now, or never does; the order is placed either way.
    tokio::time::sleep(Duration::from_millis(200)).await;
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    let placed = loop {
        match shop.get("order", "/orders?userId=9").await.as_array().unwrap().as_slice() {
            [] => assert!(Instant::now() < patience, "it was not placed"),
            [order] => break order.clone(),
            more => panic!("placed more than once: {more:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(shop.ended(&placed).await["state"], "CONFIRMED");
    shop.assert_books_balance().await;
}
