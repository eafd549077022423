//! A headless Chromium, driven over WebDriver (W3C), which is JSON over HTTP.

use reqwest::{Client, Method};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::{Value, json};
use std::{
    process::Stdio,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Browser {
    http: Client,
    session: String,
    process: Option<Pid>,
    _driver: Child,
    _profile: TempDir,
}

impl Browser {
    pub async fn open() -> Self {
        let profile = TempDir::new().unwrap();
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .env("TMPDIR", profile.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("scripts/ensure-browser installs chromedriver");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = loop {
            let line = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().expect("chromedriver starts");
            if let Some((_, port)) = line.split_once("successfully on port ") {
                break port.trim_end_matches('.').to_owned();
            }
        };
        // Somebody has to read what it says.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });

        let mut flags = [
            "headless=new",
            "window-size=1200,1400",
            "disable-gpu",
            "disable-dev-shm-usage",
            "no-first-run",
            "disable-background-networking",
            "disable-component-update",
            "disable-sync",
            "no-proxy-server",
        ]
        .map(str::to_owned)
        .to_vec();
        flags.push(format!("user-data-dir={}", profile.path().join("profile").display()));
        if geteuid().is_root() {
            flags.push("no-sandbox".into());
        }
        let wanted = json!({ "goog:chromeOptions": { "args": flags }, "goog:loggingPrefs": { "browser": "ALL" } });
        let http = Client::builder().no_proxy().build().unwrap();
        let sessions = format!("http://127.0.0.1:{port}/session");
        let mut browser = Self { http, session: sessions, process: None, _driver: driver, _profile: profile };
        let opened = browser.ask(Method::POST, "", json!({ "capabilities": { "alwaysMatch": wanted } })).await;
        browser.session += &format!("/{}", opened["sessionId"].as_str().unwrap());
        let process = opened["capabilities"]["goog:processID"].as_i64().expect("chromedriver names the process");
        browser.process = Pid::from_raw(i32::try_from(process).unwrap());
        browser
    }

    async fn ask(&self, method: Method, path: &str, body: Value) -> Value {
        let request = self.http.request(method.clone(), format!("{}{path}", self.session));
        let request = if method == Method::POST { request.json(&body) } else { request };
        let answer: Value = timeout(PATIENCE, request.send()).await.unwrap().unwrap().json().await.unwrap();
        assert!(answer["value"]["error"].is_null(), "{path} {body}: {answer}");
        answer["value"].clone()
    }

    pub async fn visit(&self, url: &str) {
        self.ask(Method::POST, "/url", json!({ "url": url })).await;
    }

    /// What a function with this body returns in the page.
    pub async fn run(&self, body: &str) -> Value {
        self.ask(Method::POST, "/execute/sync", json!({ "script": body, "args": [] })).await
    }

    /// Until this expression is true in the page.
    pub async fn until(&self, expression: &str) {
        let patience = Instant::now() + PATIENCE;
        while self.run(&format!("return !!({expression})")).await != json!(true) {
            if Instant::now() >= patience {
                let page = self.run("return document.body.innerText").await;
                panic!("{expression}: {}\n{:?}", page.as_str().unwrap(), self.console().await);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn element(&self, selector: &str) -> String {
        let wanted = json!({ "using": "css selector", "value": selector });
        let found = self.ask(Method::POST, "/element", wanted).await;
        let (_, id) = found.as_object().unwrap().iter().next().unwrap();
        format!("/element/{}", id.as_str().unwrap())
    }

    /// As a person does: it must be visible, and nothing in front of it.
    pub async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.ask(Method::POST, &format!("{element}/click"), json!({})).await;
    }

    pub async fn write(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.ask(Method::POST, &format!("{element}/clear"), json!({})).await;
        self.ask(Method::POST, &format!("{element}/value"), json!({ "text": text })).await;
    }

    /// What the console has to say since it was asked last: what the page, and what the browser itself complains of.
    pub async fn console(&self) -> Vec<String> {
        let lines = self.ask(Method::POST, "/se/log", json!({ "type": "browser" })).await;
        lines.as_array().unwrap().iter().map(|line| format!("{}: {}", line["level"], line["message"])).collect()
    }

    /// As PNG, in base64.
    pub async fn picture(&self) -> String {
        self.ask(Method::GET, "/screenshot", Value::Null).await.as_str().unwrap().to_owned()
    }

    pub async fn close(mut self) {
        self.ask(Method::DELETE, "", Value::Null).await;
        self.process = None;
    }
}

/// A test that fails leaves no browser behind.
impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(process) = self.process {
            let _ = kill_process(process, Signal::KILL);
        }
    }
}
