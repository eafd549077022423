//! Of two sagas that workers died with, only one runs at a time, until what may have killed them has ended. The other one
//! is not even owned meanwhile.

use saga_core::{
    CompensationCx, Cx, Engine, MemoryStore, Out, Outcome, Saga, SagaBuilder, SagaId, StepError, WorkerId,
    store::{DefinitionId, Mail, Ripe, Room, Store},
};
use std::{
    future::pending,
    sync::{
        Arc,
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct World {
    /// Whether the harmless branch gets anywhere.
    goes_on: AtomicBool,
    harmless: AtomicUsize,
    harmful: AtomicUsize,
    innocent: AtomicUsize,
    /// What a witness looks at, and whether it was found to be nobody's.
    looked_at: OnceLock<(MemoryStore, SagaId)>,
    was_free: AtomicBool,
}

/// Two branches: one makes progress, one does the harm.
struct Poison;

impl Saga for Poison {
    const NAME: &'static str = "poison";
    const VERSION: u32 = 1;
    type Input = ();
    type Output = ();
    type Deps = World;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        let (harmless, harmful) = saga.parallel(|saga| {
            (
                saga.compensatable("harmless").run(harmless).compensate(undo),
                saga.compensatable("harmful").run(harmful).compensate(undo),
            )
        });
        saga.pivot("end").reads((harmless, harmful)).run(async |_: Cx<World>, (), (), ()| Ok(()))
    }
}

async fn harmless(world: Cx<World>, (): ()) -> Result<(), StepError> {
    if world.goes_on.load(Ordering::SeqCst) {
        world.harmless.fetch_add(1, Ordering::SeqCst);
        return Ok(());
    }
    pending().await
}

async fn harmful(world: Cx<World>, (): ()) -> Result<(), StepError> {
    world.harmful.fetch_add(1, Ordering::SeqCst);
    pending().await
}

async fn undo(_: CompensationCx<World>, (): (), _: Option<()>) -> Result<(), StepError> {
    Ok(())
}

struct Innocent;

impl Saga for Innocent {
    const NAME: &'static str = "innocent";
    const VERSION: u32 = 1;
    type Input = ();
    type Output = ();
    type Deps = World;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        saga.pivot("work").run(async |world: Cx<World>, ()| {
            world.innocent.fetch_add(1, Ordering::SeqCst);
            pending().await
        })
    }
}

/// Sees with its first step whether another saga has an owner.
struct Witness;

impl Saga for Witness {
    const NAME: &'static str = "witness";
    const VERSION: u32 = 1;
    type Input = ();
    type Output = ();
    type Deps = World;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        saga.pivot("look").run(async |world: Cx<World>, ()| {
            let (store, saga) = world.looked_at.get().unwrap();
            // What has mail can be claimed, unless somebody owns it.
            let mail = Mail { saga: *saga, message: "m".into(), body: br#"{"cancel":{"reason":""}}"#.to_vec() };
            store.post(&[mail]).await.unwrap();
            let innocent = [DefinitionId { name: "innocent".into(), version: 1 }];
            let claimed = store.claim(WorkerId::generate(), &innocent, Ripe::Mailed, Room::of(9)).await.unwrap();
            world.was_free.store(claimed.iter().any(|record| record.saga == *saga), Ordering::SeqCst);
            Ok(())
        })
    }
}

async fn engine(store: &MemoryStore, world: &Arc<World>) -> Engine {
    let builder = Engine::builder(store.clone()).register::<Poison>(world.clone()).unwrap();
    let builder = builder.register::<Innocent>(world.clone()).unwrap().register::<Witness>(world.clone()).unwrap();
    builder.configure(|config| config.lease = LEASE).start().await.unwrap()
}

async fn until(count: &AtomicUsize, number: usize) {
    while count.load(Ordering::SeqCst) < number {
        sleep(SECOND / 10).await;
    }
}

#[tokio::test(start_paused = true)]
async fn progress_of_another_branch_says_nothing_about_the_one_that_may_have_killed_the_worker() {
    let (store, world) = (MemoryStore::default(), Arc::new(World::default()));
    let mut running = engine(&store, &world).await;
    running.sagas::<Poison>().submit("k", ()).await.unwrap();
    running.sagas::<Innocent>().submit("k", ()).await.unwrap();
    // Two workers die with both of them.
    for life in 1..=2 {
        until(&world.harmful, life).await;
        until(&world.innocent, life).await;
        running.kill().await;
        world.goes_on.store(life == 2, Ordering::SeqCst);
        running = engine(&store, &world).await;
    }
    until(&world.harmless, 1).await;
    until(&world.harmful, 3).await;
    // The one that may do harm is under way: the other one waits.
    sleep(LEASE / 4).await;
    assert_eq!(world.innocent.load(Ordering::SeqCst), 2, "it runs beside what may kill its worker");
    // For no longer than a lease: what takes longer does no harm at once.
    sleep(LEASE).await;
    assert!(world.innocent.load(Ordering::SeqCst) > 2);
}

/// What is claimed and put back is lost as well if its worker dies in between.
#[tokio::test(start_paused = true)]
async fn a_suspect_is_not_owned_beside_a_saga_in_quarantine() {
    let (store, world) = (MemoryStore::default(), Arc::new(World::default()));
    let mut running = engine(&store, &world).await;
    let poison = running.sagas::<Poison>().submit("k", ()).await.unwrap().id();
    let innocent = running.sagas::<Innocent>().submit("k", ()).await.unwrap().id();
    for life in 1..=2 {
        until(&world.harmful, life).await;
        until(&world.innocent, life).await;
        running.kill().await;
        running = engine(&store, &world).await;
    }
    until(&world.harmful, 3).await;
    // Both were claimed together, and it was put back before the other one began.
    let epoch = store.read(innocent).await.unwrap().unwrap().epoch;
    running.sagas::<Innocent>().cancel(innocent, "it has mail, too").await.unwrap();
    sleep(5 * SECOND).await;
    assert_eq!(store.read(innocent).await.unwrap().unwrap().epoch, epoch, "it was claimed");
    running.kill().await;
    // Three died with the other one, and two with this one, which goes on.
    let survivor = engine(&store, &world).await;
    assert!(matches!(survivor.sagas::<Poison>().get(poison).outcome().await.unwrap(), Outcome::Parked(_)));
    until(&world.innocent, 3).await;
    assert_eq!(store.read(innocent).await.unwrap().unwrap().lapses, 2);
}

/// Whatever begins may be what kills the worker.
#[tokio::test(start_paused = true)]
async fn nothing_begins_before_what_was_claimed_with_it_is_put_back() {
    let (store, world) = (MemoryStore::default(), Arc::new(World::default()));
    let mut running = engine(&store, &world).await;
    running.sagas::<Poison>().submit("k", ()).await.unwrap();
    let innocent = running.sagas::<Innocent>().submit("k", ()).await.unwrap().id();
    world.looked_at.set((store.clone(), innocent)).unwrap();
    for life in 1..=2 {
        until(&world.harmful, life).await;
        until(&world.innocent, life).await;
        running.kill().await;
        if life == 2 {
            // By a process that runs none.
            let client = Engine::builder(store.clone()).start().await.unwrap();
            client.sagas::<Witness>().submit("k", ()).await.unwrap();
        }
        running = engine(&store, &world).await;
    }
    let client = Engine::builder(store.clone()).start().await.unwrap();
    let witness = client.sagas::<Witness>().submit("k", ()).await.unwrap();
    assert_eq!(witness.outcome().await.unwrap(), Outcome::Completed(()));
    assert!(world.was_free.load(Ordering::SeqCst), "it was still owned");
}
