//! The README's lines with curl do what it says.

use crate::open::Shop;
use reqwest::Method;
use serde_json::Value;
use std::time::Duration;
use tokio::time::timeout;

const README: &str = include_str!("../../README.md");

#[tokio::test]
async fn every_line_with_curl_works_as_it_is_in_a_shop_without_tokens() {
    let shop = Shop::open_with(&["--no-auth"]).await;
    let product = r#"{"id":1,"name":"MacBook Pro 16","price":3500000,"currency":"KRW","category":"computers"}"#;
    let stock = r#"{"productId":1,"quantity":5}"#;
    let (products, inventory) = (&shop.urls["product"], &shop.urls["inventory"]);
    for (door, path, expected) in [
        (&shop.gateway, "/products/1", product),
        (products, "/products/1", product),
        (&shop.gateway, "/inventory/1", stock),
        (inventory, "/inventory/1", stock),
    ] {
        let answer = shop.http.get(format!("{door}{path}")).send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), expected, "{door}{path}");
    }

    let lines: Vec<&str> = README.lines().filter_map(|line| line.strip_prefix("    curl ")).collect();
    for wanted in [
        "localhost:8080/products",
        "localhost:8080/products/1",
        "'localhost:8080/products?category=computers'",
        r#"localhost:8080/orders --json '{"userId":1,"productId":1,"quantity":1}'"#,
        "'localhost:8080/orders?userId=1'",
        "localhost:8080/inventory/1",
        "localhost:8087/products",
        "localhost:8087/products/1",
        "'localhost:8087/products?category=computers'",
        r#"localhost:8082/orders --json '{"userId":1,"productId":1,"quantity":1}'"#,
        "'localhost:8082/orders?userId=1'",
        "localhost:8084/inventory/1",
    ] {
        assert!(lines.iter().any(|line| without_comment(line).0 == wanted), "curl {wanted} is missing");
    }
    let mut last_order = String::new();
    for line in lines {
        let (arguments, expected) = without_comment(line);
        let answer = timeout(Duration::from_secs(60), curl(&shop, &arguments.replace("<id>", &last_order))).await;
        let answer = answer.unwrap_or_else(|_| panic!("curl {line} does not end"));
        assert!(answer.starts_with(expected), "curl {line}\n{answer}");
        if arguments.contains("--json") {
            let order: Value = serde_json::from_str(&answer).unwrap();
            last_order = order["id"].as_str().unwrap().to_owned();
        }
    }
    shop.assert_books_balance().await;
}

/// How the answer begins is behind a #.
fn without_comment(line: &str) -> (&str, &str) {
    line.split_once(" # ").map_or((line, ""), |(line, expected)| (line.trim_end(), expected))
}

/// What curl would do with this, and print; an answer that is no success is a failure.
async fn curl(shop: &Shop, arguments: &str) -> String {
    let (mut words, mut request) = (words(arguments).into_iter(), None);
    let mut header = None;
    let mut body = None;
    while let Some(word) = words.next() {
        match &*word {
            "-N" => {}
            "-H" => header = Some(words.next().unwrap()),
            "--json" => body = Some(words.next().unwrap()),
            place => {
                assert_eq!(request.replace(place.to_owned()), None, "one address: {arguments}");
            }
        }
    }
    let place = request.expect("an address");
    let (port, path) = place.strip_prefix("localhost:").unwrap().split_at(4);
    let door = match port {
        "8080" => &shop.gateway,
        "8082" => &shop.urls["order"],
        "8084" => &shop.urls["inventory"],
        "8085" => &shop.urls["payment"],
        "8086" => &shop.urls["delivery"],
        "8087" => &shop.urls["product"],
        "8088" => &shop.urls["notification"],
        other => panic!("nobody listens at port {other}: {arguments}"),
    };
    let method = if body.is_some() { Method::POST } else { Method::GET };
    let mut request = shop.http.request(method, format!("{door}{path}"));
    if let Some((name, value)) = header.as_deref().map(|header| header.split_once(": ").unwrap()) {
        request = request.header(name, value);
    }
    if let Some(body) = body {
        request = request.header("content-type", "application/json").body(body);
    }
    let answer = request.send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(status.is_success(), "curl {arguments}\n{status}: {text}");
    text
}

/// As a shell reads them; variables stay as they are.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (vec![], String::new(), None);
    for letter in line.chars().chain([' ']) {
        match (quote, letter) {
            (Some(open), letter) if open == letter => quote = None,
            (None, '\'' | '"') => quote = Some(letter),
            (None, ' ') if word.is_empty() => {}
            (None, ' ') => words.push(std::mem::take(&mut word)),
            (_, letter) => word.push(letter),
        }
    }
    words
}
