//! One Postgres, the proxy before it, the ledger beside it, and clients that will not take no answer for an answer.

use super::{
    fleet::Orders,
    ledger::{self, Ledger},
    proxy::Proxy,
    purchase::{Order, Purchase},
};
use saga_core::{Engine, Error, Outcome, Sagas, Started};
use saga_postgres::{InTransaction, PgStore, testing::Postgres};
use sqlx::{PgPool, postgres::PgPoolOptions};
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use tokio::time::{sleep, timeout};

/// The pause before a client asks again.
const AGAIN: Duration = Duration::from_millis(20);

pub(crate) struct Arena {
    /// Straight to Postgres.
    pub(crate) pool: PgPool,
    pub(crate) ledger_url: String,
    /// Through the proxy.
    pub(crate) store_url: String,
    pub(crate) proxy: Proxy,
    _postgres: Postgres,
}

impl Arena {
    pub(crate) async fn open() -> Self {
        let postgres = Postgres::private().await.unwrap();
        let ledger_url = postgres.url();
        let pool = PgPoolOptions::new().max_connections(8).connect(&ledger_url).await.unwrap();
        let proxy = Proxy::to(postgres.port()).await;
        let store_url = format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", proxy.port);
        PgStore::connect(&ledger_url).await.unwrap().migrate().await.unwrap();
        Ledger::create(&pool).await;
        Self { pool, ledger_url, store_url, proxy, _postgres: postgres }
    }

    /// What worker processes are told.
    pub(crate) fn orders(&self, lease: Duration) -> Orders {
        let (store, ledger) = (self.store_url.clone(), self.ledger_url.clone());
        Orders { store, ledger, lease, slow: 60, poison: Duration::ZERO }
    }

    /// A process that runs no sagas itself: this one.
    pub(crate) async fn client(&self) -> Client {
        let store = PgStore::connect(&self.store_url).await.unwrap();
        let engine = Engine::builder(store.clone()).configure(|config| config.poll = Duration::from_millis(100));
        let engine = engine.start().await.unwrap();
        let users = PgPoolOptions::new().max_connections(8).connect(&self.store_url).await.unwrap();
        Client {
            sagas: engine.sagas(),
            _engine: engine,
            store,
            users,
            direct: self.pool.clone(),
            unanswered: AtomicUsize::new(0),
            resolved: AtomicUsize::new(0),
        }
    }
}

pub(crate) struct Client {
    pub(crate) sagas: Sagas<Purchase>,
    _engine: Engine,
    store: PgStore,
    /// The pool of a user's own transactions.
    users: PgPool,
    direct: PgPool,
    /// Calls that ended without an answer.
    pub(crate) unanswered: AtomicUsize,
    /// Those among them that had done what was asked, as the next call with the same key found.
    pub(crate) resolved: AtomicUsize,
}

impl Client {
    /// Asks with the same key until there is an answer.
    pub(crate) async fn submit(&self, key: &str, order: &Order) -> Started<Purchase> {
        loop {
            match self.sagas.submit(key, order.clone()).await {
                Ok(started) => return self.resolved(started),
                Err(error) => self.unanswered(error).await,
            }
        }
    }

    /// The same in a transaction of the user's own, with a row of the user's own: both stand, or none does.
    pub(crate) async fn submit_in_a_transaction(&self, key: &str, order: &Order) -> Started<Purchase> {
        loop {
            match self.transaction(key, order).await {
                Ok(started) => return self.resolved(started),
                Err(error) => self.unanswered(error).await,
            }
            let sql = "SELECT EXISTS (SELECT FROM saga.saga WHERE key = $1) = EXISTS (SELECT FROM ledger.purchase WHERE key = $1)";
            let both: bool = sqlx::query_scalar(sql).bind(key).fetch_one(&self.direct).await.unwrap();
            assert!(both, "the saga and the user's row do not stand or fall together");
        }
    }

    async fn transaction(&self, key: &str, order: &Order) -> Result<Started<Purchase>, Error> {
        let lost = |error: sqlx::Error| Error::Store(saga_core::store::StoreError::Unavailable(error.to_string()));
        let mut tx = self.users.begin().await.map_err(lost)?;
        let sql = sqlx::query("INSERT INTO ledger.purchase (key) VALUES ($1) ON CONFLICT DO NOTHING").bind(key);
        sql.execute(&mut *tx).await.map_err(lost)?;
        let started = self.sagas.submit_in(&self.store, &mut tx, key, order.clone()).await?;
        tx.commit().await.map_err(lost)?;
        self.store.wake();
        Ok(started)
    }

    /// Asks until there is an answer. It may come too late.
    pub(crate) async fn cancel(&self, saga: &Started<Purchase>) {
        loop {
            match self.sagas.cancel(saga.id(), "changed my mind").await {
                Ok(()) | Err(Error::Ended(_)) => return,
                Err(error) => self.unanswered(error).await,
            }
        }
    }

    pub(crate) async fn outcome(&self, saga: &Started<Purchase>) -> Outcome<String> {
        let ended = async {
            loop {
                match saga.outcome().await {
                    Ok(outcome) => return outcome,
                    Err(error) => self.unanswered(error).await,
                }
            }
        };
        match timeout(ledger::PATIENCE, ended).await {
            Ok(outcome) => outcome,
            Err(_) => panic!("{saga:?} does not end:\n{}", saga.history().await.unwrap()),
        }
    }

    fn resolved(&self, started: Started<Purchase>) -> Started<Purchase> {
        self.resolved.fetch_add(usize::from(!started.is_new()), Ordering::Relaxed);
        started
    }

    async fn unanswered(&self, error: Error) {
        assert!(matches!(error, Error::Store(_)), "{error}");
        self.unanswered.fetch_add(1, Ordering::Relaxed);
        sleep(AGAIN).await;
    }
}
