//! What every service has: an address, a database, health, and an end.

use crate::{
    Result,
    problem::{self, Problem},
    telemetry,
};
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::map_response,
    routing::{MethodRouter, get},
};
use saga_core::participant::Participating;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{Connection, PgPool, postgres::PgPoolOptions};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long what is under way may take to end when a service stops.
pub const GRACE: Duration = Duration::from_secs(5);
/// How long a connection to the database may be idle and still count as alive.
const IDLE: Duration = Duration::from_secs(1);
/// The ports are this and an offset, each service's own.
pub const PORT_BASE: u16 = 8080;

/// Where a process listens.
#[derive(Debug, clap::Args)]
pub struct Address {
    /// Defaults to the service's own port on this machine. Port 0 is any free one; the first line on stdout says which.
    #[arg(long, env = "LISTEN")]
    listen: Option<SocketAddr>,
    /// Stop when stdin is closed: so ends a service whose parent was killed.
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

impl Address {
    /// Listens at the service's own port, unless told otherwise, until the process is told to stop.
    pub async fn open(self, offset: u16) -> Result<Door> {
        let listen = self.listen.unwrap_or_else(|| local(PORT_BASE + offset));
        let parent = self.until_stdin_closes.then(stdin_closed);
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = told_to_stop() => {}
                Ok(()) = async { parent.ok_or(())?.await.map_err(|_| ()) } => {}
            }
            stopping.cancel();
        });
        Ok(Door { listener: TcpListener::bind(listen).await?, stop, announced: true })
    }
}

/// Where a service is, if it is a process of its own.
#[derive(Debug, clap::Args)]
pub struct Place {
    #[command(flatten)]
    address: Address,
    /// The service's own database.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database: String,
}

impl Place {
    /// Opens it at its own port, unless told otherwise, until the process is told to stop.
    pub async fn open(self, offset: u16) -> Result<Site> {
        Ok(Site { door: self.address.open(offset).await?, database: self.database })
    }
}

/// Where a service listens, and when to stop.
pub struct Door {
    pub listener: TcpListener,
    pub stop: CancellationToken,
    /// Whether it says on stdout where it is, once it serves.
    pub announced: bool,
}

impl Door {
    /// At this port of this machine, or at any free one if it is 0.
    pub async fn at(port: u16, stop: CancellationToken) -> Result<Self> {
        Ok(Self { listener: TcpListener::bind(local(port)).await?, stop, announced: false })
    }

    pub fn url(&self) -> Result<String> {
        Ok(format!("http://{}", self.listener.local_addr()?))
    }
}

/// What a service with a database is given.
pub struct Site {
    pub door: Door,
    /// Its URL.
    pub database: String,
}

impl Site {
    /// Connects to the service's own database. A connection that was idle is tried before it is used.
    pub async fn connect(&self) -> Result<PgPool> {
        let pool = PgPoolOptions::new().test_before_acquire(false).before_acquire(|connection, known| {
            Box::pin(async move {
                if known.idle_for > IDLE {
                    connection.ping().await?;
                }
                Ok(true)
            })
        });
        Ok(pool.connect(&self.database).await?)
    }

    /// Serves until told to stop, and lets what is under way end.
    pub async fn serve(self, router: Router, db: PgPool) -> Result<()> {
        if self.door.announced {
            println!("{}", self.door.url()?);
        }
        let router = router.merge(health(db)).layer(map_response(problem::of_every_refusal));
        let figures = telemetry::Figures::of_service();
        let router = telemetry::watched(router).route("/metrics", get(async || figures));
        let served =
            axum::serve(self.door.listener, router).with_graceful_shutdown(self.door.stop.clone().cancelled_owned());
        tokio::select! {
            served = served => Ok(served?),
            // Somebody may never finish what he began to send.
            () = async { self.door.stop.cancelled().await; sleep(GRACE).await } => Ok(()),
        }
    }

    /// Serves, and takes part over Kafka, until told to stop.
    pub async fn take_part(self, router: Router, db: PgPool, participating: Participating) -> Result<()> {
        self.serve(router, db).await?;
        // It would wait for a broker that is gone, and a shop that was killed takes its embedded one with it.
        let _ = timeout(GRACE, participating.stop()).await;
        Ok(())
    }
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
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

/// Live: it answers. Ready: its database does too. A broker that is away is no reason to send nobody: orders are taken without one, and go on when it is back.
fn health(db: PgPool) -> Router {
    Router::new()
        .route("/health/live", get(async || Json(json!({ "status": "up" }))))
        .route("/health/ready", get(ready))
        .with_state(db)
}

async fn ready(State(db): State<PgPool>) -> Result<Json<Value>, Problem> {
    match timeout(Duration::from_secs(2), sqlx::query("SELECT").execute(&db)).await {
        Ok(Ok(_)) => Ok(Json(json!({ "status": "up" }))),
        _ => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the database does not answer")),
    }
}

/// A document that says what the service answers (OpenAPI 3.1). It is written by hand, because annotations in the code would be longer than the code; a test compares the two.
pub fn openapi<S: Clone + Send + Sync + 'static>(document: &'static str) -> MethodRouter<S> {
    get(async move || ([(CONTENT_TYPE, "application/json")], document))
}

/// What a service says of its own books at `GET /consistency`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Consistency<B> {
    /// Whether they balance.
    pub balanced: bool,
    #[serde(flatten)]
    pub books: B,
}

/// `?userId=`
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OfUser {
    pub user_id: i64,
}
