//! Leases, takeovers and shutdowns.

mod common;

use async_trait::async_trait;
use common::{Order, Script, World, engine, until};
use saga_core::{
    Engine, MemoryStore, Outcome, SagaId, WorkerId,
    machine::Status,
    store::{
        Append, Appended, Census, DefinitionId, Hint, Mail, Posted, Record, Ripe, Room, Start, Started, Store,
        StoreError,
    },
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::broadcast, time::Instant};

/// A store that can be cut off from one engine.
#[derive(Clone)]
struct Wire {
    store: MemoryStore,
    cut: Arc<AtomicBool>,
    /// So many seconds each append takes.
    slow: Arc<AtomicU64>,
}

impl Wire {
    fn to(store: &MemoryStore) -> Self {
        Self { store: store.clone(), cut: Arc::default(), slow: Arc::default() }
    }

    async fn pass(&self, call: &str) -> Result<(), StoreError> {
        if call == "append" {
            tokio::time::sleep(Duration::from_secs(self.slow.load(Ordering::SeqCst))).await;
        }
        match self.cut.load(Ordering::SeqCst) {
            true => Err(StoreError::Unavailable("the wire is cut".into())),
            false => Ok(()),
        }
    }
}

macro_rules! over_the_wire {
    ($($name:ident($($arg:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for Wire {
            $(async fn $name(&self, $($arg: $type),*) -> Result<$answer, StoreError> {
                self.pass(stringify!($name)).await?;
                self.store.$name($($arg),*).await
            })*
            fn hint(&self, hint: Hint) {
                self.store.hint(hint);
            }
            fn hints(&self) -> broadcast::Receiver<Hint> {
                self.store.hints()
            }
        }
    };
}

over_the_wire! {
    register(definition: &DefinitionId, fingerprint: &str) -> String;
    join(worker: WorkerId, lease: Duration, definitions: &[DefinitionId]) -> ();
    beat(worker: WorkerId, lease: Duration) -> bool;
    leave(worker: WorkerId) -> ();
    returned(worker: WorkerId) -> ();
    sweep(limit: usize) -> usize;
    start(batch: &[Start]) -> Vec<Started>;
    append(worker: WorkerId, batch: &[Append]) -> Vec<Appended>;
    claim(worker: WorkerId, definitions: &[DefinitionId], ripe: Ripe, room: Room) -> Vec<Record>;
    owned(worker: WorkerId) -> Vec<(SagaId, i64)>;
    disown(worker: WorkerId, sagas: &[(SagaId, i64)]) -> ();
    post(batch: &[Mail]) -> Vec<Posted>;
    mail(worker: WorkerId, definitions: &[DefinitionId], limit: usize) -> Vec<Mail>;
    find(name: &str, key: &str) -> Option<SagaId>;
    statuses(sagas: &[SagaId]) -> Vec<Option<Status>>;
    read(saga: SagaId) -> Option<Record>;
    census(names: &[String]) -> Vec<Census>;
    unclaimable() -> Vec<DefinitionId>;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_cut_off_drops_its_attempts_when_its_lease_lapses_and_another_takes_over() {
    let (store, world) = (MemoryStore::default(), Arc::new(World::default().will("capture", Script::Hang)));
    let wire = Wire::to(&store);
    let cut_off = Engine::builder(wire.clone()).register::<Order>(world.clone()).unwrap().start().await.unwrap();
    let saga = cut_off.sagas::<Order>().submit("k", 3).await.unwrap().id();
    until("the capture", || world.log().contains(&"capture".into())).await;
    wire.cut.store(true, Ordering::SeqCst);
    let other = engine(&store, &world).start().await.unwrap();
    let outcome = other.sagas::<Order>().get(saga).outcome().await.unwrap();
    assert_eq!(outcome, Outcome::Completed("paid for 6".into()));
    assert_eq!(world.log().iter().filter(|call| *call == "capture").count(), 2);
    // The wire is mended: the first one joins again, and works.
    wire.cut.store(false, Ordering::SeqCst);
    other.shutdown(Duration::from_secs(1)).await;
    let next = cut_off.sagas::<Order>().submit("next", 3).await.unwrap();
    assert_eq!(next.outcome().await.unwrap(), Outcome::Completed("paid for 6".into()));
}

#[tokio::test(start_paused = true)]
async fn no_attempt_starts_without_lease() {
    let (store, world) = (MemoryStore::default(), Arc::new(World::default().will("capture", Script::Retry)));
    let wire = Wire::to(&store);
    let engine = Engine::builder(wire.clone())
        .configure(|config| config.lease = Duration::from_millis(100))
        .register::<Order>(world.clone())
        .unwrap()
        .start()
        .await
        .unwrap();
    engine.sagas::<Order>().submit("k", 3).await.unwrap();
    until("the capture", || world.log().contains(&"capture".into())).await;
    wire.cut.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.log().iter().filter(|call| *call == "capture").count(), 1, "the second attempt had no lease");
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_of_the_store_costs_nothing_but_time() {
    let (store, world) = (MemoryStore::default(), Arc::new(World::default().will("capture", Script::Wait)));
    let wire = Wire::to(&store);
    let engine = Engine::builder(wire.clone()).register::<Order>(world.clone()).unwrap().start().await.unwrap();
    let order = engine.sagas::<Order>().submit("k", 3).await.unwrap();
    until("the capture", || world.log().contains(&"capture".into())).await;
    wire.cut.store(true, Ordering::SeqCst);
    world.gate.open();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!world.log().contains(&"deliver".into()), "the capture is not durable yet");
    wire.cut.store(false, Ordering::SeqCst);
    assert_eq!(order.outcome().await.unwrap(), Outcome::Completed("paid for 6".into()));
    assert_eq!(world.log().iter().filter(|call| *call == "capture").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_lets_attempts_end_within_the_grace_and_hands_over_at_once() {
    let (store, world) = (MemoryStore::default(), Arc::new(World::default().will("capture", Script::Wait)));
    let first = engine(&store, &world).start().await.unwrap();
    let second = engine(&store, &world).start().await.unwrap();
    let saga = first.sagas::<Order>().submit("k", 3).await.unwrap().id();
    until("the capture", || world.log().contains(&"capture".into())).await;
    let began = Instant::now();
    let (gate, shutdown) = (world.clone(), tokio::spawn(first.shutdown(Duration::from_secs(60))));
    tokio::time::sleep(Duration::from_secs(3)).await;
    gate.gate.open();
    shutdown.await.unwrap();
    let outcome = second.sagas::<Order>().get(saga).outcome().await.unwrap();
    assert_eq!(outcome, Outcome::Completed("paid for 6".into()));
    assert_eq!(world.log().iter().filter(|call| *call == "capture").count(), 1, "its end was journaled");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_outlasts_the_grace_is_in_doubt_and_no_lapse() {
    let (store, world) = (MemoryStore::default(), Arc::new(World::default().will("capture", Script::Hang)));
    let first = engine(&store, &world).start().await.unwrap();
    let saga = first.sagas::<Order>().submit("k", 3).await.unwrap().id();
    until("the capture", || world.log().contains(&"capture".into())).await;
    let began = Instant::now();
    first.shutdown(Duration::from_secs(2)).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let second = engine(&store, &world).start().await.unwrap();
    let saga = second.sagas::<Order>().get(saga);
    assert_eq!(saga.outcome().await.unwrap(), Outcome::Completed("paid for 6".into()));
    let told = saga.history().await.unwrap().to_string();
    assert!(told.contains("capture will be tried again, and it may have happened: stopped in the middle"), "{told}");
    assert!(!told.contains("worker was lost"), "{told}");
}

/// Whatever begins may be what kills the worker.
#[tokio::test(start_paused = true)]
async fn nothing_begins_before_the_suspects_that_were_claimed_with_it_are_put_back() {
    assert_eq!(free_suspects_when_another_begins(1).await, 1, "one is in quarantine, and one was put back");
}

/// Somebody holds its row, say.
#[tokio::test(start_paused = true)]
async fn a_suspect_that_cannot_be_put_back_does_not_hold_up_others_for_long() {
    assert_eq!(free_suspects_when_another_begins(3600).await, 0, "it is on its way back");
}

/// Two suspects and another saga are claimed together, and appends take so many seconds.
async fn free_suspects_when_another_begins(slow: u64) -> usize {
    let hang = |world: World, _| world.will("capture", Script::Hang);
    let (store, world) = (MemoryStore::default(), Arc::new((0..5).fold(World::default(), hang)));
    let calls = |what: &str| world.log().iter().filter(|call| *call == what).count();
    let client = Engine::builder(store.clone()).start().await.unwrap();
    let suspects = [
        client.sagas::<Order>().submit("one", 3).await.unwrap().id(),
        client.sagas::<Order>().submit("another", 3).await.unwrap().id(),
    ];
    for lives in 1..=2 {
        let victim = engine(&store, &world).start().await.unwrap();
        until("both are under way", || calls("capture") == 2 * lives).await;
        victim.kill().await;
    }
    client.sagas::<Order>().submit("a third", 3).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(store.sweep(9).await.unwrap(), 2);
    // All three are claimed together.
    let wire = Wire::to(&store);
    wire.slow.store(slow, Ordering::SeqCst);
    let _engine = Engine::builder(wire).register::<Order>(world.clone()).unwrap().start().await.unwrap();
    until("the third begins", || calls("reserve") == 3).await;
    // What has mail can be claimed, unless somebody owns it.
    let mail = suspects.map(|saga| Mail { saga, message: "m".into(), body: b"{}".to_vec() });
    store.post(&mail).await.unwrap();
    let order = [DefinitionId { name: "order".into(), version: 1 }];
    store.claim(WorkerId::generate(), &order, Ripe::Mailed, Room::of(9)).await.unwrap().len()
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_takes_its_workers_with_it_is_parked_after_three() {
    let mut world = World::default();
    for _ in 0..9 {
        world = world.will("capture", Script::Hang);
    }
    let (store, world) = (MemoryStore::default(), Arc::new(world));
    let client = Engine::builder(store.clone()).start().await.unwrap();
    let saga = client.sagas::<Order>().submit("k", 3).await.unwrap();
    for captures in 1..=3 {
        let victim = engine(&store, &world).start().await.unwrap();
        until("a capture", || world.log().iter().filter(|call| *call == "capture").count() == captures).await;
        victim.kill().await;
    }
    let survivor = engine(&store, &world).start().await.unwrap();
    let Outcome::Parked(why) = saga.outcome().await.unwrap() else { panic!("not parked") };
    assert!(why.reason.contains("3 workers were lost"), "{why}");
    let other = survivor.sagas::<Order>().submit("other", 3).await.unwrap();
    let captures = world.log().iter().filter(|call| *call == "capture").count();
    assert_eq!(captures, 3, "no fourth worker ran it");
    drop(other);
}
