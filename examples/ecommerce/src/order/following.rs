//! Following an order to its end: by waiting for an answer, or as server-sent events.

use super::Orders;
use crate::problem::Problem;
use axum::{
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures::stream;
use saga_core::SagaId;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{convert::Infallible, time::Duration};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use uuid::Uuid;

const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How often somebody who follows an order is told what is new.
const POLL: Duration = Duration::from_millis(200);
/// The id of the last event.
const END: &str = "end";

/// `?wait=5s`
#[derive(Deserialize)]
pub struct Wait {
    wait: Option<String>,
}

impl Wait {
    /// Seconds, or with a unit: `5`, `5s`, `500ms`.
    pub fn duration(&self) -> Result<Duration, Problem> {
        let Some(wait) = &self.wait else { return Ok(Duration::ZERO) };
        let (number, unit) = match wait.strip_suffix("ms") {
            Some(number) => (number, Duration::from_millis(1)),
            None => (wait.strip_suffix('s').unwrap_or(wait), Duration::from_secs(1)),
        };
        let duration = number.parse().ok().and_then(|number| unit.checked_mul(number));
        duration.filter(|duration| *duration <= LONGEST_WAIT).ok_or_else(|| {
            Problem::new(StatusCode::BAD_REQUEST, "`wait` is a time such as 5s or 500ms, of 30s at most")
        })
    }
}

impl Orders {
    /// The order when it has ended, though not later than after this time, nor after the service was told to stop.
    pub async fn awaited(&self, saga: SagaId, wait: Duration) -> Result<Value, Problem> {
        if !wait.is_zero() {
            tokio::select! {
                _ = timeout(wait, self.sagas.outcome(saga)) => {}
                () = self.stop.cancelled() => {}
            }
        }
        self.look_up(saga).await
    }
}

pub fn has_ended(order: &Value) -> bool {
    order["saga"] == "Completed" || order["saga"] == "RolledBack"
}

/// First the order as it is; then what its saga's journal has to say, line by line, from the first one; then the order as it ended. A client that comes again with the id
/// of what it heard last goes on from there.
pub async fn events(
    State(orders): State<Orders>,
    Path(id): Path<Uuid>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let saga = SagaId::from(id);
    let order = orders.look_up(saga).await?;
    let heard = headers.get("last-event-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    if heard == END {
        // So a browser knows that it need not come again.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let heard = heard.parse().unwrap_or_default();
    let (tell, told) = mpsc::channel(16);
    tokio::spawn(async move {
        let _ = tell.send(Event::default().event("order").data(order.to_string())).await;
        tokio::select! {
            () = follow(&orders, saga, heard, &tell) => {}
            () = orders.stop.cancelled() => {}
            () = tell.closed() => {}
        }
    });
    let events = stream::unfold(told, async |mut told| Some((Ok::<_, Infallible>(told.recv().await?), told)));
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

async fn follow(orders: &Orders, saga: SagaId, mut heard: usize, tell: &mpsc::Sender<Event>) {
    loop {
        // The order first: if it has ended, so has its history. A database that is away will be back.
        if let Ok(order) = orders.look_up(saga).await
            && let Ok(history) = orders.sagas.history(saga).await
        {
            for line in history.lines().skip(heard) {
                heard += 1;
                let step = json!({ "saga": order["saga"], "state": order["state"], "what": line });
                let event = Event::default().event("step").id(heard.to_string()).data(step.to_string());
                let _ = tell.send(event).await;
            }
            if has_ended(&order) {
                let _ = tell.send(Event::default().event("ended").id(END).data(order.to_string())).await;
                return;
            }
        }
        sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_a_time_and_not_too_long_a_one() {
        let read = |wait: &str| Wait { wait: Some(wait.into()) }.duration().ok();
        assert_eq!(Wait { wait: None }.duration().ok(), Some(Duration::ZERO));
        assert_eq!(read("5s"), Some(Duration::from_secs(5)));
        assert_eq!(read("5"), read("5s"));
        assert_eq!(read("250ms"), Some(Duration::from_millis(250)));
        for wrong in ["", "s", "-1s", "31s", "1h", "99999999999s", "4294967295", "1.5s"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
