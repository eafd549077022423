//! The tour.

use crate::open::{ecommerce, ecommerce_on_a_real_broker};
use std::process::{Output, Stdio};

#[tokio::test]
async fn the_tour_ends_with_books_that_balance() {
    let told = assert_told(&ecommerce().output().await.unwrap());
    for line in [
        "private, started from the binaries on this machine",
        "embedded, a mock in this process",
        "├─ charge-payment ───────────────────────▶ ✗ payment declined",
        "├─ undo reserve-stock ────▶ ✓",
        "├─ reserve-stock ─────────▶ ✗ out of stock",
        "✓ 99 are out of stock",
        "├─ charge-payment ───────────────────────▶ … not yet",
        "kill -9",
        "┊  ✝ the process that ran it is gone; another one takes over",
        "✓ user 6 paid 360000, once",
        "✓ the payment service answers a second time, as before",
        "╰─ CONFIRMED",
        "They balance",
    ] {
        assert!(told.contains(line), "{line} is missing in:\n{told}");
    }
    assert!(!told.lines().any(|line| line.starts_with(" ✗")), "{told}");
    let pictures = told.lines().skip_while(|line| !line.starts_with("1. ")).take_while(|line| *line != "The books");
    for line in pictures {
        assert!(line.chars().count() <= 100, "{line} is too long for a screen");
    }
}

#[tokio::test]
async fn the_tours_output_is_the_same_over_http_the_embedded_broker_and_a_real_one() {
    let over_http = ecommerce().args(["tour", "--transport", "http"]).output().await.unwrap();
    let embedded = ecommerce().output().await.unwrap();
    let real = ecommerce_on_a_real_broker().stderr(Stdio::piped()).output().await.unwrap();
    let complaints = String::from_utf8_lossy(&real.stderr);
    assert!(
        real.status.success(),
        "the tour needs a real Kafka: set KAFKA_BROKERS, or install Java 17 and Maven\n{complaints}"
    );
    let (over_http, embedded) = (assert_told(&over_http), assert_told(&embedded));
    let real = String::from_utf8(real.stdout).unwrap();
    for (told, broker) in [(&over_http, "commands over HTTP"), (&embedded, "embedded"), (&real, "in KAFKA_BROKERS")] {
        assert!(told.contains(broker), "{broker} is missing in:\n{told}");
    }
    assert_eq!(story(&over_http), story(&embedded));
    assert_eq!(story(&over_http), story(&real));
}

/// What a tour told on stdout; on stderr it has nothing to say, but how slow the machine was.
fn assert_told(tour: &Output) -> String {
    let (told, said) = (String::from_utf8_lossy(&tour.stdout), String::from_utf8_lossy(&tour.stderr));
    assert!(tour.status.success(), "{told}\n{said}");
    let said: Vec<&str> = said.lines().filter(|line| !IS_SLOW.iter().any(|words| line.contains(words))).collect();
    assert_eq!(said, [""; 0], "nothing is mixed into the story");
    told.into_owned()
}

/// What an engine warns of when its process, or the server, does not get to its work.
const IS_SLOW: [&str; 4] = [
    "the engine's runtime does not get to its tasks",
    "the heartbeat was not answered",
    "the lease lapsed: others take over",
    "another transaction holds the saga's row",
];

/// What a tour told, without addresses, process ids and times. Whether somebody had to be waited for is a matter of time, too, and so is how a hundred orders
/// at once went: a busy machine may take its time, and the order's process be taken for lost.
fn story(told: &str) -> Vec<String> {
    let start = told.find("1. A happy order").unwrap();
    let (hundred, after) = (told.find("   who got it:").unwrap(), told.find("5. A service that is away").unwrap());
    let lines = told[start..hundred].lines().chain(told[after..].lines());
    lines
        .filter(|line| !line.contains("… not yet (asked "))
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let follows = |place: usize| place.checked_sub(1).map(|before| words[before]);
            let told = words.iter().enumerate().map(|(place, word)| match follows(place) {
                Some("-9" | "process") if word.starts_with(|letter: char| letter.is_ascii_digit()) => "<id>",
                _ => word,
            });
            without_time(&told.collect::<Vec<_>>().join(" "))
        })
        .collect()
}

/// In a picture, it is the first column.
fn without_time(line: &str) -> String {
    match line.trim_start().split_once(" s ") {
        Some((time, rest)) if time.parse::<f64>().is_ok() => format!("<time> {}", rest.trim_start()),
        _ => line.into(),
    }
}
