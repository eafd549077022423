//! What every service has: an address, a database, and one way to say yes and no.

use crate::Result;
use axum::{
    Json, Router,
    extract::FromRequestParts,
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE, request::Parts},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{io, net::SocketAddr};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

/// Where a service is.
#[derive(Debug, clap::Args)]
pub struct Place {
    /// Port 0 is any free one; the first line on stdout says which.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The service's own database.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database: String,
    /// Stop when stdin is closed: so ends a service whose parent was killed.
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

/// Serves until told to stop: Ctrl-C, SIGTERM, or the end of the parent.
pub async fn serve(router: Router, place: &Place) -> Result<()> {
    let listener = TcpListener::bind(place.listen).await?;
    println!("http://{}", listener.local_addr()?);
    let parent = place.until_stdin_closes.then(stdin_closed);
    axum::serve(listener, router)
        .with_graceful_shutdown(async {
            tokio::select! {
                () = told_to_stop() => {}
                Ok(()) = async { parent.ok_or(())?.await.map_err(|_| ()) } => {}
            }
        })
        .await?;
    Ok(())
}

pub async fn told_to_stop() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// On a thread of its own, which the process does not wait for at its end.
fn stdin_closed() -> oneshot::Receiver<()> {
    let (closed, noticed) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        closed.send(())
    });
    noticed
}

/// The header `Idempotency-Key`.
#[derive(Debug)]
pub struct IdempotencyKey(pub String);

impl IdempotencyKey {
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let key = headers.get("idempotency-key")?.to_str().ok()?;
        (!key.is_empty()).then(|| Self(key.to_owned()))
    }
}

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::of(&parts.headers).ok_or(Problem::new(StatusCode::BAD_REQUEST, "the header Idempotency-Key is missing"))
    }
}

/// An answer that is final: a participant gives the same one to a repeated command.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Value,
}

impl Answer {
    /// The answer that was kept.
    pub fn kept(status: i32, body: &str) -> Result<Self, Problem> {
        let status = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok());
        match (status, serde_json::from_str(body)) {
            (Some(status), Ok(body)) => Ok(Self { status, body }),
            _ => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the kept answer cannot be read")),
        }
    }
}

pub fn done(body: &impl Serialize) -> Answer {
    Answer { status: StatusCode::OK, body: json!(body) }
}

/// A business no, as problem details (RFC 9457).
pub fn refused(reason: &str) -> Answer {
    problem(StatusCode::CONFLICT, reason)
}

fn problem(status: StatusCode, detail: &str) -> Answer {
    Answer { status, body: json!({ "title": status.canonical_reason(), "status": status.as_u16(), "detail": detail }) }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        match self.status.is_success() {
            true => (self.status, Json(self.body)).into_response(),
            false => (self.status, [(CONTENT_TYPE, "application/problem+json")], self.body.to_string()).into_response(),
        }
    }
}

/// An answer that is not final.
#[derive(Debug)]
pub struct Problem(Answer);

impl Problem {
    pub fn new(status: StatusCode, detail: &str) -> Self {
        Self(problem(status, detail))
    }
}

/// Also after a commit that was not answered: so the caller must not take it for "nothing happened".
impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, &format!("the database: {error}"))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}
