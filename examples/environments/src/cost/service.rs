//! A service with an engine, an outbox and customers, in this process.

use super::{millis, quantile};
use crate::Result;
use async_trait::async_trait;
use saga_core::{
    CompensationCx, Cx, Engine, Error, Out, Saga, SagaBuilder, Started, StepError,
    participant::Event,
    transport::{Consumer, Outgoing, PublishError, Receiver, Subscription, Transport, TransportError},
};
use saga_postgres::{InTransaction, PgOutbox, PgStore, outbox::Relay};
use serde::{Deserialize, Serialize};
use sqlx::{PgPool, postgres::PgPoolOptions};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::task::JoinSet;
use uuid::Uuid;

/// A topic that nobody takes anything of.
pub const AWAY: &str = "away";

/// A saga with little to do.
pub struct Small;

impl Saga for Small {
    const NAME: &'static str = "small";
    const VERSION: u32 = 1;
    type Input = ();
    type Output = ();
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        saga.compensatable("one").run(nothing).compensate(nothing_undone);
        saga.effect_free("two").run(nothing);
        saga.pivot("three").run(nothing);
        saga.retriable("four").run(nothing)
    }
}

async fn nothing(_: Cx<()>, (): ()) -> Result<(), StepError> {
    Ok(())
}

async fn nothing_undone(_: CompensationCx<()>, (): (), _: Option<()>) -> Result<(), StepError> {
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Begun;

impl Event for Begun {
    const TYPE: &'static str = "begun.v1";
    const TOPIC: &'static str = "small.events";
}

/// A service that runs.
pub struct Service {
    engine: Engine,
    store: PgStore,
    users: PgPool,
    outbox: PgOutbox,
    relay: Relay,
    heard: Arc<Heard>,
}

/// What it did for its customers; times in milliseconds.
#[derive(Clone, Copy)]
pub struct Figures {
    pub sagas_per_s: f64,
    /// Until a saga was known to stand.
    pub submit_p99: f64,
    /// From there to its end.
    pub end_p99: f64,
    /// From an event to the broker.
    pub lag_p99: f64,
}

/// How long customers come.
#[derive(Clone, Copy)]
pub enum Until {
    Sagas(usize),
    Time(Duration),
}

impl Service {
    /// In a schema that is made if it is not there.
    pub async fn open(url: &str, schema: &str) -> Result<Self> {
        let store = PgStore::options(url)?.schema(schema).connect().await?;
        store.migrate().await?;
        let users = PgPoolOptions::new().max_connections(8).connect(url).await?;
        let outbox = PgOutbox::options(users.clone(), "small").schema(schema).build()?;
        let heard = Arc::new(Heard::default());
        let relay = outbox.relay(heard.clone()).start().await?;
        let engine = Engine::builder(store.clone()).register::<Small>(())?.start().await?;
        Ok(Self { engine, store, users, outbox, relay, heard })
    }

    /// So many customers, each of whom starts a saga when the last one has ended.
    pub async fn serve(self: &Arc<Self>, customers: usize, until: Until) -> Result<Figures> {
        self.heard.lags().clear();
        let (began, next, run) = (Instant::now(), Arc::new(AtomicUsize::new(0)), Uuid::now_v7());
        let mut at_work = JoinSet::new();
        for _ in 0..customers {
            let (service, next) = (self.clone(), next.clone());
            at_work.spawn(async move {
                let (mut submits, mut ends) = (vec![], vec![]);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    match until {
                        Until::Sagas(most) if number >= most => break,
                        Until::Time(most) if began.elapsed() >= most => break,
                        _ => {}
                    }
                    let came = Instant::now();
                    let saga = service.submit(&format!("{run}-{number}"), number).await?;
                    let submitted = Instant::now();
                    saga.outcome().await?;
                    submits.push(millis(submitted - came));
                    ends.push(millis(submitted.elapsed()));
                }
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>((submits, ends))
            });
        }
        let (mut submits, mut ends) = (vec![], vec![]);
        while let Some(done) = at_work.join_next().await {
            let (submitted, ended) = done??;
            submits.extend(submitted);
            ends.extend(ended);
        }
        Ok(Figures {
            sagas_per_s: submits.len() as f64 / began.elapsed().as_secs_f64(),
            submit_p99: quantile(submits, 0.99),
            end_p99: quantile(ends, 0.99),
            lag_p99: quantile(self.heard.lags().clone(), 0.99),
        })
    }

    /// Every fourth saga begins in a transaction, with an event; every fourth is asked to turn back.
    async fn submit(&self, key: &str, number: usize) -> Result<Started<Small>> {
        let sagas = self.engine.sagas::<Small>();
        if number.is_multiple_of(4) {
            let mut tx = self.users.begin().await?;
            let saga = sagas.submit_in(&self.store, &mut tx, key, ()).await?;
            self.outbox.publish(&mut tx, key, &Begun).await?;
            self.outbox.commit(tx).await?;
            self.store.wake();
            return Ok(saga);
        }
        let saga = sagas.submit(key, ()).await?;
        if number % 4 == 1 {
            match sagas.cancel(saga.id(), "changed my mind").await {
                Ok(()) | Err(Error::Ended(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(saga)
    }

    pub async fn close(self) {
        self.engine.shutdown(Duration::from_secs(5)).await;
        self.relay.stop().await;
        self.users.close().await;
    }
}

/// Stands for the broker: takes note of how old an event is when it comes, in milliseconds.
#[derive(Default)]
struct Heard(Mutex<Vec<f64>>);

impl Heard {
    fn lags(&self) -> std::sync::MutexGuard<'_, Vec<f64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Transport for Heard {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        let hear = |Outgoing { topic, message }: &Outgoing| {
            if topic == AWAY {
                return Err(PublishError::Unavailable("it is away".into()));
            }
            let age = SystemTime::now().duration_since(message.time.into()).unwrap_or_default();
            self.lags().push(millis(age));
            Ok(())
        };
        batch.iter().map(hear).collect()
    }

    async fn subscribe(&self, _: Subscription, _: Arc<dyn Receiver>) -> Result<Box<dyn Consumer>, TransportError> {
        Err(TransportError("there is nothing to be heard here".into()))
    }

    fn system(&self) -> &'static str {
        "none"
    }

    fn max_message_bytes(&self) -> usize {
        1_000_000
    }
}
