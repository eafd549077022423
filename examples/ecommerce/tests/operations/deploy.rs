//! What the shop is deployed with: it parses, and asks for figures that the shop has.

use crate::opened::Shop;
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeSet, fs, path::Path};

/// Prometheus' own.
const NOT_OURS: [&str; 1] = ["up"];
/// What stands where a figure could.
const WORDS: [&str; 12] =
    ["by", "histogram_quantile", "increase", "le", "max", "rate", "sum", "job", "group", "topic", "saga_name", "for"];

#[derive(Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    alert: String,
    expr: String,
    annotations: Annotations,
}

#[derive(Deserialize)]
struct Annotations {
    summary: String,
}

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)).unwrap()
}

/// The figures that an expression asks for: its names outside of labels, ranges and what is grouped by.
fn asked_for(expression: &str) -> BTreeSet<String> {
    let mut text = String::new();
    let (mut labels, mut quoted) = (0, false);
    for letter in expression.chars() {
        match letter {
            '"' => quoted = !quoted,
            '{' | '[' if !quoted => labels += 1,
            '}' | ']' if !quoted => labels -= 1,
            _ if !quoted && labels == 0 => text.push(letter),
            _ => {}
        }
    }
    while let Some(grouping) = text.find("by (") {
        let end = text[grouping..].find(')').unwrap() + grouping;
        text.replace_range(grouping..=end, "");
    }
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let names = words.filter(|word| word.starts_with(|letter: char| letter.is_ascii_alphabetic()));
    names.filter(|word| !WORDS.contains(word) && !NOT_OURS.contains(word)).map(Into::into).collect()
}

/// All expressions of the dashboard and of the alert rules.
fn expressions() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("grafana/ecommerce.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut all: Vec<String> = targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    assert!(all.len() > 20, "{all:?}");
    let rules: Rules = serde_saphyr::from_str(&read("prometheus/alerts.yaml")).unwrap();
    let rules: Vec<Rule> = rules.groups.into_iter().flat_map(|group| group.rules).collect();
    assert!(
        rules.len() >= 10 && rules.iter().all(|rule| !rule.alert.is_empty() && !rule.annotations.summary.is_empty())
    );
    all.extend(rules.into_iter().map(|rule| rule.expr));
    all
}

#[tokio::test]
async fn dashboard_and_alerts_ask_for_figures_that_the_shop_has() {
    let shop = Shop::open(&[]).await;
    shop.order(1, 1, &[]).await;
    let awaited: BTreeSet<String> = expressions().iter().flat_map(|expression| asked_for(expression)).collect();
    assert!(awaited.contains("saga_parked") && awaited.contains("order_latency_seconds_bucket"), "{awaited:?}");
    shop.assert_has_figures(&awaited).await;
}
