//! The barrier over HTTP: see [`Barrier`] for what a request has to look like, and what the statuses mean.

use super::{Barrier, Call, key::command_id};
use axum::{
    body::Bytes,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
    routing::{MethodRouter, post},
};
use opentelemetry::context::FutureExt;
use saga_core::{
    message::{Answer, CommandId, Op},
    participant::{Command, Handle},
    transport::Unavailable,
};
use serde_json::json;
use sqlx::PgConnection;
use std::{collections::BTreeMap, sync::Arc};
use tracing::Instrument;

const KEY: &str = "idempotency-key";
/// What is handed on to the handler.
const FORWARDED: [&str; 3] = ["traceparent", "tracestate", "baggage"];
/// In seconds. The caller has its own delays, which grow.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

impl<D: Send + Sync + 'static> Barrier<D> {
    /// A route for the function that does a command.
    pub fn on<C, S>(&self, handler: impl for<'t> Handle<'t, D, PgConnection, C>) -> MethodRouter<S>
    where
        C: Command,
        S: Clone + Send + Sync + 'static,
    {
        self.route(Op::Do, handler)
    }

    /// A route for the function that undoes a command: called only if the command was done, and once.
    pub fn on_undo<C, S>(&self, handler: impl for<'t> Handle<'t, D, PgConnection, C>) -> MethodRouter<S>
    where
        C: Command<Reply = ()>,
        S: Clone + Send + Sync + 'static,
    {
        self.route(Op::Undo, handler)
    }

    fn route<C, S>(&self, op: Op, handler: impl for<'t> Handle<'t, D, PgConnection, C>) -> MethodRouter<S>
    where
        C: Command,
        S: Clone + Send + Sync + 'static,
    {
        let (barrier, handler) = (self.clone(), Arc::new(handler));
        post(move |headers: HeaderMap, body: Bytes| async move {
            let id = match requested(&headers, op) {
                Ok(id) => id,
                Err(reason) => return problem(StatusCode::BAD_REQUEST, &reason),
            };
            // An undo often has nothing to say.
            let payload: &[u8] = if body.is_empty() { b"null" } else { &body };
            let job = barrier.job(Call { id, op, headers: forwarded(&headers) }, &handler, payload.into());
            // By itself, so that it ends even if nobody waits for it any more: work that takes longer than its callers' patience would never be done.
            let work = async move { barrier.answer(job).await }.with_current_context().in_current_span();
            let work = tokio::spawn(work);
            match work.await {
                Ok(answered) => response(answered),
                Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            }
        })
    }
}

fn requested(headers: &HeaderMap, op: Op) -> Result<CommandId, String> {
    let mut keys = headers.get_all(KEY).iter();
    match (keys.next().map(HeaderValue::to_str), keys.next()) {
        (Some(Ok(key)), None) => command_id(key, op),
        (Some(Err(_)), None) => Err("the header Idempotency-Key is no text".into()),
        (Some(_), Some(_)) => Err("the header Idempotency-Key is there more than once".into()),
        (None, _) => Err("the header Idempotency-Key is missing".into()),
    }
}

fn forwarded(headers: &HeaderMap) -> BTreeMap<String, String> {
    let value = |name: &str| Some((name.to_owned(), headers.get(name)?.to_str().ok()?.to_owned()));
    FORWARDED.into_iter().filter_map(value).collect()
}

fn response(answered: Result<Answer, Unavailable>) -> Response {
    match answered {
        Ok(Answer::Success(reply)) => {
            ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], reply.as_str().to_owned()).into_response()
        }
        Ok(Answer::Fail(reason)) => problem(StatusCode::CONFLICT, &reason),
        Ok(Answer::Retry(reason)) => {
            ([(RETRY_AFTER, RETRY_AFTER_SECONDS)], problem(StatusCode::SERVICE_UNAVAILABLE, &reason)).into_response()
        }
        // Not 503: a commit may be done whose answer was lost, and "nothing happened" is not to be said.
        Ok(Answer::Unknown(reason)) | Err(Unavailable(reason)) => problem(StatusCode::INTERNAL_SERVER_ERROR, &reason),
    }
}

fn problem(status: StatusCode, reason: &str) -> Response {
    let title = status.canonical_reason();
    let body = json!({ "title": title, "status": status.as_u16(), "detail": reason, "error": reason });
    (status, [(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"))], body.to_string()).into_response()
}
