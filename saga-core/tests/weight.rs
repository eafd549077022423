//! What is in memory is bounded by its weight, and what is only in the journal does not count.

use saga_core::{Cx, Engine, MemoryStore, Out, Outcome, Retry, Saga, SagaBuilder, StepError};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::{sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
const MEMORY: usize = 200_000;

/// How many steps run at once, and did so at most.
#[derive(Default)]
struct Gauge {
    now: AtomicUsize,
    most: AtomicUsize,
    attempts: AtomicUsize,
}

struct Heavy;

impl Saga for Heavy {
    const NAME: &'static str = "heavy";
    const VERSION: u32 = 1;
    type Input = String;
    type Output = usize;
    type Deps = Gauge;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, usize> {
        saga.pivot("weigh").run(async |gauge: Cx<Gauge>, text: String| {
            let now = gauge.now.fetch_add(1, Ordering::SeqCst) + 1;
            gauge.most.fetch_max(now, Ordering::SeqCst);
            sleep(SECOND).await;
            gauge.now.fetch_sub(1, Ordering::SeqCst);
            Ok(text.len())
        })
    }
}

struct Patient;

impl Saga for Patient {
    const NAME: &'static str = "patient";
    const VERSION: u32 = 1;
    type Input = ();
    type Output = ();
    type Deps = Gauge;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        let often = Retry::fixed(SECOND / 2).forever();
        saga.pivot("ask").retry(often).run(async |gauge: Cx<Gauge>, ()| {
            gauge.attempts.fetch_add(1, Ordering::SeqCst);
            Err(StepError::retry("away ".repeat(500)))
        })
    }
}

async fn engine(store: &MemoryStore, gauge: &Arc<Gauge>) -> Engine {
    let builder = Engine::builder(store.clone()).register::<Heavy>(gauge.clone()).unwrap();
    let builder = builder.register::<Patient>(gauge.clone()).unwrap();
    builder.configure(|config| config.memory = MEMORY).start().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn no_more_is_taken_in_than_there_is_memory_for_and_all_end() {
    let (store, gauge) = (MemoryStore::default(), Arc::new(Gauge::default()));
    let client = Engine::builder(store.clone()).start().await.unwrap();
    let mut waiting = vec![];
    for n in 0..20 {
        waiting.push(client.sagas::<Heavy>().submit(n.to_string(), "x".repeat(MEMORY / 4)).await.unwrap());
    }
    let _engine = engine(&store, &gauge).await;
    for saga in waiting {
        assert!(matches!(saga.outcome().await.unwrap(), Outcome::Completed(bytes) if bytes == MEMORY / 4));
    }
    // One more than fits may have been taken by each of the looks for mail and for work.
    assert!((3..=6).contains(&gauge.most.load(Ordering::SeqCst)), "{:?}", gauge.most);
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_is_tried_again_and_again_in_memory_keeps_no_other_out() {
    let (store, gauge) = (MemoryStore::default(), Arc::new(Gauge::default()));
    let engine = engine(&store, &gauge).await;
    engine.sagas::<Patient>().submit("k", ()).await.unwrap();
    // What its attempts said is more than there is memory for, and is in the journal.
    while gauge.attempts.load(Ordering::SeqCst) < 2 * MEMORY / 2_500 {
        sleep(SECOND).await;
    }
    let client = Engine::builder(store.clone()).start().await.unwrap();
    let other = client.sagas::<Heavy>().submit("k", "x".into()).await.unwrap();
    let outcome = timeout(60 * SECOND, other.outcome()).await.expect("nobody takes it in");
    assert!(matches!(outcome.unwrap(), Outcome::Completed(1)));
}
