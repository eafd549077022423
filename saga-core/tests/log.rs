//! What the log says: that a saga turned back, that one is parked, each once, with its names and its reason.

use saga_core::{CompensationCx, Cx, Engine, MemoryStore, Out, Outcome, Retry, Saga, SagaBuilder, StepError};
use std::{
    io::{self, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::time::sleep;
use tracing::{Level, subscriber::DefaultGuard};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// What is logged from now on in this thread.
    fn from(level: Level) -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_max_level(level).with_ansi(false).without_time();
        let subscriber = subscriber.with_target(false).with_writer(move || writer.clone()).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// The lines since the last call, those of events aside.
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap();
        text.lines()
            .filter(|line| line.contains("the saga") && !line.contains("event="))
            .map(|line| line.trim_start().to_owned())
            .collect()
    }
}

/// The pivot and its undo fail so often before they succeed.
#[derive(Default)]
struct Trouble {
    pivot: AtomicU32,
    undo: AtomicU32,
}

fn again(times: &AtomicU32, what: &'static str) -> Result<(), StepError> {
    match times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
        Ok(_) => Err(StepError::unknown(what)),
        Err(_) => Ok(()),
    }
}

struct Order;

impl Saga for Order {
    const NAME: &'static str = "order";
    const VERSION: u32 = 1;
    type Input = bool;
    type Output = ();
    type Deps = Trouble;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        let never = Retry::never();
        saga.compensatable("reserve").run(async |_: Cx<Trouble>, _| Ok(())).retry_compensation(never).compensate(undo);
        saga.pivot("charge").retry(never).run(charge)
    }
}

async fn undo(trouble: CompensationCx<Trouble>, _: bool, _: Option<()>) -> Result<(), StepError> {
    again(&trouble.undo, "the stock does not answer")
}

async fn charge(trouble: Cx<Trouble>, declined: bool) -> Result<(), StepError> {
    if declined {
        return Err(StepError::fail("declined"));
    }
    again(&trouble.pivot, "the \"bank\"\nbroke")
}

#[tokio::test(start_paused = true)]
async fn a_parking_is_a_warning_each_time_and_turning_back_is_told_once() {
    let (log, _guard) = Log::from(Level::INFO);
    let trouble = Trouble { pivot: 2.into(), undo: 2.into() };
    let builder = Engine::builder(MemoryStore::default()).register::<Order>(trouble).unwrap();
    let engine = builder.start().await.unwrap();
    let orders = engine.sagas::<Order>();
    let stuck = orders.submit("stuck", false).await.unwrap();
    let saga = stuck.id();
    let parked = |step: &str, reason: &str| {
        format!(
            "WARN the saga is parked: a person has to look saga={saga} name=order step=\"{step}\" reason=\"{reason}\""
        )
    };
    for _ in 0..2 {
        assert!(matches!(stuck.outcome().await.unwrap(), Outcome::Parked(_)));
        assert_eq!(log.lines(), [parked("charge", "the \\\"bank\\\"\\nbroke")]);
        orders.resume(saga, "eve").await.unwrap();
        sleep(Duration::from_secs(60)).await;
    }
    assert_eq!(stuck.outcome().await.unwrap(), Outcome::Completed(()));
    assert_eq!(log.lines(), [""; 0]);

    let declined = orders.submit("declined", true).await.unwrap();
    let saga = declined.id();
    let told = |level: &str, what: &str, step: &str, reason: &str| {
        format!("{level} the saga {what} saga={saga} name=order step=\"{step}\" reason=\"{reason}\"")
    };
    sleep(Duration::from_secs(60)).await;
    let (turned_back, parked) = (
        told("INFO", "turns back", "charge", "declined"),
        told("WARN", "is parked: a person has to look", "reserve", "the stock does not answer"),
    );
    assert_eq!(log.lines(), [turned_back, parked.clone()]);
    orders.resume(saga, "eve").await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(log.lines(), [parked]);
    orders.resume(saga, "eve").await.unwrap();
    assert!(matches!(declined.outcome().await.unwrap(), Outcome::RolledBack(_)));
    assert_eq!(log.lines(), [""; 0]);
    engine.kill().await;
}

#[tokio::test(start_paused = true)]
async fn what_ends_is_told_to_those_who_look_closely_and_what_is_cancelled_has_no_step() {
    let (log, _guard) = Log::from(Level::DEBUG);
    let builder = Engine::builder(MemoryStore::default()).register::<Order>(Trouble::default()).unwrap();
    let engine = builder.start().await.unwrap();
    let good = engine.sagas::<Order>().submit("good", false).await.unwrap();
    good.outcome().await.unwrap();
    assert_eq!(log.lines(), [format!("DEBUG the saga has ended saga={} name=order status=completed", good.id())]);
    engine.kill().await;

    // Cancelled before anybody runs it.
    let store = MemoryStore::default();
    let client = Engine::builder(store.clone()).start().await.unwrap();
    let cancelled = client.sagas::<Order>().submit("cancelled", false).await.unwrap();
    client.sagas::<Order>().cancel(cancelled.id(), "a call").await.unwrap();
    let engine = Engine::builder(store).register::<Order>(Trouble::default()).unwrap().start().await.unwrap();
    assert!(matches!(cancelled.outcome().await.unwrap(), Outcome::RolledBack(_)));
    let saga = cancelled.id();
    let told = [
        format!("INFO the saga turns back saga={saga} name=order reason=\"a call\""),
        format!("DEBUG the saga has ended saga={saga} name=order status=rolled back"),
    ];
    assert_eq!(log.lines(), told);
    engine.kill().await;
}
