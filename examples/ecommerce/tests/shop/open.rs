//! `ecommerce`, as a program that is run.

use reqwest::{Client, StatusCode};
use saga_postgres::testing::Postgres;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::{
    collections::HashMap,
    process::{Output, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    runtime::Runtime,
};

const ECOMMERCE: &str = env!("CARGO_BIN_EXE_ecommerce");

/// With a Postgres and a broker of its own, which end with it.
pub fn ecommerce() -> Command {
    let mut command = Command::new(ECOMMERCE);
    command.env_remove("DATABASE_URL").env_remove("KAFKA_BROKERS").kill_on_drop(true);
    command
}

/// With the broker in `KAFKA_BROKERS`, else with a real one that is started for it.
pub fn ecommerce_on_a_real_broker() -> Command {
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

/// The server of all these shops: each has databases of its own on it. It ends with this process, and what it forgets when the machine dies is no loss.
static POSTGRES: LazyLock<String> = LazyLock::new(|| {
    let (told, url) = mpsc::channel();
    thread::spawn(move || {
        Runtime::new().unwrap().block_on(async {
            let quick = Postgres::builder().setting("fsync", "off").setting("max_connections", "600");
            let server = quick.start().await.unwrap();
            told.send(server.url()).unwrap();
            std::future::pending::<()>().await;
        });
    });
    url.recv().unwrap()
});
static OPENED: AtomicUsize = AtomicUsize::new(0);

/// `ecommerce serve`, on free ports.
pub struct Shop {
    pub process: Child,
    pub http: Client,
    /// Of the services behind the gateway.
    pub urls: HashMap<String, String>,
    pub processes: HashMap<String, String>,
    pub databases: HashMap<String, String>,
    pub gateway: String,
    /// The token of user 1, for the gateway, unless it wants none.
    pub buyer: String,
    opened: Instant,
}

impl Shop {
    /// All services in `one_process`, or each in its own.
    pub async fn open(transport: &str, kind: &str) -> Self {
        let kind: &[&str] = if kind == "processes" { &["--processes"] } else { &[] };
        Self::open_with(&[&["--transport", transport], kind].concat()).await
    }

    pub async fn open_with(flags: &[&str]) -> Self {
        let mut serve = ecommerce();
        // It is killed at the end of the test: the services may complain, but not here.
        serve
            .args(["serve", "--port-base", "0", "--rate", "0"])
            .arg(format!("--databases=shop_{}", OPENED.fetch_add(1, Ordering::SeqCst)))
            .args(flags)
            .env("DATABASE_URL", &*POSTGRES)
            .env("RUST_LOG", "off")
            .stdout(Stdio::piped());
        let with_tokens = !flags.contains(&"--no-auth");
        let mut process = serve.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (mut urls, mut processes, mut databases) = (HashMap::new(), HashMap::new(), HashMap::new());
        let mut gateway = String::new();
        let buyer = loop {
            let line = lines.next_line().await.unwrap().expect("the shop opens");
            match *line.split_whitespace().collect::<Vec<_>>() {
                ["gateway", url, "process", process] => {
                    url.clone_into(&mut gateway);
                    processes.insert("gateway".to_owned(), process.to_owned());
                    if !with_tokens {
                        break String::new();
                    }
                }
                [name, url, "process", process, database] => {
                    urls.insert(name.to_owned(), url.to_owned());
                    processes.insert(name.to_owned(), process.to_owned());
                    databases.insert(name.to_owned(), database.to_owned());
                }
                // It comes last.
                [word] if word.starts_with("BUYER=") => break word["BUYER=".len()..].to_owned(),
                _ => {}
            }
        };
        // Somebody has to read what it says.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { process, http: Client::new(), urls, processes, databases, gateway, buyer, opened: Instant::now() }
    }

    /// What is tested now, for whoever reads why it failed.
    pub fn about(&self, test: &str) {
        println!("after {:.1?}: {test}", self.opened.elapsed());
    }

    pub async fn get(&self, service: &str, path: &str) -> Value {
        let answer = self.http.get(format!("{}{path}", self.urls[service])).send().await.unwrap();
        answer.error_for_status().unwrap().json().await.unwrap()
    }

    pub async fn post(&self, service: &str, path: &str, key: &str, body: Value) -> (StatusCode, Value) {
        let request = self.http.post(format!("{}{path}", self.urls[service])).header("Idempotency-Key", key);
        let answer = request.json(&body).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    /// As a customer should: again with the same key as long as the shop says so, because a product service that is away, or slow, means no order for now.
    pub async fn order(&self, key: &str, user: u32, product: u32, quantity: u32) -> Value {
        let wanted = json!({ "userId": user, "productId": product, "quantity": quantity });
        let patience = Instant::now() + Duration::from_secs(60);
        loop {
            match self.post("order", "/orders", key, wanted.clone()).await {
                (StatusCode::ACCEPTED, order) => return order,
                (status, problem) => {
                    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{problem}");
                    assert!(Instant::now() < patience, "{problem}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Returns when none of its threads runs any more: a signal is sent before it has done its work.
    pub async fn freeze(&self, service: &str) {
        self.signal(service, "-STOP").await;
        let patience = Instant::now() + Duration::from_secs(60);
        while !self.is_frozen(service) {
            assert!(Instant::now() < patience, "{service} goes on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn thaw(&self, service: &str) {
        self.signal(service, "-CONT").await;
    }

    fn is_frozen(&self, service: &str) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.processes[service])).unwrap();
        // One that has just ended has none; where the name ends, which is in parentheses, the state follows.
        let mut stats = threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("stat")));
        stats.all(|stat| stat.is_ok_and(|stat| stat.rsplit_once(") ").unwrap().1.starts_with('T')))
    }

    /// Sends a signal to the process of a service.
    pub async fn signal(&self, service: &str, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.processes[service]]).status().await.unwrap();
        assert!(sent.success());
    }

    pub async fn ended(&self, order: &Value) -> Value {
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

    pub async fn reserve(&self, order: &str, quantity: u32) -> (StatusCode, Value) {
        let wanted = json!({ "productId": 1, "quantity": quantity });
        self.post("inventory", "/reservations", &key_of(order), wanted).await
    }

    pub async fn release(&self, order: &str) {
        let (status, _) = self.post("inventory", "/reservations/release", &key_of(order), json!({})).await;
        assert_eq!(status, StatusCode::OK);
    }

    pub async fn stock(&self, product: u32) -> Value {
        self.get("inventory", &format!("/inventory/{product}")).await["quantity"].take()
    }

    pub async fn sql(&self, service: &str, sql: &'static str) {
        let mut database = PgConnection::connect(&self.databases[service]).await.unwrap();
        sqlx::raw_sql(sql).execute(&mut database).await.unwrap();
    }

    pub async fn books(&self) -> Output {
        let urls = self.urls.iter().flat_map(|(name, url)| [format!("--{name}"), url.clone()]);
        ecommerce().arg("books").args(urls).output().await.unwrap()
    }

    pub async fn assert_books_balance(&self) {
        let books = self.books().await;
        assert!(books.status.success(), "{}", String::from_utf8_lossy(&books.stdout));
    }
}

/// The idempotency key of a step of the order with this name.
pub fn key_of(order: &str) -> String {
    format!("{}/step", uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, order.as_bytes()))
}
