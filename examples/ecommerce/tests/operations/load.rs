//! The load run.

use crate::opened::{Shop, ecommerce};
use serde_json::Value;
use std::process::Output;

/// With the books at the services of this shop.
async fn load(shop: &Shop, at: &str, arguments: &[&str]) -> Output {
    let books = ["user", "order", "inventory", "payment", "delivery", "product", "notification"];
    let books = books.map(|service| format!("--{service}={}", shop.urls[service]));
    ecommerce().arg("load").arg(format!("--url={}", shop.urls[at])).args(books).args(arguments).output().await.unwrap()
}

#[tokio::test]
async fn a_load_run_counts_each_order_and_waits_for_the_last() {
    let shop = Shop::open(&[]).await;
    let run = load(&shop, "order", &["--users=10", "--ramp=1s", "--hold=3s", "--json"]).await;
    let errors = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success(), "{errors}");
    let told: Value = serde_json::from_slice(&run.stdout).unwrap();
    // One a second: a user comes within the first of the four, and goes after the last.
    assert_eq!(
        (&told["answers"], &told["failedChecks"], &told["unfinished"]),
        (&40.into(), &0.into(), &0.into()),
        "{told}"
    );
    assert_eq!((&told["states"]["CONFIRMED"], &told["booksBalance"]), (&40.into(), &true.into()), "{told}");
    for level in ["answerMs", "finalStateMs"] {
        let at = |share: &str| told[level][share].as_f64().unwrap();
        assert!(
            0.0 < at("p50") && at("p50") <= at("p95") && at("p95") <= at("p99") && at("p99") <= at("max"),
            "{told}"
        );
    }
    assert!(told["finalStateMs"]["p50"].as_f64() > told["answerMs"]["p50"].as_f64(), "{told}");
    assert!(errors.contains("10 users"), "{errors}");

    let again = load(&shop, "order", &["--users=3", "--ramp=0s", "--hold=2s"]).await;
    let told = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(again.status.success(), "{told}");
    assert!(told.contains("✓ money taken = totals of confirmed orders"), "{told}");
}

#[tokio::test]
async fn a_load_run_fails_if_answers_are_not_right_or_the_books_do_not_balance() {
    let shop = Shop::open(&[]).await;
    let nowhere = load(&shop, "payment", &["--users=2", "--ramp=0s", "--hold=1s"]).await;
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nowhere.stdout).contains("2 x 404 Not Found"), "{nowhere:?}");

    shop.sql("inventory", "UPDATE stock SET quantity = quantity - 1 WHERE product_id = 1").await;
    let unbalanced = load(&shop, "order", &["--users=2", "--ramp=0s", "--hold=1s"]).await;
    assert_eq!(unbalanced.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unbalanced.stdout).contains("✗ units delivered to us"), "{unbalanced:?}");
}
