//! Who gets in, and as whom.

use crate::{
    door::{Door, assert_problem, gateway},
    issuer::{Issuer, Key, claims},
    upstream::Upstream,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

/// A good token with something changed.
fn with(key: &Key, change: impl FnOnce(&mut Value)) -> String {
    let mut claims = claims("1", "buyer");
    change(&mut claims);
    key.sign(&claims)
}

#[tokio::test]
async fn nobody_orders_without_a_token() {
    let door = Door::open().await;
    let order = door.request(Method::POST, "/orders").json(&json!({ "userId": 1, "productId": 1, "quantity": 1 }));
    let response = order.send().await.unwrap();
    assert!(response.headers().contains_key(header::WWW_AUTHENTICATE));
    assert_problem(response, StatusCode::UNAUTHORIZED, "a token is needed").await;
    assert!(door.upstream.heard().is_empty());
}

#[tokio::test]
async fn a_token_that_has_expired_is_refused() {
    let door = Door::open().await;
    let token = with(&door.key, |claims| claims["exp"] = (get_current_timestamp() - 60).into());
    door.refuses(&token, "expired").await;
}

#[tokio::test]
async fn clocks_may_differ_a_little() {
    let door = Door::open().await;
    let token = with(&door.key, |claims| claims["exp"] = (get_current_timestamp() - 5).into());
    assert_eq!(door.order_with(&token).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_token_that_is_not_valid_yet_is_refused() {
    let door = Door::open().await;
    let token = with(&door.key, |claims| claims["nbf"] = (get_current_timestamp() + 120).into());
    door.refuses(&token, "not valid yet").await;
}

#[tokio::test]
async fn a_token_for_another_audience_is_refused() {
    let door = Door::open().await;
    let token = with(&door.key, |claims| claims["aud"] = json!(["another shop", "the bank"]));
    door.refuses(&token, "for somebody else").await;
}

#[tokio::test]
async fn a_token_from_another_issuer_is_refused() {
    let door = Door::open().await;
    door.refuses(&with(&door.key, |claims| claims["iss"] = "evil".into()), "not from our issuer").await;
}

#[tokio::test]
async fn a_token_without_one_of_the_claims_that_are_checked_is_refused() {
    for claim in ["exp", "iss", "aud"] {
        let door = Door::open().await;
        let token = with(&door.key, |claims| drop(claims.as_object_mut().unwrap().remove(claim)));
        door.refuses(&token, "lacks one of").await;
    }
}

#[tokio::test]
async fn a_token_signed_with_an_unknown_key_is_refused() {
    let door = Door::open().await;
    door.refuses(&Key::new("another").token("1", "buyer"), "a key that we do not know").await;
}

#[tokio::test]
async fn a_token_signed_with_another_key_of_the_same_name_is_refused() {
    let door = Door::open().await;
    door.refuses(&Key::new("key").token("1", "buyer"), "signature is wrong").await;
}

#[tokio::test]
async fn a_token_that_was_changed_is_refused() {
    let door = Door::open().await;
    let (buyer, operator) = (door.buyer(), door.operator());
    let (header, rest) = buyer.split_once('.').unwrap();
    let (_, signature) = rest.split_once('.').unwrap();
    let claims = operator.split('.').nth(1).unwrap();
    door.refuses(&format!("{header}.{claims}.{signature}"), "signature is wrong").await;
}

#[tokio::test]
async fn a_token_without_the_name_of_its_key_is_refused() {
    let door = Door::open().await;
    let token = encode(&Header::new(Algorithm::ES256), &claims("1", "buyer"), &door.key.signing).unwrap();
    door.refuses(&token, "kid").await;
}

#[tokio::test]
async fn a_token_that_demands_what_nobody_understands_is_refused() {
    let door = Door::open().await;
    let header = Header { crit: Some(vec!["soul".into()]), ..door.key.header() };
    door.refuses(&encode(&header, &claims("1", "buyer"), &door.key.signing).unwrap(), "crit").await;
}

#[tokio::test]
async fn a_token_with_alg_none_is_refused() {
    let door = Door::open().await;
    let claims = URL_SAFE_NO_PAD.encode(claims("1", "buyer").to_string());
    let signed = door.buyer();
    let signature = signed.rsplit('.').next().unwrap();
    for none in ["none", "None", "NONE", ""] {
        let header = URL_SAFE_NO_PAD.encode(json!({ "alg": none, "typ": "JWT", "kid": "key" }).to_string());
        for signature in ["", signature] {
            let response = door.order_with(&format!("{header}.{claims}.{signature}")).await;
            assert_problem(response, StatusCode::UNAUTHORIZED, "no token that we know to read").await;
        }
    }
    assert!(door.upstream.heard().is_empty());
}

#[tokio::test]
async fn a_token_signed_with_the_public_key_as_a_secret_is_refused() {
    let door = Door::open().await;
    let public = door.key.public();
    let coordinate = |name: &str| URL_SAFE_NO_PAD.decode(public[name].as_str().unwrap()).unwrap();
    let point = [vec![4], coordinate("x"), coordinate("y")].concat();
    let der = [&b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00"[..], &point].concat();
    let json = public.to_string().into_bytes();
    for secret in [point, der, coordinate("x"), json] {
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let header = Header { kid: Some("key".into()), ..Header::new(algorithm) };
            let token = encode(&header, &claims("1", "buyer"), &EncodingKey::from_secret(&secret)).unwrap();
            let response = door.order_with(&token).await;
            assert_problem(response, StatusCode::UNAUTHORIZED, "algorithm is not that of its key").await;
        }
    }
    assert!(door.upstream.heard().is_empty());
}

#[tokio::test]
async fn a_shared_secret_among_the_keys_is_no_key() {
    let secret = b"a secret that everybody can read";
    let shared = json!({ "kty": "oct", "kid": "shared", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(secret) });
    let key = Key::new("key");
    let jwks = json!({ "keys": [shared, key.public()] }).to_string();
    let door = Door::open_trusting(key, &["--jwks", &jwks]).await;
    let header = Header { kid: Some("shared".into()), ..Header::new(Algorithm::HS256) };
    let token = encode(&header, &claims("1", "buyer"), &EncodingKey::from_secret(secret)).unwrap();
    door.refuses(&token, "a key that we do not know").await;
}

#[tokio::test]
async fn what_is_no_token_is_refused() {
    let door = Door::open().await;
    let long = "x".repeat(10_000);
    for given in
        ["Bearer", "Bearer ", "Bearer x", "Bearer a.b.c", "Basic dXNlcjpwYXNzd29yZA==", "Bearer ' OR 1=1 --", &long]
    {
        let response =
            door.request(Method::GET, "/orders?userId=1").header("authorization", given).send().await.unwrap();
        assert_problem(response, StatusCode::UNAUTHORIZED, "").await;
    }
    let twice = door.request(Method::GET, "/orders?userId=1").bearer_auth(door.buyer()).bearer_auth(door.operator());
    assert_problem(twice.send().await.unwrap(), StatusCode::UNAUTHORIZED, "one Authorization header").await;
    assert!(door.upstream.heard().is_empty());
}

#[tokio::test]
async fn keys_of_the_edwards_curve_are_as_good() {
    let key = Key::edwards("ed");
    let jwks = json!({ "keys": [key.public()] }).to_string();
    let door = Door::open_trusting(key, &["--jwks", &jwks]).await;
    assert_eq!(door.order_with(&door.buyer()).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn the_services_hear_who_asks_from_nobody_but_the_gateway() {
    let door = Door::open().await;
    let forged = |request: reqwest::RequestBuilder| {
        request.header("x-user-id", "2").header("X-User-Id", "3").header("X-ROLES", "operator")
    };
    forged(door.request(Method::GET, "/orders?userId=1")).bearer_auth(door.buyer()).send().await.unwrap();
    let heard = door.upstream.heard_once();
    let told = |name: &str| heard.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!((told("x-user-id"), told("x-roles")), (vec!["1"], vec!["buyer"]));
    assert_eq!(told("authorization"), Vec::<&str>::new(), "the token stays at the gateway");

    // Nor when the gateway knows nobody.
    let door = Door::open().await;
    forged(door.request(Method::GET, "/products")).send().await.unwrap();
    let heard = door.upstream.heard_once();
    assert!(!heard.headers.contains_key("x-user-id") && !heard.headers.contains_key("x-roles"));
}

#[tokio::test]
async fn a_name_that_would_forge_a_header_is_nobodys() {
    let door = Door::open().await;
    for user in ["1\r\nx-roles: operator", "", "1 2", "ü"] {
        let response = door.order_with(&door.key.token(user, "buyer")).await;
        assert_problem(response, StatusCode::UNAUTHORIZED, "impossible name").await;
    }
    assert!(door.upstream.heard().is_empty());
}

#[tokio::test]
async fn a_buyer_gets_nothing_of_another_buyer_by_its_address() {
    let door = Door::open().await;
    for path in [
        "/orders",
        "/orders?userId=2",
        "/orders?userId=1&userId=2",
        "/orders?userId=2%27%20OR%20%271%27=%271",
        "/api/v1/orders?userId=2",
        "/notifications?userId=2",
        "/deliveries?userId=2",
        "/accounts/2",
        "/users/2",
        "/inventory/1",
        "/accounts/1/2",
    ] {
        assert_problem(door.get_with(&door.buyer(), path).await, StatusCode::FORBIDDEN, "").await;
    }
    assert!(door.upstream.heard().is_empty());
    for path in ["/orders?userId=2", "/accounts/2", "/inventory/1", "/deliveries"] {
        assert_eq!(door.get_with(&door.operator(), path).await.status(), StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn who_has_no_role_of_ours_gets_what_everybody_gets() {
    let door = Door::open().await;
    let token = door.key.token("1", "admin");
    assert_problem(door.order_with(&token).await, StatusCode::FORBIDDEN, "only buyers").await;
    assert_problem(door.get_with(&token, "/orders/x").await, StatusCode::FORBIDDEN, "").await;
    assert!(door.upstream.heard().is_empty());
    assert_eq!(door.get_with(&token, "/products").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn keys_change_without_a_restart() {
    let (old, new) = (Key::new("old"), Key::new("new"));
    let issuer = Issuer::with(&[&old]).await;
    let door = Door::open_trusting(old, &["--jwks-url", &issuer.url, "--jwks-pause", "0.2"]).await;
    assert_eq!(door.order_with(&door.buyer()).await.status(), StatusCode::OK);

    // Both, then only the new one: once that is known, tokens of the old one end.
    issuer.has(&[&door.key, &new]);
    until_accepted(&door, &new).await;
    assert_eq!(door.order_with(&door.buyer()).await.status(), StatusCode::OK);
    let third = Key::new("third");
    issuer.has(&[&new, &third]);
    until_accepted(&door, &third).await;
    assert_eq!(door.order_with(&new.token("1", "buyer")).await.status(), StatusCode::OK);
    assert_problem(door.order_with(&door.buyer()).await, StatusCode::UNAUTHORIZED, "a key that we do not know").await;
}

/// There is a pause between two looks at the keys.
async fn until_accepted(door: &Door, key: &Key) {
    let patience = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while door.order_with(&key.token("1", "buyer")).await.status() != StatusCode::OK {
        assert!(tokio::time::Instant::now() < patience, "the new key is not found");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn invented_keys_do_not_make_it_fetch_more_than_once_in_a_pause() {
    let key = Key::new("key");
    let issuer = Issuer::with(&[&key]).await;
    let door = Door::open_trusting(key, &["--jwks-url", &issuer.url, "--jwks-pause", "3600"]).await;
    let invented = Key::new("invented").token("1", "buyer");
    let answers = futures::future::join_all((0..50).map(|_| door.order_with(&invented))).await;
    assert!(answers.iter().all(|answer| answer.status() == StatusCode::UNAUTHORIZED));
    assert_eq!(issuer.asked(), 1, "at the start");
    assert!(door.upstream.heard().is_empty());
}

#[tokio::test]
async fn known_keys_are_good_while_the_issuer_is_away() {
    let (key, new) = (Key::new("key"), Key::new("new"));
    let issuer = Issuer::with(&[&key]).await;
    let door = Door::open_trusting(key, &["--jwks-url", &issuer.url, "--jwks-pause", "0"]).await;
    issuer.fails();
    // Nobody can tell whether there is such a key: that is not the caller's fault.
    let response = door.order_with(&new.token("1", "buyer")).await;
    assert!(response.headers().contains_key(header::RETRY_AFTER));
    assert_problem(response, StatusCode::SERVICE_UNAVAILABLE, "cannot be looked up").await;
    assert!(issuer.asked() > 1 && door.upstream.heard().is_empty());
    assert_eq!(door.order_with(&door.buyer()).await.status(), StatusCode::OK);
    issuer.has(&[&new]);
    assert_eq!(door.order_with(&new.token("1", "buyer")).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_gateway_starts_while_the_issuer_is_away() {
    let key = Key::new("key");
    let issuer = Issuer::with(&[&key]).await;
    issuer.fails();
    let door = Door::open_trusting(key, &["--jwks-url", &issuer.url, "--jwks-pause", "0"]).await;
    assert_eq!(door.get("/products").await.status(), StatusCode::OK);
    assert_eq!(door.order_with(&door.buyer()).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    issuer.has(&[&door.key]);
    assert_eq!(door.order_with(&door.buyer()).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn without_an_issuer_it_hands_out_tokens_for_a_key_of_its_own() {
    let upstream = Upstream::start().await;
    let (_process, url, mut said) = gateway(&upstream.url, &[]).await;
    let mut tokens = vec![];
    while tokens.len() < 2 {
        let line = said.next_line().await.unwrap().unwrap();
        tokens.extend(
            line.split_once('=').filter(|(name, _)| ["BUYER", "OPERATOR"].contains(name)).map(|(_, it)| it.to_owned()),
        );
    }
    let http = reqwest::Client::new();
    for (token, path) in tokens.iter().zip(["/orders?userId=1", "/inventory/1"]) {
        let response = http.get(format!("{url}{path}")).bearer_auth(token).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
    let keys: Value = http.get(format!("{url}/.well-known/jwks.json")).send().await.unwrap().json().await.unwrap();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 1);
    assert!(keys["keys"][0].get("d").is_none(), "the private part stays private");

    // Another gateway has another key.
    let (_process, another, _said) = gateway(&upstream.url, &[]).await;
    let response = http.get(format!("{another}/orders?userId=1")).bearer_auth(&tokens[0]).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn no_auth_lets_everybody_in_as_nobody_and_says_so() {
    let upstream = Upstream::start().await;
    let (_process, url, mut said) = gateway(&upstream.url, &["--no-auth"]).await;
    while !said.next_line().await.unwrap().unwrap().contains("--no-auth: everybody") {}
    let request =
        reqwest::Client::new().get(format!("{url}/inventory/1")).header("x-user-id", "1").header("x-roles", "operator");
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    assert!(!upstream.heard_once().headers.keys().any(|name| name.as_str().starts_with("x-")));
}

#[tokio::test]
async fn keys_that_cannot_be_used_are_said_at_the_start() {
    for (flag, value, why) in [
        ("--jwks", "{", "--jwks is no key set"),
        ("--jwks", r#"{"keys":[]}"#, "--jwks has no public key"),
        ("--jwks-url", "https://issuer.example/jwks.json", "add the feature rustls"),
    ] {
        let process = tokio::process::Command::new(env!("CARGO_BIN_EXE_ecommerce"))
            .args(["serve", "gateway", "--listen", "127.0.0.1:0", flag, value])
            .output()
            .await
            .unwrap();
        assert_eq!(process.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&process.stderr).contains(why));
    }
}
