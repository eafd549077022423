//! Through the gateway into the whole shop: what must not happen does not.

use crate::{door::assert_problem, issuer::Key};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::{
    collections::HashMap,
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// `ecommerce serve`, which trusts a key of ours or its own.
pub struct Shop {
    urls: HashMap<String, String>,
    databases: HashMap<String, String>,
    pub gateway: String,
    gateway_process: String,
    /// As printed.
    tokens: HashMap<String, String>,
    pub key: Key,
    http: Client,
    _process: Child,
}

impl Shop {
    pub async fn open() -> Self {
        let key = Key::new("key");
        let jwks = json!({ "keys": [key.public()] }).to_string();
        Self::open_with(key, &["--jwks", &jwks, "--rate", "0"]).await
    }

    async fn open_with(key: Key, flags: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_ecommerce"))
            .args(["serve", "--port-base", "0"])
            .args(flags)
            .env_remove("DATABASE_URL")
            .env_remove("KAFKA_BROKERS")
            .env("RUST_LOG", "off")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (mut urls, mut databases) = (HashMap::new(), HashMap::new());
        let (mut processes, mut tokens) = (HashMap::new(), HashMap::new());
        loop {
            let line = lines.next_line().await.unwrap().expect("the shop opens");
            if let [name, url, "process", process, ref database @ ..] = *line.split_whitespace().collect::<Vec<_>>() {
                urls.insert(name.to_owned(), url.to_owned());
                databases.extend(database.iter().map(|url| (name.to_owned(), (*url).to_owned())));
                processes.insert(name.to_owned(), process.to_owned());
            }
            if let Some((name @ ("BUYER" | "OPERATOR"), token)) = line.split_once('=') {
                tokens.insert(name.to_owned(), token.to_owned());
            }
            if line.starts_with("Try it") {
                break;
            }
        }
        // Somebody has to read what it says.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let gateway = urls.remove("gateway").unwrap();
        let gateway_process = processes.remove("gateway").unwrap();
        Self { urls, databases, gateway, gateway_process, tokens, key, http: Client::new(), _process: process }
    }

    pub async fn database(&self, service: &str) -> PgConnection {
        PgConnection::connect(&self.databases[service]).await.unwrap()
    }

    fn request(&self, token: &str, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.gateway)).bearer_auth(token)
    }

    async fn get(&self, token: &str, path: &str) -> Response {
        self.request(token, Method::GET, path).send().await.unwrap()
    }

    async fn order(&self, token: &str, wanted: &Value) -> Response {
        self.request(token, Method::POST, "/orders").json(wanted).send().await.unwrap()
    }

    fn buyer(&self, user: u32) -> String {
        self.key.token(&user.to_string(), "buyer")
    }

    /// What each service says of its own books.
    async fn books(&self) -> Vec<Value> {
        let mut books = vec![];
        for service in ["order", "inventory", "payment", "delivery", "notification"] {
            let answer = self.http.get(format!("{}/consistency", self.urls[service])).send().await.unwrap();
            books.push(answer.error_for_status().unwrap().json().await.unwrap());
        }
        books
    }

    async fn ended(&self, token: &str, id: &str) -> Value {
        let patience = Instant::now() + Duration::from_secs(120);
        loop {
            let order: Value = self.get(token, &format!("/orders/{id}")).await.json().await.unwrap();
            if order["saga"] == "Completed" || order["saga"] == "RolledBack" {
                return order;
            }
            assert!(Instant::now() < patience, "{order}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn another_buyers_order_is_not_there() {
    let shop = Shop::open().await;
    let (mine, theirs) = (shop.buyer(3), shop.buyer(4));
    let placed: Value =
        shop.order(&mine, &json!({ "userId": 3, "productId": 1, "quantity": 1 })).await.json().await.unwrap();
    let id = placed["id"].as_str().unwrap();
    let order = shop.ended(&mine, id).await;
    let no_such = uuid::Uuid::nil();
    for rest in ["", "/history", "/picture", "/events"] {
        // There is nothing by which to tell it from an order that never was.
        for token in [&theirs, &shop.key.token("03", "buyer"), &shop.key.token("operator", "buyer")] {
            let answer = shop.get(token, &format!("/orders/{id}{rest}")).await;
            assert_problem(answer, StatusCode::NOT_FOUND, "no such order").await;
            let answer = shop.get(token, &format!("/orders/{no_such}{rest}")).await;
            assert_problem(answer, StatusCode::NOT_FOUND, "no such order").await;
        }
        for token in [&mine, &shop.key.token("boss", "operator")] {
            assert_eq!(shop.get(token, &format!("/orders/{id}{rest}")).await.status(), StatusCode::OK, "{rest}");
        }
    }
    for path in ["/orders?userId=3", "/notifications?userId=3", "/accounts/3", "/deliveries?userId=3"] {
        assert_problem(shop.get(&theirs, path).await, StatusCode::FORBIDDEN, "").await;
        assert_eq!(shop.get(&mine, path).await.status(), StatusCode::OK, "{path}");
    }
    let orders: Value = shop.get(&mine, "/orders?userId=3").await.json().await.unwrap();
    assert_eq!(orders[0]["id"], order["id"]);
}

#[tokio::test]
async fn nobody_orders_for_somebody_else() {
    let shop = Shop::open().await;
    let before = shop.books().await;
    let forged = json!({ "userId": 3, "productId": 1, "quantity": 1 });
    assert_problem(shop.order(&shop.buyer(4), &forged).await, StatusCode::FORBIDDEN, "for somebody else").await;
    let both = shop.key.sign(&{
        let mut claims = crate::issuer::claims("4", "buyer");
        claims["roles"] = json!(["buyer", "operator"]);
        claims
    });
    assert_problem(shop.order(&both, &forged).await, StatusCode::FORBIDDEN, "for somebody else").await;
    let twice = shop.request(&shop.buyer(4), Method::POST, "/orders").header("content-type", "application/json");
    let twice = twice.body(r#"{"userId":4,"userId":3,"productId":1,"quantity":1}"#).send().await.unwrap();
    assert!(twice.status().is_client_error());
    let told = shop
        .request(&shop.buyer(4), Method::POST, "/orders")
        .header("x-user-id", "3")
        .json(&forged)
        .send()
        .await
        .unwrap();
    assert_problem(told, StatusCode::FORBIDDEN, "for somebody else").await;
    assert_eq!(shop.books().await, before);
}

#[tokio::test]
async fn a_price_in_the_body_changes_nothing() {
    let shop = Shop::open().await;
    let token = shop.buyer(3);
    let wanted = json!({
        "userId": 3, "productId": 1, "quantity": 1, "price": 1, "unitPrice": 1, "unit_price": 1, "total": 1, "currency": "XXX", "state": "CONFIRMED",
    });
    let placed: Value = shop.order(&token, &wanted).await.json().await.unwrap();
    assert_eq!((&placed["unitPrice"], &placed["total"]), (&json!(3_500_000), &json!(3_500_000)));
    let ended = shop.ended(&token, placed["id"].as_str().unwrap()).await;
    assert_eq!(ended["state"], "CONFIRMED");
    let account: Value = shop.get(&token, "/accounts/3").await.json().await.unwrap();
    assert_eq!(account["balance"], 20_000_000 - 3_500_000);
}

#[tokio::test]
async fn quantities_that_are_none_are_refused() {
    let shop = Shop::open().await;
    let before = shop.books().await;
    let quantities = [
        json!(0),
        json!(-1),
        json!(-1_000_000_000_000_i64),
        json!(i64::MIN),
        json!(1001),
        json!(4_294_967_297_i64),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(1e300),
        json!(1.5),
        json!("1"),
        json!(null),
        json!([1]),
        json!(true),
    ];
    for quantity in quantities {
        let answer = shop.order(&shop.buyer(3), &json!({ "userId": 3, "productId": 1, "quantity": quantity })).await;
        assert_problem(answer, StatusCode::UNPROCESSABLE_ENTITY, "").await;
    }
    let missing = shop.order(&shop.buyer(3), &json!({ "userId": 3, "productId": 1 })).await;
    assert_problem(missing, StatusCode::UNPROCESSABLE_ENTITY, "").await;
    assert_eq!(shop.books().await, before);
}

#[tokio::test]
async fn sql_in_every_field_is_no_more_than_text() {
    const SQL: &str = "1'; DROP TABLE orders; UPDATE account SET balance = 0; --";
    let shop = Shop::open().await;
    let (buyer, operator) = (shop.buyer(3), shop.key.token("boss", "operator"));
    let before = shop.books().await;
    for field in ["userId", "productId", "quantity"] {
        let mut wanted = json!({ "userId": 3, "productId": 1, "quantity": 1 });
        wanted[field] = SQL.into();
        assert_problem(shop.order(&buyer, &wanted).await, StatusCode::UNPROCESSABLE_ENTITY, "").await;
    }
    let encoded: String = SQL.bytes().map(|byte| format!("%{byte:02X}")).collect();
    for path in ["/orders/", "/accounts/", "/inventory/", "/products/", "/users/"] {
        assert_problem(shop.get(&operator, &format!("{path}{encoded}")).await, StatusCode::NOT_FOUND, "").await;
        let answer = shop.get(&operator, &format!("{path}1--")).await;
        assert_problem(answer, StatusCode::BAD_REQUEST, "").await;
    }
    for path in ["/orders?userId=", "/notifications?userId=", "/deliveries?userId="] {
        assert_problem(shop.get(&operator, &format!("{path}{encoded}")).await, StatusCode::BAD_REQUEST, "").await;
        assert_problem(shop.get(&buyer, &format!("{path}{encoded}")).await, StatusCode::FORBIDDEN, "").await;
    }
    let none: Value = shop.get(&buyer, &format!("/products?category={encoded}")).await.json().await.unwrap();
    assert_eq!(none, json!([]));
    let named = shop.key.token("1'--", "buyer");
    assert_problem(
        shop.order(&named, &json!({ "userId": 1, "productId": 1, "quantity": 1 })).await,
        StatusCode::FORBIDDEN,
        "",
    )
    .await;
    assert_eq!(shop.books().await, before);

    // A key is whatever a client likes: the order is placed, once.
    let wanted = json!({ "userId": 3, "productId": 1, "quantity": 1 });
    let mut ids = vec![];
    for _ in 0..2 {
        let request = shop.request(&buyer, Method::POST, "/orders").header("idempotency-key", SQL).json(&wanted);
        let placed: Value = request.send().await.unwrap().json().await.unwrap();
        ids.push(placed["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids[0], ids[1]);
    assert_eq!(shop.ended(&buyer, &ids[0]).await["state"], "CONFIRMED");
    let account: Value = shop.get(&buyer, "/accounts/3").await.json().await.unwrap();
    assert_eq!(account["balance"], 20_000_000 - 3_500_000);
}

#[tokio::test]
async fn an_order_is_followed_to_its_end_through_the_gateway() {
    let shop = Shop::open().await;
    let token = shop.buyer(3);
    let placed: Value =
        shop.order(&token, &json!({ "userId": 3, "productId": 1, "quantity": 1 })).await.json().await.unwrap();
    let events = shop.get(&token, &format!("/api/v1/orders/{}/events", placed["id"].as_str().unwrap())).await;
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    let told = tokio::time::timeout(Duration::from_secs(120), events.text()).await.unwrap().unwrap();
    assert!(told.contains("event: ended") && told.contains("\"state\":\"CONFIRMED\""), "{told}");
}

#[tokio::test]
async fn the_printed_tokens_open_the_shop_also_after_its_gateway_was_killed() {
    for flags in [&["--processes"][..], &[]] {
        let shop = Shop::open_with(Key::new("another"), flags).await;
        let (buyer, operator) = (&shop.tokens["BUYER"], &shop.tokens["OPERATOR"]);
        assert_eq!(shop.get(buyer, "/orders?userId=1").await.status(), StatusCode::OK);
        assert_eq!(shop.get(operator, "/inventory/1").await.status(), StatusCode::OK);
        assert_eq!(shop.get(&shop.buyer(1), "/orders?userId=1").await.status(), StatusCode::UNAUTHORIZED);
        if flags.is_empty() {
            continue;
        }
        let killed = Command::new("kill").args(["-9", &shop.gateway_process]).status().await.unwrap();
        assert!(killed.success());
        let patience = Instant::now() + Duration::from_secs(60);
        while shop.request(buyer, Method::GET, "/orders?userId=1").send().await.is_err() {
            assert!(Instant::now() < patience, "the gateway is not started again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(shop.get(buyer, "/orders?userId=1").await.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn operators_see_the_books() {
    let shop = Shop::open().await;
    let buyer = shop.buyer(3);
    let wanted = json!({ "userId": 3, "productId": 1, "quantity": 1 });
    let placed: Value = shop.order(&buyer, &wanted).await.json().await.unwrap();
    shop.ended(&buyer, placed["id"].as_str().unwrap()).await;
    assert_problem(shop.get(&buyer, "/books").await, StatusCode::FORBIDDEN, "only operators").await;
    let operator = shop.key.token("boss", "operator");
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        // The delivery takes a while, and then the customer is told.
        let books: Value = shop.get(&operator, "/books").await.json().await.unwrap();
        if books["balanced"] == true {
            let money = books["lines"]
                .as_array()
                .unwrap()
                .iter()
                .find(|line| line["what"] == "money taken = totals of confirmed orders");
            assert_eq!(money.unwrap()["one"], 3_500_000);
            break;
        }
        assert!(Instant::now() < patience, "{books}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
