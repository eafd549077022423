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
    processes: HashMap<String, String>,
    databases: HashMap<String, String>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Shop {
    pub async fn open(arguments: &[&str]) -> Self {
        let mut serve = ecommerce();
        serve.args(["serve", "--port-base", "0", "--no-auth", "--rate", "0"]).args(arguments);
        // What a process tells is soon known, also if it is killed.
        serve.env("RUST_LOG", "ecommerce=info").env("OTEL_BSP_SCHEDULE_DELAY", "50");
        serve.stdout(Stdio::piped()).stderr(Stdio::piped());
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
        let (mut urls, mut processes, mut databases) = (HashMap::new(), HashMap::new(), HashMap::new());
        // The gateway is the last.
        while !urls.contains_key("gateway") {
            let line = lines.next_line().await.unwrap().expect("the shop opens");
            if let [name, url, "process", process, ref database @ ..] = *line.split_whitespace().collect::<Vec<_>>() {
                urls.insert(name.to_owned(), url.to_owned());
                processes.insert(name.to_owned(), process.to_owned());
                databases.extend(database.first().map(|database| (name.to_owned(), (*database).to_owned())));
            }
        }
        assert_eq!(urls.len(), 8, "{urls:?}");
        // Somebody has to read what it says.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { process, http: Client::new(), urls, processes, databases, log }
    }

    /// At the gateway, until its saga has ended.
    pub async fn order(&self, user: u32, quantity: u32, headers: &[(&str, &str)]) -> Value {
        let placed = self.place(user, quantity, headers).await;
        self.ended(&placed).await
    }

    pub async fn place(&self, user: u32, quantity: u32, headers: &[(&str, &str)]) -> Value {
        let wanted = json!({ "userId": user, "productId": 1, "quantity": quantity });
        let mut request = self.http.post(format!("{}/orders", self.urls["gateway"])).json(&wanted);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        answer.json().await.unwrap()
    }

    pub async fn ended(&self, placed: &Value) -> Value {
        let url = format!("{}/orders/{}", self.urls["gateway"], placed["id"].as_str().unwrap());
        let patience = Instant::now() + PATIENCE;
        loop {
            // A service that was killed is away for a while.
            let order: Value = self.http.get(&url).send().await.unwrap().json().await.unwrap();
            if order["saga"] == "Completed" || order["saga"] == "RolledBack" {
                return order;
            }
            assert!(Instant::now() < patience, "the order has not ended: {order}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// `kill -9`. Where each service is a process of its own, it is started again.
    pub async fn kill(&self, service: &str) {
        assert!(Command::new("kill").args(["-9", &self.processes[service]]).status().await.unwrap().success());
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
        sqlx::raw_sql(sql).execute(&mut self.database(service).await).await.unwrap();
    }

    pub async fn database(&self, service: &str) -> PgConnection {
        PgConnection::connect(&self.databases[service]).await.unwrap()
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
