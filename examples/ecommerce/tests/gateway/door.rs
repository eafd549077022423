//! A gateway before services that write down what reaches them.

use crate::{issuer::Key, upstream::Upstream};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, header};
use serde_json::{Value, json};
use std::process::Stdio;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr, Command},
};

pub const SERVICES: [&str; 7] = ["user", "order", "inventory", "payment", "delivery", "product", "notification"];

pub struct Door {
    pub url: String,
    pub upstream: Upstream,
    pub http: Client,
    pub key: Key,
    _process: Child,
}

impl Door {
    /// One that trusts a key.
    pub async fn open() -> Self {
        Self::open_with(&[]).await
    }

    pub async fn open_with(flags: &[&str]) -> Self {
        let key = Key::new("key");
        let jwks = json!({ "keys": [key.public()] }).to_string();
        Self::open_trusting(key, &[&["--jwks", &jwks], flags].concat()).await
    }

    /// One whose trust is in the flags.
    pub async fn open_trusting(key: Key, flags: &[&str]) -> Self {
        let upstream = Upstream::start().await;
        let (process, url, mut said) = gateway(&upstream.url, flags).await;
        // Somebody has to read what it says.
        tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
        Self { url, upstream, http: Client::new(), key, _process: process }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// Without a token.
    pub async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    pub async fn get_with(&self, token: &str, path: &str) -> Response {
        self.request(Method::GET, path).bearer_auth(token).send().await.unwrap()
    }

    pub async fn order_with(&self, token: &str) -> Response {
        let order = json!({ "userId": 1, "productId": 1, "quantity": 1 });
        self.request(Method::POST, "/orders").bearer_auth(token).json(&order).send().await.unwrap()
    }

    pub fn buyer(&self) -> String {
        self.key.token("1", "buyer")
    }

    pub fn operator(&self) -> String {
        self.key.token("boss", "operator")
    }

    /// An order with this token is refused, and nothing reaches the order service.
    pub async fn refuses(&self, token: &str, why: &str) {
        let response = self.order_with(token).await;
        assert!(response.headers().contains_key(header::WWW_AUTHENTICATE));
        assert_problem(response, StatusCode::UNAUTHORIZED, why).await;
        assert!(self.upstream.heard().is_empty());
        assert_eq!(self.order_with(&self.buyer()).await.status(), StatusCode::OK, "it is the token's fault");
    }
}

/// Started, and where it listens, and what it says.
pub async fn gateway(upstream: &str, flags: &[&str]) -> (Child, String, Lines<BufReader<ChildStderr>>) {
    let services = SERVICES.map(|service| format!("--{service}={upstream}"));
    gateway_at(&services.iter().map(String::as_str).chain(flags.iter().copied()).collect::<Vec<_>>()).await
}

/// The same, with the services in the flags.
pub async fn gateway_at(flags: &[&str]) -> (Child, String, Lines<BufReader<ChildStderr>>) {
    let mut process = Command::new(env!("CARGO_BIN_EXE_ecommerce"))
        .args(["serve", "gateway", "--listen", "127.0.0.1:0"])
        .args(flags)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let said = BufReader::new(process.stderr.take().unwrap()).lines();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let url = lines.next_line().await.unwrap().expect("the gateway starts");
    (process, url, said)
}

/// It is one as of RFC 9457.
pub async fn assert_problem(response: Response, status: StatusCode, why: &str) {
    assert_eq!(response.status(), status);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["status"], status.as_u16());
    assert_eq!(problem["title"], status.canonical_reason().unwrap());
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(why), "{detail}");
}
