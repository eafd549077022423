//! Participants over HTTP, asked twice, late, or to undo what was not done.

use crate::open::{Shop, key_of};
use reqwest::StatusCode;
use serde_json::json;

pub async fn the_barrier_makes_repeated_late_and_early_commands_harmless(shop: &Shop) {
    // twice
    let first = shop.reserve("twice", 2).await;
    assert_eq!(first, (StatusCode::OK, json!({ "units": 2 })));
    assert_eq!(shop.reserve("twice", 2).await, first);
    assert_eq!(shop.stock(1).await, 3);

    // undone twice, then late
    shop.release("twice").await;
    shop.release("twice").await;
    assert_eq!(shop.stock(1).await, 5);
    assert_eq!(shop.reserve("twice", 2).await, first);
    assert_eq!(shop.stock(1).await, 5);

    // the undo first
    shop.release("undo first").await;
    let (status, problem) = shop.reserve("undo first", 1).await;
    assert_eq!((status, &problem["detail"]), (StatusCode::CONFLICT, &json!("it was undone before it came")));
    shop.release("undo first").await;
    assert_eq!(shop.stock(1).await, 5);

    // a refusal is final for its key, even when there is stock again; to undo it changes nothing
    assert_eq!(shop.reserve("too much", 6).await.1["detail"], "out of stock");
    shop.sql("inventory", "UPDATE stock SET quantity = 10, delivered = 10 WHERE product_id = 1").await;
    assert_eq!(shop.reserve("too much", 6).await.1["detail"], "out of stock");
    shop.release("too much").await;
    assert_eq!(shop.stock(1).await, 10);

    // two (and more) at once
    let at_once = futures::future::join_all((0..20).map(|_| shop.reserve("at once", 3))).await;
    assert!(at_once.iter().all(|answer| *answer == (StatusCode::OK, json!({ "units": 3 }))), "{at_once:?}");
    assert_eq!(shop.stock(1).await, 7);

    // a command and its undo at once: whoever is first, nothing is left
    for round in 0..20 {
        let key = format!("race {round}");
        tokio::join!(shop.reserve(&key, 1), shop.release(&key));
        assert_eq!(shop.stock(1).await, 7);
    }
}

pub async fn the_barrier_stands_before_payment_and_delivery_as_well(shop: &Shop) {
    let charge = json!({ "userId": 1, "amount": 5, "currency": "KRW" });
    let parcel = json!({ "userId": 1 });
    let key = key_of("order");
    for _ in 0..2 {
        assert_eq!(
            shop.post("payment", "/payments", &key, charge.clone()).await.1,
            json!({ "amount": 5, "currency": "KRW" })
        );
        assert_eq!(shop.post("delivery", "/deliveries", &key, parcel.clone()).await.1, json!({ "delivery": 1 }));
    }
    assert_eq!(shop.get("payment", "/consistency").await["taken"], 5);
    assert_eq!(shop.get("delivery", "/consistency").await["deliveries"], 1);
}

pub async fn a_key_that_names_no_step_is_a_bad_request(shop: &Shop) {
    let wanted = json!({ "productId": 1, "quantity": 1 });
    let saga = uuid::Uuid::nil();
    let stock = shop.stock(1).await;
    for key in [
        "",
        "k",
        "k/step",
        &format!("{saga}"),
        &format!("{saga}/"),
        &format!("{saga}/step/x"),
        &format!("{saga}/step/1/2"),
    ] {
        let (status, problem) = shop.post("inventory", "/reservations", key, wanted.clone()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{key}: {problem}");
    }
    assert_eq!(shop.stock(1).await, stock);
    let (status, _) = shop.post("inventory", "/reservations", &format!("{saga}/step/1"), wanted).await;
    assert_eq!((status, shop.stock(1).await), (StatusCode::OK, json!(stock.as_i64().unwrap() - 1)));
}

pub async fn what_an_order_asked_for_is_found_in_the_inbox_by_its_key_over_http_as_well(shop: &Shop) {
    let stock = shop.stock(1).await.as_i64().unwrap();
    let order = shop.ended(&shop.order("inbox", 12, 1, 2).await).await;
    assert_eq!((&order["state"], shop.stock(1).await), (&json!("CONFIRMED"), json!(stock - 2)));
    let key = format!("{}/reserve-stock", order["id"].as_str().unwrap());
    let wanted = json!({ "productId": 1, "quantity": 2 });
    let again = shop.post("inventory", "/reservations", &key, wanted).await;
    assert_eq!(again, (StatusCode::OK, json!({ "units": 2 })));
    assert_eq!(shop.stock(1).await, stock - 2);
    let undone = shop.post("inventory", "/reservations/release", &key, json!({})).await;
    assert_eq!((undone.0, shop.stock(1).await), (StatusCode::OK, json!(stock)));
}
