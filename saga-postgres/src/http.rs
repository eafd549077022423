//! The barrier for participants over HTTP. Behind the cargo feature `axum`.
//!
//! The same function that handles a command over Kafka handles a request, behind the same inbox:
//!
//! ```no_run
//! use axum::Router;
//! use saga_core::{StepError, message::Op, participant::{Command, CommandCx}};
//! use saga_postgres::{PgInbox, http};
//! use sqlx::PgConnection;
//! # #[derive(Clone, serde::Serialize, serde::Deserialize)] struct Reserve { quantity: u32 }
//! # impl Command for Reserve { const TYPE: &'static str = "inventory.reserve.v1"; const TOPIC: &'static str = "inventory.commands"; type Reply = u32; }
//! # #[derive(Clone, serde::Serialize, serde::Deserialize)] struct Release {}
//! # impl Command for Release { const TYPE: &'static str = "inventory.release.v1"; const TOPIC: &'static str = "inventory.commands"; type Reply = (); }
//! async fn reserve(_: CommandCx<()>, db: &mut PgConnection, wanted: Reserve) -> Result<u32, StepError> {
//! #   Ok(1)
//! # }
//! # async fn release(_: CommandCx<()>, db: &mut PgConnection, _: Release) -> Result<(), StepError> { Ok(()) }
//! # fn router(inbox: PgInbox) -> Router {
//! Router::new()
//!     .route("/reservations", http::command(&inbox, (), Op::Do, reserve))
//!     .route("/reservations/release", http::command(&inbox, (), Op::Undo, release))
//! # }
//! ```
//!
//! A request is a POST with the command as its JSON body, and the step's idempotency key in the header `Idempotency-Key`: `<saga>/<step>`, or `<saga>/<step>/<generation>`. Its
//! undo comes with the *same* key: in a saga that is [`CompensationCx::forward_key`](saga_core::CompensationCx::forward_key). Trace headers are handed to the handler.
//!
//! | the answer | the status | the body | what the caller makes of it |
//! |---|---|---|---|
//! | `success` | 200 | the reply, JSON | success |
//! | `fail` | 409 | a problem (RFC 9457), `detail` is the reason | [`StepError::fail`] |
//! | `retry` | 503, `Retry-After: 1` | the same | [`StepError::retry`] |
//! | `unknown`, or the database is down | 500 | the same | [`StepError::unknown`] |
//! | none: no key, or one that is none | 400 | the same | an error of the caller's |
//!
//! A body that cannot be read is a `fail`, kept like any other: the command must not take effect later.

use crate::PgInbox;
use axum::{
    body::Bytes,
    http::{
        HeaderMap, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
    routing::{MethodRouter, post},
};
use saga_core::{
    Encoded, StepError,
    message::{Answer, CommandId, Op},
    participant::{Command, CommandCx, Handle, Inbox, Job},
    transport::Unavailable,
};
use serde_json::json;
use sqlx::PgConnection;
use std::{sync::Arc, time::Duration};

/// How long a handler may take; then what it wrote is rolled back and the answer is `unknown`.
const ALLOWED: Duration = Duration::from_secs(30);

/// A route that does a command, or undoes one, as [the module's docs](self) say.
pub fn command<S, D, C>(
    inbox: &PgInbox,
    deps: impl Into<Arc<D>>,
    op: Op,
    handler: impl for<'t> Handle<'t, D, PgConnection, C>,
) -> MethodRouter<S>
where
    S: Clone + Send + Sync + 'static,
    D: Send + Sync + 'static,
    C: Command + Clone,
{
    let (inbox, deps, handler) = (inbox.clone(), deps.into(), Arc::new(handler));
    post(move |headers: HeaderMap, body: Bytes| async move {
        let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok()).unwrap_or_default();
        let id: CommandId = match key.parse() {
            Ok(id) => id,
            Err(malformed) => return problem(StatusCode::BAD_REQUEST, &format!("Idempotency-Key: {malformed}")),
        };
        let traced = traced(&headers);
        let command: Result<C, String> =
            serde_json::from_slice(&body).map_err(|error| format!("the body is no {}: {error}", C::TYPE));
        let job = Job::new(id.clone(), op, ALLOWED, move |db, kept| {
            let (handler, command) = (handler.clone(), command.clone());
            let cx = CommandCx::<D>::new(id.clone(), deps.clone(), kept).with_headers(traced.clone());
            Box::pin(async move {
                let command = command.map_err(StepError::fail)?;
                Ok(Encoded::of(&handler.call(cx, db, command).await?)?)
            })
        });
        match inbox.handle(&[job]).await.map(|mut answers| answers.pop()) {
            Ok(Some(answer)) => response(answer),
            Ok(None) => problem(StatusCode::INTERNAL_SERVER_ERROR, "the inbox gave no answer"),
            // Nothing is known, so it must not be taken for "nothing happened".
            Err(Unavailable(reason)) => problem(StatusCode::INTERNAL_SERVER_ERROR, &reason),
        }
    })
}

fn response(answer: Answer) -> Response {
    match answer {
        Answer::Success(reply) => ([(CONTENT_TYPE, "application/json")], reply.as_str().to_owned()).into_response(),
        Answer::Fail(reason) => problem(StatusCode::CONFLICT, &reason),
        Answer::Retry(reason) => {
            ([(RETRY_AFTER, "1")], problem(StatusCode::SERVICE_UNAVAILABLE, &reason)).into_response()
        }
        Answer::Unknown(reason) => problem(StatusCode::INTERNAL_SERVER_ERROR, &reason),
    }
}

/// Problem details, RFC 9457.
fn problem(status: StatusCode, detail: &str) -> Response {
    let body = json!({ "title": status.canonical_reason(), "status": status.as_u16(), "detail": detail });
    (status, [(CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}

fn traced(headers: &HeaderMap) -> std::collections::BTreeMap<String, String> {
    let header = |name: &str| Some((name.to_owned(), headers.get(name)?.to_str().ok()?.to_owned()));
    ["traceparent", "tracestate", "baggage"].into_iter().filter_map(header).collect()
}
