//! A broker in memory, which keeps what it was given in one log, and fails as it is told to.
#![allow(dead_code, reason = "each test file uses a part of it")]

use async_trait::async_trait;
use saga_core::transport::{Consumer, Outgoing, PublishError, Receiver, Subscription, Transport, TransportError};
use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

type Rule = Box<dyn FnMut(&Outgoing) -> Result<(), PublishError> + Send>;

pub(crate) struct Broker {
    log: Mutex<Vec<Outgoing>>,
    rule: Mutex<Rule>,
    /// Answers, not publications, wait for a permit.
    answers: Semaphore,
    calls: AtomicUsize,
    panic: AtomicBool,
    limit: usize,
}

impl Broker {
    pub(crate) fn new() -> Arc<Self> {
        Self::of(1_000_000)
    }

    pub(crate) fn of(limit: usize) -> Arc<Self> {
        let answers = Semaphore::new(Semaphore::MAX_PERMITS);
        let (log, rule) = (Mutex::default(), Mutex::new(Box::new(|_: &Outgoing| Ok(())) as Rule));
        Arc::new(Self { log, rule, answers, calls: AtomicUsize::new(0), panic: AtomicBool::new(false), limit })
    }

    /// From now on it decides like this.
    pub(crate) fn decide(&self, rule: impl FnMut(&Outgoing) -> Result<(), PublishError> + Send + 'static) {
        *self.rule.lock().unwrap() = Box::new(rule);
    }

    pub(crate) fn accept(&self) {
        self.decide(|_| Ok(()));
    }

    /// From now on it takes what comes, and does not answer.
    pub(crate) fn fall_silent(&self) {
        self.answers.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub(crate) fn answer(&self) {
        self.answers.add_permits(1_000_000);
    }

    pub(crate) fn panic_at_the_next_call(&self) {
        self.panic.store(true, Ordering::SeqCst);
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn log(&self) -> Vec<Outgoing> {
        self.log.lock().unwrap().clone()
    }

    /// The data of what it has of a key, in order, repeats included.
    pub(crate) fn of_key(&self, key: &str) -> Vec<u64> {
        let of_key = |outgoing: &&Outgoing| outgoing.message.key == key;
        self.log.lock().unwrap().iter().filter(of_key).map(number).collect()
    }

    pub(crate) async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !done(self) {
            assert!(began.elapsed() < Duration::from_secs(120), "never: {what}; there are {:?}", self.numbers());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub(crate) async fn until_it_has(&self, count: usize) {
        self.until(&format!("{count} events"), |broker| broker.log.lock().unwrap().len() >= count).await;
    }

    /// The data of all that it has.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.log.lock().unwrap().iter().map(number).collect()
    }
}

fn number(outgoing: &Outgoing) -> u64 {
    serde_json::from_slice(&outgoing.message.data).unwrap()
}

/// Without what came before.
pub(crate) fn first_occurrences(numbers: Vec<u64>) -> Vec<u64> {
    let mut seen = HashSet::new();
    numbers.into_iter().filter(|number| seen.insert(*number)).collect()
}

#[async_trait]
impl Transport for Broker {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panic.swap(false, Ordering::SeqCst), "as it was told to");
        let answers = {
            let (mut log, mut rule) = (self.log.lock().unwrap(), self.rule.lock().unwrap());
            let mut waiting = HashSet::new();
            let mut answer = |outgoing: &Outgoing| {
                let key = (outgoing.topic.clone(), outgoing.message.key.clone());
                if waiting.contains(&key) {
                    return Err(PublishError::Unavailable("one before it was not accepted".into()));
                }
                let answer = rule(outgoing);
                match &answer {
                    Ok(()) => log.push(outgoing.clone()),
                    Err(PublishError::Unavailable(_)) => drop(waiting.insert(key)),
                    Err(PublishError::Refused(_)) => {}
                }
                answer
            };
            batch.iter().map(&mut answer).collect()
        };
        let _permit = self.answers.acquire().await.unwrap();
        answers
    }

    async fn subscribe(&self, _: Subscription, _: Arc<dyn Receiver>) -> Result<Box<dyn Consumer>, TransportError> {
        Err(TransportError("this broker is only published to".into()))
    }

    fn system(&self) -> &'static str {
        "local"
    }

    fn max_message_bytes(&self) -> usize {
        self.limit
    }
}
