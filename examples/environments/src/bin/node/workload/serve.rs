//! A process that runs sagas and starts some. It says `ready` when it has joined, `resting` when it waits for a line on
//! its standard input, and `submitted` when all of its own sagas are known to be started. It hands over when it is
//! asked to end, and ends at once with whoever started it.

use super::{Result, errand::Errand, events::Events, ledger::Ledger, traffic::Callers};
use saga_core::Engine;
use saga_postgres::PgStore;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use std::{sync::Arc, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// Who this is; the keys of its sagas begin so.
    #[arg(long)]
    pub name: String,
    /// Where the users' transactions go.
    #[arg(long)]
    pub users: String,
    /// Where the outbox's relay connects to. If it is not said, there are no events.
    #[arg(long)]
    pub relay: Option<String>,
    /// Where the ledger is.
    #[arg(long)]
    pub ledger: String,
    /// How many sagas to start.
    #[arg(long, default_value_t = 30)]
    pub sagas: u64,
    /// One each so many milliseconds.
    #[arg(long, default_value_t = 100)]
    pub every: u64,
    /// After how many of them to rest, until somebody says to go on.
    #[arg(long, default_value_t = u64::MAX)]
    pub rest_after: u64,
    /// After how many seconds a caller drops its call.
    #[arg(long, default_value_t = 20)]
    pub patience: u64,
    /// How many connections the users' transactions have.
    #[arg(long, default_value_t = 4)]
    pub connections: u32,
    /// The engine's lease, in milliseconds.
    #[arg(long, default_value_t = 2_000)]
    pub lease: u64,
}

/// Serves until it is told to end.
pub async fn serve(store: PgStore, settings: Settings) -> Result<()> {
    let go_on = Arc::new(Notify::new());
    std::thread::spawn({
        let go_on = go_on.clone();
        move || {
            std::io::stdin().lines().map_while(Result::ok).for_each(|_| go_on.notify_one());
            std::process::exit(1);
        }
    });
    let mut terminate = signal(SignalKind::terminate())?;
    let ledger = Ledger::connect(&settings.ledger, &settings.name)?;
    let engine = Engine::builder(store.clone()).register::<Errand>(ledger.clone())?.configure(|config| {
        config.lease = Duration::from_millis(settings.lease);
        // Pauses are spent in the store, so that others can take the saga from there.
        config.hold = Duration::from_millis(100);
    });
    let engine = engine.start().await?;
    let events = match &settings.relay {
        Some(url) => Some(Events::start(url, store.schema(), ledger.clone()).await?),
        None => None,
    };
    println!("ready");

    // Poolers in session mode take the parameter `extra_float_digits` for an error.
    let users = settings.users.parse::<PgConnectOptions>()?.extra_float_digits(None);
    let users = PgPoolOptions::new()
        .max_connections(settings.connections)
        .acquire_timeout(Duration::from_secs(30))
        // A server that was the primary once may keep its connections: the users of such servers have to look.
        .before_acquire(|connection, _| {
            let writes = "SELECT NOT current_setting('transaction_read_only')::boolean";
            Box::pin(async move { sqlx::query_scalar(writes).fetch_one(connection).await })
        })
        .connect_lazy_with(users);
    let callers = Arc::new(Callers { sagas: engine.sagas(), store, users, events, ledger, settings, go_on });
    let traffic = async {
        let mut waiting = callers.start().await?;
        println!("submitted");
        while let Some(ended) = waiting.join_next().await {
            ended??;
        }
        std::future::pending::<Result<()>>().await
    };
    tokio::select! {
        failed = traffic => failed?,
        _ = terminate.recv() => {}
    }
    engine.shutdown(Duration::from_secs(5)).await;
    if let Some(Callers { events: Some(events), .. }) = Arc::into_inner(callers) {
        events.stop().await;
    }
    Ok(())
}
