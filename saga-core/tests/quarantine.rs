//! Of two sagas that workers died with, only one runs at a time, until what may have killed them has ended. The other one
//! is not even owned meanwhile.

use saga_core::{CompensationCx, Cx, Engine, MemoryStore, Out, Outcome, Saga, SagaBuilder, StepError, store::Store};
use std::{
    future::pending,
    sync::{
        Arc,
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

async fn engine(store: &MemoryStore, world: &Arc<World>) -> Engine {
    let builder = Engine::builder(store.clone()).register::<Poison>(world.clone()).unwrap();
    let builder = builder.register::<Innocent>(world.clone()).unwrap();
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
