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

fn ecommerce() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecommerce"));
    // A Postgres of its own, which ends with it.
    command.env_remove("DATABASE_URL").kill_on_drop(true);
    command
}

/// `ecommerce serve`, on free ports.
struct Shop {
    _process: Child,
    http: Client,
    urls: HashMap<String, String>,
    processes: HashMap<String, String>,
    databases: HashMap<String, String>,
}

impl Shop {
    async fn open() -> Self {
        let mut serve = ecommerce();
        // It is killed at the end of the test, and its Postgres with it: the services may complain, but not here.
        serve.args(["serve", "--port-base", "0"]).env("RUST_LOG", "off").stdout(Stdio::piped());
        let mut process = serve.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (mut urls, mut processes, mut databases) = (HashMap::new(), HashMap::new(), HashMap::new());
        while urls.len() < 4 {
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
        Self { _process: process, http: Client::new(), urls, processes, databases }
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
        let patience = Instant::now() + Duration::from_secs(60);
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

    async fn reserve(&self, key: &str, quantity: u32) -> (StatusCode, Value) {
        let wanted = json!({ "orderId": uuid::Uuid::nil(), "productId": 1, "quantity": quantity });
        self.post("inventory", "/reservations", key, wanted).await
    }

    async fn release(&self, key: &str) {
        let (status, _) = self.post("inventory", "/reservations/release", key, Value::Null).await;
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

#[tokio::test]
async fn the_tour_ends_with_books_that_balance() {
    let tour = ecommerce().output().await.unwrap();
    let told = String::from_utf8(tour.stdout).unwrap();
    assert!(tour.status.success(), "{told}\n{}", String::from_utf8_lossy(&tour.stderr));
    assert_eq!(String::from_utf8_lossy(&tour.stderr), "", "nothing is mixed into the story");
    for line in [
        "private, started from the binaries on this machine",
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
async fn the_barrier_makes_repeated_late_and_early_commands_harmless() {
    let shop = Shop::open().await;

    // twice
    let first = shop.reserve("twice", 2).await;
    assert_eq!(first, (StatusCode::OK, json!({ "units": 2 })));
    assert_eq!(shop.reserve("twice", 2).await, first);
    assert_eq!(shop.stock(1).await, 3);

    // undone twice, then late
    shop.release("twice").await;
    shop.release("twice").await;
    assert_eq!(shop.stock(1).await, 5);
    let (status, problem) = shop.reserve("twice", 2).await;
    assert_eq!((status, &problem["detail"]), (StatusCode::CONFLICT, &json!("this was undone before it came")));
    assert_eq!(shop.stock(1).await, 5);

    // the undo first
    shop.release("undo first").await;
    assert_eq!(shop.reserve("undo first", 1).await.0, StatusCode::CONFLICT);
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

#[tokio::test]
async fn the_barrier_stands_before_payment_and_delivery_as_well() {
    let shop = Shop::open().await;
    let charge = json!({ "orderId": uuid::Uuid::nil(), "userId": 1, "amount": 5 });
    let parcel = json!({ "orderId": uuid::Uuid::nil(), "userId": 1 });
    for _ in 0..2 {
        assert_eq!(shop.post("payment", "/payments", "k", charge.clone()).await.1, json!({ "amount": 5 }));
        assert_eq!(shop.post("delivery", "/deliveries", "k", parcel.clone()).await.1, json!({ "delivery": 1 }));
    }
    assert_eq!(shop.get("payment", "/books").await["taken"], 5);
    assert_eq!(shop.get("delivery", "/books").await["deliveries"], 1);
}

#[tokio::test]
async fn one_of_a_hundred_buyers_gets_the_last_item() {
    let shop = Shop::open().await;
    let orders = futures::future::join_all((0..100).map(|i| {
        let shop = &shop;
        async move { shop.ended(&shop.order(&format!("buyer {i}"), i % 100 + 1, 2, 1).await).await }
    }))
    .await;
    let confirmed = orders.iter().filter(|order| order["state"] == "CONFIRMED").count();
    let sold_out =
        orders.iter().filter(|order| order["state"] == "CANCELLED" && order["reason"] == "out of stock").count();
    assert_eq!((confirmed, sold_out), (1, 99));
    assert_eq!(shop.stock(2).await, 0);
    shop.assert_books_balance().await;
}

#[tokio::test]
async fn orders_survive_when_each_service_is_killed_while_they_are_under_way() {
    let shop = Shop::open().await;
    shop.sql("inventory", "UPDATE stock SET quantity = 100, delivered = 100 WHERE product_id = 1").await;
    let mut orders = vec![];
    for victim in ["inventory", "payment", "delivery", "order"] {
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

#[tokio::test]
async fn an_order_is_placed_once_for_each_key_at_the_shops_price() {
    let shop = Shop::open().await;
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

#[tokio::test]
async fn books_that_do_not_balance_exit_with_an_error() {
    let shop = Shop::open().await;
    shop.ended(&shop.order("k", 1, 1, 1).await).await;
    shop.assert_books_balance().await;
    shop.sql("inventory", "UPDATE stock SET quantity = quantity + 1 WHERE product_id = 1").await;
    let books = shop.books().await;
    assert_eq!(books.status.code(), Some(1));
    assert!(String::from_utf8(books.stdout).unwrap().contains("✗ units delivered to us"));
    assert!(String::from_utf8(books.stderr).unwrap().contains("the books do not balance"));
}
