//! The picture of an order's saga: `saga_history` is a view for people, with the time of each entry.

use super::Orders;
use crate::{
    picture::{self, Entry},
    problem::Problem,
    saga::OrderSaga,
};
use axum::{
    extract::{Path, Query, State},
    http::StatusCode,
};
use saga_core::{Definition, machine::Event};
use serde::Deserialize;
use std::{fmt::Display, time::Duration};
use uuid::Uuid;

/// `?as=mermaid`
#[derive(Deserialize)]
pub struct As {
    #[serde(rename = "as", default)]
    form: Form,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    #[default]
    Text,
    Mermaid,
}

pub async fn picture(
    State(orders): State<Orders>,
    Path(id): Path<Uuid>,
    Query(As { form }): Query<As>,
) -> Result<String, Problem> {
    orders.look_up(id.into()).await?;
    let entries: Vec<(f64, String)> = sqlx::query_as(
        "SELECT extract(epoch FROM at - min(at) OVER ())::float8, events::text
         FROM saga.saga_history WHERE id = $1 AND seq IS NOT NULL ORDER BY seq",
    )
    .bind(id)
    .fetch_all(&orders.db)
    .await?;
    let mut journal = vec![];
    for (at, events) in entries {
        let events: Vec<Event> = serde_json::from_str(&events).map_err(broken)?;
        let at = Duration::try_from_secs_f64(at).unwrap_or_default();
        journal.extend(events.into_iter().map(|event| Entry { at, event }));
    }
    // Both versions of the saga have the same steps.
    let saga = Definition::<OrderSaga>::build().map_err(broken)?;
    Ok(match form {
        Form::Text => picture::text(saga.graph(), &journal),
        Form::Mermaid => picture::mermaid(saga.graph(), &journal),
    })
}

fn broken(error: impl Display) -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the journal cannot be drawn: {error}"))
}
