//! What every service has: an address, a database, a way to take part in sagas, and one way to say no.

use crate::{Result, broker::Connection, telemetry};
use axum::{
    Router,
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use saga_core::participant::Participating;
use serde_json::json;
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::timeout,
};

/// How long what is under way may take to end when a service stops.
pub const GRACE: Duration = Duration::from_secs(5);
/// Where a service is.
#[derive(Debug, clap::Args)]
pub struct Place {
    /// Port 0 is any free one; the first line on stdout says which.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The service's own database.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database: String,
    #[command(flatten)]
    pub broker: Connection,
    /// Stop when stdin is closed: so ends a service whose parent was killed.
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

/// Serves until told to stop: Ctrl-C, SIGTERM, or the end of the parent.
pub async fn serve(router: Router, place: &Place) -> Result<()> {
    let listener = TcpListener::bind(place.listen).await?;
    println!("http://{}", listener.local_addr()?);
    let parent = place.until_stdin_closes.then(stdin_closed);
    axum::serve(listener, telemetry::watched(router))
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

/// Serves, and takes part over Kafka, until told to stop.
pub async fn take_part(place: &Place, router: Router, participating: Participating) -> Result<()> {
    serve(router, place).await?;
    // It would wait for a broker that is gone, and a shop that was killed takes its embedded one with it.
    let _ = timeout(GRACE, participating.stop()).await;
    Ok(())
}

/// The header `Idempotency-Key`, as a client chose it.
pub fn idempotency_key(headers: &HeaderMap) -> Option<&str> {
    headers.get("idempotency-key")?.to_str().ok().filter(|key| !key.is_empty())
}

/// A no, as problem details (RFC 9457).
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    detail: String,
}

impl Problem {
    pub fn new(status: StatusCode, detail: &str) -> Self {
        Self { status, detail: detail.into() }
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
        let Self { status, detail } = self;
        let body = json!({ "title": status.canonical_reason(), "status": status.as_u16(), "detail": detail });
        (status, [(CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
    }
}
