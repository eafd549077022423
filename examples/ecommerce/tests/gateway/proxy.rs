//! What gets through, and how.

use crate::{
    door::{Door, SERVICES, assert_problem, gateway_at},
    issuer::{Issuer, Key},
    upstream::Upstream,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn an_order_gets_through_as_it_is() {
    let door = Door::open().await;
    let order = json!({ "userId": 1, "productId": 1, "quantity": 1, "price": 1 });
    let headers = [("idempotency-key", "my-order"), ("accept-language", "de"), ("if-none-match", "\"1\"")];
    let request = door.request(Method::POST, "/api/v1/orders?wait=5s").bearer_auth(door.buyer()).json(&order);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(answer, json!({ "heard": "/orders?wait=5s" }));
    let heard = door.upstream.heard_once();
    assert_eq!((heard.method, heard.uri.to_string()), (Method::POST, "/orders?wait=5s".into()));
    assert_eq!(serde_json::from_slice::<Value>(&heard.body).unwrap(), order);
    assert_eq!(heard.headers["content-type"], "application/json");
    for (name, value) in headers {
        assert_eq!(heard.headers[name], value);
    }
}

#[tokio::test]
async fn each_address_has_its_service() {
    let mut services = vec![];
    for _ in SERVICES {
        services.push(Upstream::start().await);
    }
    let flags: Vec<_> =
        SERVICES.iter().zip(&services).map(|(name, service)| format!("--{name}={}", service.url)).collect();
    let flags: Vec<_> = flags.iter().map(String::as_str).chain(["--no-auth"]).collect();
    let (_process, url, _said) = gateway_at(&flags).await;
    let paths =
        ["/users/1", "/orders/1", "/inventory/1", "/accounts/1", "/deliveries", "/products/1", "/notifications"];
    for (path, service) in paths.iter().zip(&services) {
        for prefix in ["", "/api/v1"] {
            assert_eq!(reqwest::get(format!("{url}{prefix}{path}")).await.unwrap().status(), StatusCode::OK);
        }
        let heard: Vec<_> = service.heard().iter().map(|heard| heard.uri.to_string()).collect();
        assert_eq!(heard, [*path; 2]);
    }
}

#[tokio::test]
async fn what_is_not_on_the_list_does_not_exist() {
    let door = Door::open().await;
    for (method, path, status) in [
        (Method::POST, "/payments", StatusCode::NOT_FOUND),
        (Method::POST, "/reservations", StatusCode::NOT_FOUND),
        (Method::POST, "/deliveries", StatusCode::METHOD_NOT_ALLOWED),
        (Method::DELETE, "/orders/1", StatusCode::METHOD_NOT_ALLOWED),
        (Method::PUT, "/products/1", StatusCode::METHOD_NOT_ALLOWED),
        (Method::GET, "/orders/%2e%2e%2fbooks", StatusCode::NOT_FOUND),
    ] {
        let response = door.request(method, path).bearer_auth(door.operator()).send().await.unwrap();
        assert_problem(response, status, "").await;
    }
    assert!(door.upstream.heard().is_empty());
}

#[tokio::test]
async fn events_come_as_they_happen_however_long_it_takes() {
    let door = Door::open_with(&["--timeout", "0.5", "--header-timeout", "0.5", "--body-timeout", "0.5"]).await;
    let mut events = door.get_with(&door.buyer(), "/orders/1/events").await;
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    assert_eq!(timeout(PATIENCE, events.chunk()).await.unwrap().unwrap().unwrap(), "data: first\n\n");
    // Longer than any other request may take.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    door.upstream.go_on();
    assert_eq!(timeout(PATIENCE, events.chunk()).await.unwrap().unwrap().unwrap(), "data: second\n\n");
    assert!(timeout(PATIENCE, events.chunk()).await.unwrap().unwrap().is_none());
}

#[tokio::test]
async fn headers_between_a_service_and_the_gateway_stay_there() {
    let door = Door::open().await;
    let headers = door.get("/products/crooked").await.headers().clone();
    assert_eq!(headers["etag"], "\"1\"");
    assert!(!headers.contains_key("x-between-us") && !headers.contains_key("proxy-authenticate"));
}

#[tokio::test]
async fn a_service_that_is_down_is_a_bad_gateway() {
    let gone = Upstream::start().await.url.clone();
    let flags: Vec<_> = SERVICES.iter().map(|service| format!("--{service}={gone}")).collect();
    let flags: Vec<_> = flags.iter().map(String::as_str).chain(["--no-auth"]).collect();
    let (_process, url, _said) = gateway_at(&flags).await;
    let response = reqwest::get(format!("{url}/products")).await.unwrap();
    assert_problem(response, StatusCode::BAD_GATEWAY, "nothing has happened").await;
}

#[tokio::test]
async fn a_service_that_is_slow_is_a_gateway_timeout() {
    let door = Door::open_with(&["--timeout", "0.3"]).await;
    assert_problem(door.get("/products/slow").await, StatusCode::GATEWAY_TIMEOUT, "did not answer in time").await;
}

#[tokio::test]
async fn an_answer_that_stops_in_the_middle_is_not_taken_for_a_whole_one() {
    let door = Door::open_with(&["--timeout", "0.3"]).await;
    let stuck = door.get("/products/stuck").await;
    assert!(timeout(PATIENCE, stuck.bytes()).await.unwrap().is_err());
}

#[tokio::test]
async fn the_page_is_everybodys_and_loads_nothing_from_elsewhere() {
    let door = Door::open().await;
    for (path, kind) in [("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")] {
        let answer = door.get(path).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert!(header("content-type").starts_with(kind));
        assert!(header("content-security-policy").starts_with("default-src 'none'; script-src 'self';"));
        assert_eq!(header("x-content-type-options"), "nosniff");
        let content = answer.text().await.unwrap();
        assert!(!content.contains("http://") && !content.contains("https://"));
        assert!(!content.contains("style=") && !content.contains(" onclick="), "the policy forbids it");
    }
    assert_problem(door.request(Method::POST, "/").send().await.unwrap(), StatusCode::NOT_FOUND, "").await;
    assert!(door.upstream.heard().is_empty());
}

#[tokio::test]
async fn a_gateway_is_ready_when_it_can_tell_good_tokens() {
    let key = Key::new("key");
    let issuer = Issuer::with(&[&key]).await;
    issuer.fails();
    let door = Door::open_trusting(key, &["--jwks-url", &issuer.url, "--jwks-pause", "0"]).await;
    assert_eq!(door.get("/health/live").await.status(), StatusCode::OK);
    assert_problem(door.get("/health/ready").await, StatusCode::SERVICE_UNAVAILABLE, "no keys yet").await;
    issuer.has(&[&door.key]);
    assert_eq!(door.order_with(&door.buyer()).await.status(), StatusCode::OK);
    assert_eq!(door.get("/health/ready").await.status(), StatusCode::OK);
}
