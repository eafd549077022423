//! The shop as its customers see it: over HTTP, and as the program's exit code.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends there")]

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::{
    collections::HashMap,
    process::{Output, Stdio},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

const ECOMMERCE: &str = env!("CARGO_BIN_EXE_ecommerce");

/// With a Postgres and a broker of its own, which end with it.
fn ecommerce() -> Command {
    let mut command = Command::new(ECOMMERCE);
    command.env_remove("DATABASE_URL").env_remove("KAFKA_BROKERS").kill_on_drop(true);
    command
}

/// With the broker in `KAFKA_BROKERS`, else with a real one that is started for it.
fn ecommerce_on_a_real_broker() -> Command {
    let mut command = match std::env::var("KAFKA_BROKERS") {
        Ok(_) => Command::new(ECOMMERCE),
        Err(_) => {
            let mut command = Command::new("bash");
            command.args([concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/kafka"), "run", "--", ECOMMERCE]);
            command
        }
    };
    command.env_remove("DATABASE_URL").kill_on_drop(true);
    command
}

/// Runs each of these tests with commands over HTTP, and over Kafka on the embedded broker.
macro_rules! for_both_transports {
    ($($name:ident)*) => {
        mod over_http {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Shop::open("http").await).await;
            })*
        }
        mod over_kafka {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Shop::open("kafka").await).await;
            })*
        }
    };
}

for_both_transports! {
    the_barrier_makes_repeated_late_and_early_commands_harmless
    the_barrier_stands_before_payment_and_delivery_as_well
    a_key_that_names_no_step_is_a_bad_request
    what_an_order_asked_for_is_found_in_the_inbox_by_its_key_over_http_as_well
    one_of_a_hundred_buyers_gets_the_last_item
    orders_survive_when_each_service_is_killed_while_they_are_under_way
    an_order_is_placed_once_for_each_key_at_the_shops_price
    a_customer_is_told_once_what_became_of_an_order
    books_that_do_not_balance_exit_with_an_error
    services_end_with_a_shop_that_is_killed
}

/// `ecommerce serve`, on free ports.
struct Shop {
    process: Child,
    http: Client,
    urls: HashMap<String, String>,
    processes: HashMap<String, String>,
    databases: HashMap<String, String>,
}

impl Shop {
    async fn open(transport: &str) -> Self {
        let mut serve = ecommerce();
        // It is killed at the end of the test, and its Postgres with it: the services may complain, but not here.
        serve
            .args(["serve", "--transport", transport, "--port-base", "0"])
            .env("RUST_LOG", "off")
            .stdout(Stdio::piped());
        let mut process = serve.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (mut urls, mut processes, mut databases) = (HashMap::new(), HashMap::new(), HashMap::new());
        while urls.len() < 5 {
            let line = lines.next_line().await.unwrap().expect("the shop opens");
            if let [name, url, _, process, database] = *line.split_whitespace().collect::<Vec<_>>()
                && url.starts_with("http://")
            {
                urls.insert(name.to_owned(), url.to_owned());
                processes.insert(name.to_owned(), process.to_owned());
                databases.insert(name.to_owned(), database.to_owned());
            }
        }
        // Somebody has to read what it says.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { process, http: Client::new(), urls, processes, databases }
    }

    async fn get(&self, service: &str, path: &str) -> Value {
        let answer = self.http.get(format!("{}{path}", self.urls[service])).send().await.unwrap();
        answer.error_for_status().unwrap().json().await.unwrap()
    }

    async fn post(&self, service: &str, path: &str, key: &str, body: Value) -> (StatusCode, Value) {
        let request = self.http.post(format!("{}{path}", self.urls[service])).header("Idempotency-Key", key);
        let answer = request.json(&body).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    async fn order(&self, key: &str, user: u32, product: u32, quantity: u32) -> Value {
        let wanted = json!({ "userId": user, "productId": product, "quantity": quantity });
        let (status, order) = self.post("order", "/orders", key, wanted).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{order}");
        order
    }

    async fn ended(&self, order: &Value) -> Value {
        let path = format!("/orders/{}", order["id"].as_str().unwrap());
        let patience = Instant::now() + Duration::from_secs(120);
        loop {
            // It may be away for a while.
            if let Ok(found) = self.http.get(format!("{}{path}", self.urls["order"])).send().await
                && let Ok(order) = found.json::<Value>().await
                && (order["saga"] == "Completed" || order["saga"] == "RolledBack")
            {
                return order;
            }
            assert!(Instant::now() < patience, "the order has not ended: {order}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn reserve(&self, order: &str, quantity: u32) -> (StatusCode, Value) {
        let wanted = json!({ "productId": 1, "quantity": quantity });
        self.post("inventory", "/reservations", &key_of(order), wanted).await
    }

    async fn release(&self, order: &str) {
        let (status, _) = self.post("inventory", "/reservations/release", &key_of(order), json!({})).await;
        assert_eq!(status, StatusCode::OK);
    }

    async fn stock(&self, product: u32) -> Value {
        self.get("inventory", &format!("/inventory/{product}")).await["quantity"].take()
    }

    async fn sql(&self, service: &str, sql: &'static str) {
        let mut database = PgConnection::connect(&self.databases[service]).await.unwrap();
        sqlx::raw_sql(sql).execute(&mut database).await.unwrap();
    }

    async fn books(&self) -> Output {
        let urls = self.urls.iter().flat_map(|(name, url)| [format!("--{name}"), url.clone()]);
        ecommerce().arg("books").args(urls).output().await.unwrap()
    }

    async fn assert_books_balance(&self) {
        let books = self.books().await;
        assert!(books.status.success(), "{}", String::from_utf8_lossy(&books.stdout));
    }
}

/// The idempotency key of a step of the order with this name.
fn key_of(order: &str) -> String {
    format!("{}/step", uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, order.as_bytes()))
}

#[tokio::test]
async fn the_tour_ends_with_books_that_balance() {
    let told = assert_told(&ecommerce().output().await.unwrap());
    for line in [
        "private, started from the binaries on this machine",
        "embedded, a mock in this process",
        "confirm-order succeeded",
        "charge-payment failed: payment declined",
        "reserve-stock was undone",
        "kill -9",
        "its worker was lost",
        "✓ balance of user 1: 9500000, charged once",
        "They balance",
    ] {
        assert!(told.contains(line), "{line} is missing in:\n{told}");
    }
    assert!(!told.contains('✗'), "{told}");
}

#[tokio::test]
async fn the_tours_output_is_the_same_over_http_the_embedded_broker_and_a_real_one() {
    let over_http = ecommerce().args(["tour", "--transport", "http"]).output().await.unwrap();
    let embedded = ecommerce().output().await.unwrap();
    let real = ecommerce_on_a_real_broker().stderr(Stdio::piped()).output().await.unwrap();
    let complaints = String::from_utf8_lossy(&real.stderr);
    assert!(
        real.status.success(),
        "the tour needs a real Kafka: set KAFKA_BROKERS, or install Java 17 and Maven\n{complaints}"
    );
    let (over_http, embedded) = (assert_told(&over_http), assert_told(&embedded));
    let real = String::from_utf8(real.stdout).unwrap();
    for (told, broker) in [(&over_http, "commands over HTTP"), (&embedded, "embedded"), (&real, "in KAFKA_BROKERS")] {
        assert!(told.contains(broker), "{broker} is missing in:\n{told}");
    }
    assert_eq!(story(&over_http), story(&embedded));
    assert_eq!(story(&over_http), story(&real));
}

/// What a tour told on stdout; on stderr it has nothing to say.
fn assert_told(tour: &Output) -> String {
    let told = String::from_utf8_lossy(&tour.stdout).into_owned();
    assert!(tour.status.success(), "{told}\n{}", String::from_utf8_lossy(&tour.stderr));
    assert_eq!(String::from_utf8_lossy(&tour.stderr), "", "nothing is mixed into the story");
    told
}

/// What a tour told, without addresses, process ids and durations.
fn story(told: &str) -> Vec<String> {
    let start_up = told.find("1. A completed order").unwrap();
    let lines = told[start_up..].lines().filter(|line| !line.contains("ended after"));
    lines
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let follows = |place: usize| place.checked_sub(1).map(|before| words[before]);
            let told = words.iter().enumerate().map(|(place, word)| match follows(place) {
                Some("-9" | "process") => "<id>",
                _ => word,
            });
            told.collect::<Vec<_>>().join(" ")
        })
        .collect()
}

async fn the_barrier_makes_repeated_late_and_early_commands_harmless(shop: Shop) {
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

async fn the_barrier_stands_before_payment_and_delivery_as_well(shop: Shop) {
    let charge = json!({ "userId": 1, "amount": 5 });
    let parcel = json!({ "userId": 1 });
    let key = key_of("order");
    for _ in 0..2 {
        assert_eq!(shop.post("payment", "/payments", &key, charge.clone()).await.1, json!({ "amount": 5 }));
        assert_eq!(shop.post("delivery", "/deliveries", &key, parcel.clone()).await.1, json!({ "delivery": 1 }));
    }
    assert_eq!(shop.get("payment", "/books").await["taken"], 5);
    assert_eq!(shop.get("delivery", "/books").await["deliveries"], 1);
}

async fn a_key_that_names_no_step_is_a_bad_request(shop: Shop) {
    let wanted = json!({ "productId": 1, "quantity": 1 });
    let saga = uuid::Uuid::nil();
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
    assert_eq!(shop.stock(1).await, 5);
    let (status, _) = shop.post("inventory", "/reservations", &format!("{saga}/step/1"), wanted).await;
    assert_eq!(status, StatusCode::OK);
}

async fn what_an_order_asked_for_is_found_in_the_inbox_by_its_key_over_http_as_well(shop: Shop) {
    let order = shop.ended(&shop.order("k", 1, 1, 2).await).await;
    assert_eq!((&order["state"], shop.stock(1).await), (&json!("CONFIRMED"), json!(3)));
    let key = format!("{}/reserve-stock", order["id"].as_str().unwrap());
    let wanted = json!({ "productId": 1, "quantity": 2 });
    let again = shop.post("inventory", "/reservations", &key, wanted).await;
    assert_eq!(again, (StatusCode::OK, json!({ "units": 2 })));
    assert_eq!(shop.stock(1).await, 3);
    let undone = shop.post("inventory", "/reservations/release", &key, json!({})).await;
    assert_eq!((undone.0, shop.stock(1).await), (StatusCode::OK, json!(5)));
}

async fn one_of_a_hundred_buyers_gets_the_last_item(shop: Shop) {
    let orders = futures::future::join_all((0..100).map(|i| {
        let shop = &shop;
        async move { shop.ended(&shop.order(&format!("buyer {i}"), i % 100 + 1, 2, 1).await).await }
    }))
    .await;
    let confirmed = orders.iter().filter(|order| order["state"] == "CONFIRMED").count();
    let sold_out =
        orders.iter().filter(|order| order["state"] == "CANCELLED" && order["reason"] == "out of stock").count();
    assert_eq!((confirmed, sold_out), (1, 99), "{:?}", orders.iter().map(|order| &order["reason"]).collect::<Vec<_>>());
    assert_eq!(shop.stock(2).await, 0);
    shop.assert_books_balance().await;
}

async fn orders_survive_when_each_service_is_killed_while_they_are_under_way(shop: Shop) {
    shop.sql("inventory", "UPDATE stock SET quantity = 100, delivered = 100 WHERE product_id = 1").await;
    let mut orders = vec![];
    for victim in ["inventory", "payment", "delivery", "notification", "order"] {
        for _ in 0..10 {
            let buyer = u32::try_from(orders.len()).unwrap() + 3;
            orders.push(shop.order(&format!("buyer {buyer}"), buyer, 1, 1).await);
        }
        let killed = Command::new("kill").args(["-9", &shop.processes[victim]]).status().await.unwrap();
        assert!(killed.success());
    }
    for order in &orders {
        let ended = shop.ended(order).await;
        // A service that was away for too long is a reason to turn back.
        assert!(ended["state"] == "CONFIRMED" || ended["state"] == "CANCELLED", "{ended}");
    }
    shop.assert_books_balance().await;
}

async fn an_order_is_placed_once_for_each_key_at_the_shops_price(shop: Shop) {
    let wanted = json!({ "userId": 1, "productId": 1, "quantity": 1, "price": 1 });
    let (status, order) = shop.post("order", "/orders", "k", wanted.clone()).await;
    assert_eq!((status, &order["total"]), (StatusCode::ACCEPTED, &json!(3_500_000)));
    let again = futures::future::join_all((0..10).map(|_| shop.post("order", "/orders", "k", wanted.clone()))).await;
    assert!(
        again.iter().all(|(status, same)| *status == StatusCode::ACCEPTED && same["id"] == order["id"]),
        "{again:?}"
    );
    let other = json!({ "userId": 1, "productId": 1, "quantity": 2 });
    assert_eq!(shop.post("order", "/orders", "k", other).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    let unknown = json!({ "userId": 1, "productId": 99, "quantity": 1 });
    assert_eq!(shop.post("order", "/orders", "l", unknown).await.0, StatusCode::UNPROCESSABLE_ENTITY);

    assert_eq!(shop.ended(&order).await["state"], "CONFIRMED");
    let too_many = shop.ended(&shop.order("m", 1, 1, 999).await).await;
    assert_eq!((&too_many["state"], &too_many["reason"]), (&json!("CANCELLED"), &json!("out of stock")));
    assert_eq!(shop.stock(1).await, 4);
    assert_eq!(shop.get("order", "/orders?userId=1").await.as_array().unwrap().len(), 2);
    shop.assert_books_balance().await;
}

async fn a_customer_is_told_once_what_became_of_an_order(shop: Shop) {
    let confirmed = shop.ended(&shop.order("k", 3, 1, 1).await).await;
    let cancelled = shop.ended(&shop.order("l", 3, 1, 999).await).await;
    // Waits until the last one is told.
    shop.assert_books_balance().await;
    let told = shop.get("notification", "/notifications?userId=3").await;
    let mut told = told.as_array().unwrap().clone();
    // Events of two orders have no order.
    told.sort_by_key(|each| each["message"].to_string());
    let of_confirmed = json!({ "orderId": confirmed["id"], "message": "Your order is on its way." });
    let of_cancelled = json!({ "orderId": cancelled["id"], "message": "Your order was cancelled." });
    assert_eq!(told, [of_confirmed, of_cancelled]);
}

async fn books_that_do_not_balance_exit_with_an_error(shop: Shop) {
    shop.ended(&shop.order("k", 1, 1, 1).await).await;
    shop.assert_books_balance().await;
    shop.sql("inventory", "UPDATE stock SET quantity = quantity + 1 WHERE product_id = 1").await;
    let books = shop.books().await;
    assert_eq!(books.status.code(), Some(1));
    assert!(String::from_utf8(books.stdout).unwrap().contains("✗ units delivered to us"));
    assert!(String::from_utf8(books.stderr).unwrap().contains("the books do not balance"));
}

async fn services_end_with_a_shop_that_is_killed(mut shop: Shop) {
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
