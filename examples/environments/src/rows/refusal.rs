//! What cannot work is refused: at connect, migrate or start, soon, and in words that say what to do.

use crate::{
    Result,
    place::Place,
    workload::{Errand, Ledger},
};
use saga_core::Engine;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// How long a refusal may take.
const SOON: Duration = Duration::from_secs(3);

/// Who begins here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A service that migrates at its start.
    Migrating,
    /// One that leaves it to somebody else.
    AsItIs,
}

/// Starts an engine as a service does, which has to be refused: with an error whose text has each of `words`, or one of
/// them where several stand with a `|` between them. Says how that went.
pub async fn expect(place: &Place, start: Start, words: &[&str]) -> Result<String> {
    let began = Instant::now();
    let error = match timeout(Duration::from_secs(30), begin(place, start)).await {
        Ok(Ok(())) => return Err("it started, and should have been refused".into()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => return Err("neither refused nor started within 30 s".into()),
    };
    let (took, text) = (began.elapsed(), error.to_lowercase());
    let has = |words: &&str| words.split('|').any(|word| text.contains(&word.to_lowercase()));
    if let Some(missing) = words.iter().find(|words| !has(words)) {
        return Err(format!("the refusal does not say `{missing}`: {error}").into());
    }
    if took > SOON {
        return Err(format!("refused only after {:.1} s: {error}", took.as_secs_f64()).into());
    }
    Ok(format!("refused after {:.1} s: {error}", took.as_secs_f64()))
}

async fn begin(place: &Place, start: Start) -> Result<()> {
    let store = place.connect().await?;
    if start == Start::Migrating {
        store.migrate().await?;
    }
    // Nothing will run: no step gets to write to this ledger.
    let ledger = Ledger::connect(&place.url, "nobody")?;
    let engine = Engine::builder(store).register::<Errand>(ledger)?.start().await?;
    engine.kill().await;
    Ok(())
}
