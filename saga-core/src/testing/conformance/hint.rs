//! `hint` and `hints`.

use super::trial::{Trial, Verdict};
use crate::store::Hint;
use std::time::Duration;
use tokio::{sync::broadcast::error::RecvError, time::timeout};

/// A hint may get lost, but not every one of many.
pub(super) async fn a_hint_reaches_those_who_listen(trial: Trial) -> Verdict {
    for hint in [Hint::Work, Hint::Mail, Hint::Ended] {
        let (mut one, mut other) = (trial.store().hints(), trial.store().hints());
        for listener in [&mut one, &mut other] {
            eventually!("a hint to reach a listener", {
                trial.store().hint(hint);
                match timeout(Duration::from_millis(100), listener.recv()).await {
                    Ok(Ok(heard)) => (heard == hint).then_some(()),
                    Ok(Err(RecvError::Closed)) => promise_closed()?,
                    Ok(Err(RecvError::Lagged(_))) | Err(_) => None,
                }
            });
        }
    }
    Ok(())
}

fn promise_closed() -> Result<Option<()>, super::Broken> {
    Err(super::Broken::new("the hints ended while the store was in use"))
}

pub(super) async fn a_hint_needs_no_listener(trial: Trial) -> Verdict {
    for _ in 0..1000 {
        trial.store().hint(Hint::Work);
    }
    drop(trial.store().hints());
    trial.store().hint(Hint::Ended);
    trial.clerk().await.map(drop)
}
