//! Too much, too slow, too often.

use crate::door::{Door, assert_problem};
use futures::stream;
use reqwest::{Body, Method, StatusCode, header};
use serde_json::Value;
use std::{convert::Infallible, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_body_of_10_mb_is_refused() {
    let door = Door::open().await;
    let order = door.request(Method::POST, "/orders").bearer_auth(door.buyer()).body(vec![b' '; 10_000_000]);
    assert_problem(order.send().await.unwrap(), StatusCode::PAYLOAD_TOO_LARGE, "65536 bytes").await;
    assert!(door.upstream.heard().is_empty());
}

#[tokio::test]
async fn a_body_that_says_it_is_large_is_refused_before_it_comes() {
    let door = Door::open().await;
    let head = format!(
        "POST /orders HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 10000000\r\n\r\n",
        door.buyer()
    );
    let (status, _) = said(&door, head.as_bytes()).await;
    assert_eq!(status, 413);
    assert!(door.upstream.heard().is_empty());
}

#[tokio::test]
async fn a_body_that_does_not_say_how_large_it_is_is_read_up_to_the_limit() {
    let door = Door::open().await;
    let endless = stream::repeat_with(|| Ok::<_, Infallible>(vec![b' '; 10_000]));
    let order = door.request(Method::POST, "/orders").bearer_auth(door.buyer()).body(Body::wrap_stream(endless));
    // Whoever goes on sending may miss the answer, but not be heard.
    if let Ok(response) = order.send().await {
        assert_problem(response, StatusCode::PAYLOAD_TOO_LARGE, "65536 bytes").await;
    }
    let small = stream::iter([Ok::<_, Infallible>(vec![b' '; 65_537])]);
    let order = door.request(Method::POST, "/orders").bearer_auth(door.buyer()).body(Body::wrap_stream(small));
    assert_problem(order.send().await.unwrap(), StatusCode::PAYLOAD_TOO_LARGE, "65536 bytes").await;
    assert!(door.upstream.heard().is_empty());
    let order = door.request(Method::POST, "/orders").bearer_auth(door.buyer()).body(vec![b' '; 65_536]);
    assert_eq!(order.send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(door.upstream.heard_once().body.len(), 65_536);
}

#[tokio::test]
async fn a_head_that_comes_too_slowly_is_refused() {
    let door = Door::open_with(&["--header-timeout", "0.5"]).await;
    let (status, problem) = dripped(&door, b"POST /orders HTTP/1.1\r\nHost: x\r\nX-Slow: ").await;
    assert_eq!((status, &problem["status"]), (408, &408.into()));
    assert!(door.upstream.heard().is_empty());
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_is_refused() {
    let door = Door::open_with(&["--body-timeout", "0.5"]).await;
    let head = format!(
        "POST /orders HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 1000\r\n\r\n",
        door.buyer()
    );
    let (status, problem) = dripped(&door, head.as_bytes()).await;
    assert_eq!((status, &problem["status"]), (408, &408.into()));
    assert!(door.upstream.heard().is_empty());
}

#[tokio::test]
async fn a_connection_on_which_nobody_asks_is_closed_without_a_word() {
    let door = Door::open_with(&["--header-timeout", "0.3"]).await;
    let mut connection = TcpStream::connect(door.url.trim_start_matches("http://")).await.unwrap();
    let mut answer = vec![];
    timeout(PATIENCE, connection.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, b"");
}

#[tokio::test]
async fn slow_clients_keep_nobody_else_out() {
    let door = Door::open_with(&["--header-timeout", "20"]).await;
    let mut slow = vec![];
    for _ in 0..300 {
        let mut connection = TcpStream::connect(door.url.trim_start_matches("http://")).await.unwrap();
        connection.write_all(b"GET /products HTTP/1.1\r\nX-").await.unwrap();
        slow.push(connection);
    }
    assert_eq!(timeout(PATIENCE, door.get("/products")).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let door = Door::open().await;
    let request = door.request(Method::GET, "/products").header("x-long", "x".repeat(1_000_000));
    if let Ok(response) = request.send().await {
        assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    assert!(door.upstream.heard().is_empty());
}

#[tokio::test]
async fn too_many_requests_of_one_user_are_refused_and_no_others() {
    let door = Door::open_with(&["--rate", "1", "--burst", "5"]).await;
    let token = door.buyer();
    let answers = futures::future::join_all((0..30).map(|_| door.order_with(&token))).await;
    let (good, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status() == StatusCode::OK);
    assert_eq!(door.upstream.heard().len(), good.len());
    // A slow machine lets one more a second.
    assert!((5..15).contains(&good.len()), "{}", good.len());
    for answer in refused {
        let wait: u64 = answer.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
        assert!((1..=2).contains(&wait));
        assert_problem(answer, StatusCode::TOO_MANY_REQUESTS, "too many requests").await;
    }
    assert_eq!(door.order_with(&door.key.token("2", "buyer")).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn who_waits_as_told_may_ask_again() {
    let door = Door::open_with(&["--rate", "1", "--burst", "1"]).await;
    let token = door.buyer();
    let began = Instant::now();
    while door.order_with(&token).await.status() != StatusCode::TOO_MANY_REQUESTS {
        assert!(began.elapsed() < PATIENCE);
    }
    let answer = door.order_with(&token).await;
    if answer.status() == StatusCode::TOO_MANY_REQUESTS {
        let wait = answer.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
        tokio::time::sleep(Duration::from_secs(wait)).await;
    }
    assert_eq!(door.order_with(&token).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn who_tries_tokens_is_counted_by_their_address() {
    let door = Door::open_with(&["--rate", "1", "--burst", "5"]).await;
    let tries = futures::future::join_all((0..30).map(|i| {
        let token = crate::issuer::Key::new("key").token(&i.to_string(), "buyer");
        let door = &door;
        async move { door.order_with(&token).await.status() }
    }))
    .await;
    assert!(tries.contains(&StatusCode::UNAUTHORIZED) && tries.contains(&StatusCode::TOO_MANY_REQUESTS));
    assert!(door.upstream.heard().is_empty());
    assert_eq!(door.order_with(&door.buyer()).await.status(), StatusCode::OK, "the owner of a good token is not");
}

/// The answer to these bytes, though no more come.
async fn said(door: &Door, bytes: &[u8]) -> (u16, Value) {
    let mut connection = TcpStream::connect(door.url.trim_start_matches("http://")).await.unwrap();
    connection.write_all(bytes).await.unwrap();
    answer(&mut connection).await
}

/// The answer to these bytes, with one more now and then.
async fn dripped(door: &Door, bytes: &[u8]) -> (u16, Value) {
    let mut connection = TcpStream::connect(door.url.trim_start_matches("http://")).await.unwrap();
    connection.write_all(bytes).await.unwrap();
    let (mut reader, mut writer) = connection.into_split();
    let drip = tokio::spawn(async move {
        while writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let answer = answer(&mut reader).await;
    drip.abort();
    answer
}

async fn answer(connection: &mut (impl AsyncReadExt + Unpin)) -> (u16, Value) {
    let mut answer = vec![];
    timeout(PATIENCE, connection.read_to_end(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.to_lowercase().contains("application/problem+json"), "{head}");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}
