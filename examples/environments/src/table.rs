//! One environment after the other, and a line for each.

use crate::{
    Result,
    books::Verdict,
    rows::{self, Row, Story},
    world::World,
};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// No environment takes longer, whatever hangs.
const PATIENCE: Duration = Duration::from_secs(180);

#[derive(Debug, clap::Args)]
pub struct Plan {
    /// Only what needs no more than the packages of this system.
    #[arg(long)]
    short: bool,
    /// Only environments with this in their names.
    #[arg(long)]
    only: Option<String>,
    /// Where `scripts/ensure-environments` puts what it fetches.
    #[arg(long, default_value = "target/environments")]
    tools: PathBuf,
}

/// Tries them all. An error if one of them fails.
pub async fn run(plan: &Plan) -> Result<()> {
    let world = World::open(&plan.tools).await?;
    let wanted =
        |row: &&Row| (row.short || !plan.short) && plan.only.as_ref().is_none_or(|text| row.environment.contains(text));
    println!("| environment | what was done | completed | rolled back | parked | unfinished | seconds | verdict |");
    println!("|---|---|---|---|---|---|---|---|");
    let (began, mut tried, mut failed) = (Instant::now(), 0, vec![]);
    for row in rows::all().filter(wanted) {
        let (begins, which) = (Instant::now(), row.environment);
        world.begin(which);
        let story = timeout(PATIENCE, (row.run)(&world)).await;
        let story = story.unwrap_or_else(|_| Err(format!("not over within {PATIENCE:?}").into()));
        let objections = objections(&story);
        let (done, counts) = match &story {
            Ok(Story { done, verdict: Some(verdict), .. }) => {
                let Verdict { completed, rolled_back, parked, unfinished, .. } = verdict;
                let again = match verdict.repeated() {
                    0 => String::new(),
                    calls => format!("; {calls} calls made again"),
                };
                (format!("{done}{again}"), format!("{completed} | {rolled_back} | {parked} | {unfinished}"))
            }
            Ok(Story { done, .. }) => (done.clone(), "| | |".into()),
            Err(_) => (String::new(), "| | |".into()),
        };
        let says = if objections.is_empty() { "passed" } else { "FAILED" };
        println!("| {which} | {} | {counts} | {:.1} | {says} |", on_a_line(&done), begins.elapsed().as_secs_f64());
        tried += 1;
        if !objections.is_empty() {
            failed.push((which, objections));
        }
    }
    println!("\n{tried} environments in {:.0} s, {} failed", began.elapsed().as_secs_f64(), failed.len());
    for (which, objections) in &failed {
        println!("\n{which}:");
        objections.iter().take(5).for_each(|objection| println!("    {objection}"));
        if objections.len() > 5 {
            println!("    and {} more", objections.len() - 5);
        }
    }
    world.books.stop().await;
    match (tried, failed.len()) {
        (0, _) => Err("no environment was tried".into()),
        (_, 0) => Ok(()),
        (_, failed) => Err(format!("{failed} environments failed").into()),
    }
}

/// What is wrong.
fn objections(story: &Result<Story>) -> Vec<String> {
    match story {
        Err(error) => vec![on_a_line(&error.to_string())],
        Ok(Story { verdict: None, .. }) => vec![],
        Ok(Story { verdict: Some(verdict), quiet, .. }) => {
            let calls = verdict.refused.iter().filter(|(call, _)| *quiet && !is_the_users_own(call));
            let calls =
                calls.map(|(call, times)| format!("nothing was in the way, but {times} calls ended so: {call}"));
            verdict.wrong.iter().cloned().chain(calls).collect()
        }
    }
}

/// Whoever runs serializable transactions has to run them again now and then.
fn is_the_users_own(call: &str) -> bool {
    call.starts_with("submit in a transaction: ") && call.contains("could not serialize access")
}

fn on_a_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
