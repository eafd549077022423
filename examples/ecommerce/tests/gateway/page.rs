//! The page, as a person sees it: in a browser.

use crate::{browser::Browser, shop::Shop};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;
use std::{fs, path::Path};

/// With a name like this, whoever puts it into the page as HTML runs it.
const NAME: &str = r#"<img src="/nowhere" onerror="window.executed = 1"><script>window.executed = 1</script>"#;

/// For people to look at.
async fn picture(browser: &Browser, name: &str) {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("page-{name}.png"));
    fs::write(file, STANDARD.decode(browser.picture().await).unwrap()).unwrap();
}

/// The newest order on the page has ended like this, and the page heard so by events: it never asked for the order.
async fn ended(browser: &Browser, state: &str) {
    browser.until(&format!("document.querySelector('#orders li')?.dataset.state === '{state}'")).await;
    browser.until("/Completed|RolledBack/.test(document.querySelector('#orders .saga').textContent)").await;
    let newest = "document.querySelector('#orders li').id.slice('order-'.length)";
    let called = "performance.getEntriesByType('resource').map((it) => new URL(it.name).pathname)";
    browser.until(&format!("{called}.includes(`/orders/${{{newest}}}/events`)")).await;
    assert_eq!(browser.run(&format!("return {called}.includes(`/orders/${{{newest}}}`)")).await, json!(false));
    browser.until("document.querySelectorAll('#orders li:first-child .steps li').length > 4").await;
}

async fn text(browser: &Browser, selector: &str) -> String {
    let text = browser.run(&format!("return document.querySelector('{selector}').textContent")).await;
    text.as_str().unwrap().to_owned()
}

#[tokio::test]
async fn in_a_browser_a_buyer_orders_and_follows_it_live_and_an_operator_sees_the_books() {
    let (shop, browser) = tokio::join!(Shop::open(), Browser::open());
    let rename = sqlx::query("UPDATE product SET name = $1 WHERE id = 3").bind(NAME);
    rename.execute(&mut shop.database("product").await).await.unwrap();
    let link = |user, role| format!("{}/#token={}", shop.gateway, shop.key.token(user, role));

    // Nobody yet: there is something to look at, and nothing of anybody.
    browser.visit(&shop.gateway).await;
    browser.until("document.querySelectorAll('#products li').length > 2").await;
    assert_eq!(text(&browser, "#who").await, "Nobody is signed in.");

    // The link brings the token along, also into a page that is open; the address forgets it.
    browser.visit(&link("1", "buyer")).await;
    browser.until("document.getElementById('who').textContent === 'Signed in as 1 (buyer).'").await;
    assert_eq!(browser.run("return location.hash").await, json!(""));
    browser.click("#product-1 button").await;
    ended(&browser, "CONFIRMED").await;
    let steps = text(&browser, "#orders li:first-child .steps").await;
    assert!(steps.contains("reserve-stock") && steps.contains("confirm-order"), "{steps}");

    assert_eq!(text(&browser, "#product-3 h3").await, NAME);
    browser.write("#product-3 .quantity", "2").await;
    browser.click("#product-3 button").await;
    browser.until("document.querySelectorAll('#orders > li').length === 2").await;
    ended(&browser, "CONFIRMED").await;
    assert!(text(&browser, "#orders h3").await.starts_with(&format!("2 × {NAME}, ")));
    browser.click("#orders summary").await;
    picture(&browser, "buyer").await;

    browser.visit(&link("2", "buyer")).await;
    browser.until("document.getElementById('who').textContent === 'Signed in as 2 (buyer).'").await;
    browser.until("document.querySelectorAll('#orders > li').length === 0").await;
    browser.click("#product-1 button").await;
    ended(&browser, "CANCELLED").await;
    assert_eq!(text(&browser, "#orders .reason").await, "payment declined");
    assert_eq!(browser.run("return document.getElementById('books').hidden").await, json!(true));
    picture(&browser, "declined").await;

    browser.visit(&link("operator", "operator")).await;
    browser.until("!document.getElementById('books').hidden").await;
    browser.until("document.getElementById('look-again').click() ?? document.getElementById('balance').textContent === 'They balance.'").await;
    assert!(browser.run("return document.querySelectorAll('#lines tr').length").await.as_i64() > Some(4));
    // What became of an order from before.
    browser.click("#orders summary").await;
    browser.until("/release|undone|compensat/.test(document.querySelector('#orders .steps').textContent)").await;
    assert_eq!(text(&browser, "#orders .reason").await, "payment declined");
    assert_eq!(
        browser.run("return getComputedStyle(document.querySelector('#products form')).display").await,
        json!("none")
    );
    picture(&browser, "operator").await;

    browser.click("#sign-out").await;
    browser.until("document.getElementById('books').hidden && !document.querySelector('#orders > li')").await;

    assert_eq!(
        browser.run("return [window.executed ?? 0, document.querySelectorAll('main img, main script').length]").await,
        json!([0, 0])
    );
    assert_eq!(browser.console().await, Vec::<String>::new());
    browser.close().await;
}
