//! A shop that is open, as the program `ecommerce`.

use crate::PATIENCE;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::{
    collections::HashMap,
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

/// With a Postgres and a broker of its own, which end with it.
pub fn ecommerce() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecommerce"));
    command.env_remove("DATABASE_URL").env_remove("KAFKA_BROKERS").env_remove("RUST_LOG").kill_on_drop(true);
    command
}

/// `ecommerce serve`, on free ports.
pub struct Shop {
    process: Child,
    pub http: Client,
    pub urls: HashMap<String, String>,
    databases: HashMap<String, String>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Shop {
    pub async fn open(arguments: &[&str]) -> Self {
        let mut serve = ecommerce();
        serve.args(["serve", "--port-base", "0"]).args(arguments);
        serve.env("RUST_LOG", "ecommerce=info").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = serve.spawn().unwrap();
        let log = Arc::new(Mutex::new(vec![]));
        let mut complaints = BufReader::new(process.stderr.take().unwrap()).lines();
        let kept = log.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = complaints.next_line().await {
                kept.lock().unwrap().push(line);
            }
        });
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (mut urls, mut databases) = (HashMap::new(), HashMap::new());
        while !["user", "order", "inventory", "payment", "delivery", "product", "notification"]
            .iter()
            .all(|name| urls.contains_key(*name))
        {
            let line = lines.next_line().await.unwrap().expect("the shop opens");
            if let [name, url, .., database] = *line.split_whitespace().collect::<Vec<_>>()
                && url.starts_with("http://")
            {
                urls.insert(name.to_owned(), url.to_owned());
                databases.insert(name.to_owned(), database.to_owned());
            }
        }
        // Somebody has to read what it says.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { process, http: Client::new(), urls, databases, log }
    }

    /// Until its saga has ended.
    pub async fn order(&self, user: u32, quantity: u32, headers: &[(&str, &str)]) -> Value {
        let wanted = json!({ "userId": user, "productId": 1, "quantity": quantity });
        let mut request = self.http.post(format!("{}/orders", self.urls["order"])).json(&wanted);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        let placed: Value = answer.json().await.unwrap();
        let url = format!("{}/orders/{}", self.urls["order"], placed["id"].as_str().unwrap());
        let patience = Instant::now() + PATIENCE;
        loop {
            let order: Value = self.http.get(&url).send().await.unwrap().json().await.unwrap();
            if order["saga"] == "Completed" || order["saga"] == "RolledBack" {
                return order;
            }
            assert!(Instant::now() < patience, "the order has not ended: {order}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Tells it to stop: how long it takes.
    pub async fn close(mut self) -> Duration {
        let began = Instant::now();
        let id = self.process.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
        timeout(PATIENCE, self.process.wait()).await.expect("it stops").unwrap();
        began.elapsed()
    }

    pub async fn sql(&self, service: &str, sql: &'static str) {
        let mut database = PgConnection::connect(&self.databases[service]).await.unwrap();
        sqlx::raw_sql(sql).execute(&mut database).await.unwrap();
    }

    /// When there is a line like this in the log.
    pub async fn line(&self, is_it: impl Fn(&str) -> bool) -> String {
        let patience = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = self.log.lock().unwrap().iter().find(|line| is_it(line)) {
                return found.clone();
            }
            assert!(Instant::now() < patience, "there is no such line in {:#?}", self.log.lock().unwrap());
            sleep(Duration::from_millis(20)).await;
        }
    }
}
