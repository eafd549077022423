//! Sagas of several versions side by side: how one that runs on an older version is asked about, and one whose type is
//! not known.

use saga_core::{Cx, Encoded, Engine, Error, MemoryStore, Out, Outcome, Saga, SagaBuilder, SagaId, Status, StepError};

/// A saga of this name and version, which returns its input, in another type perhaps, or fails.
macro_rules! saga {
    ($name:ident: $saga:literal v $version:literal -> $output:ty, $steps:expr) => {
        struct $name;
        impl Saga for $name {
            const NAME: &'static str = $saga;
            const VERSION: u32 = $version;
            type Input = u32;
            type Output = $output;
            type Deps = ();
            fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, $output> {
                for step in $steps {
                    saga.effect_free(step).run(async |_: Cx<()>, _: u32| Ok(()));
                }
                saga.pivot("pay").run(async |_: Cx<()>, n: u32| match n {
                    0 => Err(StepError::fail("for nothing")),
                    1 => Err(StepError::unknown("who knows")),
                    n => Ok(n.to_string().parse()?),
                })
            }
        }
    };
}
saga!(Old: "order" v 1 -> u64, ["look", "ask", "wait"]);
saga!(New: "order" v 2 -> u64, ["look"]);
saga!(Renamed: "order" v 3 -> String, ["look"]);
saga!(Another: "invoice" v 1 -> u64, ["look"]);

/// An engine on which two orders of the first version have ended, one completed and one rolled back.
async fn orders() -> (Engine, [SagaId; 2]) {
    let builder = Engine::builder(MemoryStore::default()).register::<Old>(()).unwrap().register::<New>(()).unwrap();
    let engine = builder.register::<Renamed>(()).unwrap().register::<Another>(()).unwrap().start().await.unwrap();
    let old = engine.sagas::<Old>();
    let ended = async |key: &str, n| {
        let order = old.submit(key, n).await.unwrap();
        order.outcome().await.unwrap();
        order.id()
    };
    let ids = [ended("seven", 7).await, ended("nothing", 0).await];
    (engine, ids)
}

#[tokio::test(start_paused = true)]
async fn a_handle_of_the_newer_type_reads_a_saga_of_the_older_version() {
    let (engine, [seven, nothing]) = orders().await;
    let new = engine.sagas::<New>();
    let found = new.find("seven").await.unwrap().expect("it has that key");
    assert_eq!((found.id(), found.status().await.unwrap()), (seven, Status::Completed));
    assert_eq!(found.outcome().await.unwrap(), Outcome::Completed(7));
    let history = found.history().await.unwrap();
    // By the graph that it ran on.
    assert_eq!(history.state().steps().len(), 4);
    assert!(history.to_string().contains("wait succeeded"), "{history}");
    assert_eq!(history.outcome().unwrap(), Some(Outcome::Completed(7)));
    let Outcome::RolledBack(why) = new.get(nothing).outcome().await.unwrap() else { panic!("it was refused") };
    assert_eq!(why.to_string(), "pay: for nothing");
}

#[tokio::test(start_paused = true)]
async fn an_output_that_is_another_type_by_now_is_an_error_that_says_so_and_its_history_can_be_read() {
    let (engine, [seven, nothing]) = orders().await;
    let renamed = engine.sagas::<Renamed>();
    let error = renamed.get(seven).outcome().await.unwrap_err();
    assert!(matches!(error, Error::Codec(_)), "{error}");
    assert!(renamed.get(seven).history().await.unwrap().to_string().contains("pay succeeded"));
    assert!(matches!(renamed.get(nothing).outcome().await.unwrap(), Outcome::RolledBack(_)));
    assert_eq!(engine.outcome(seven).await.unwrap(), Outcome::Completed(Encoded::of(&7).unwrap()));
}

#[tokio::test(start_paused = true)]
async fn an_outcome_is_read_without_its_type() {
    let (engine, [seven, nothing]) = orders().await;
    assert_eq!(engine.outcome(seven).await.unwrap(), Outcome::Completed(Encoded::of(&7).unwrap()));
    let Outcome::RolledBack(why) = engine.outcome(nothing).await.unwrap() else { panic!("it was refused") };
    assert_eq!(why.to_string(), "pay: for nothing");
    // One that does not end: its pivot stays in doubt.
    let parked = engine.sagas::<Another>().submit("one", 1).await.unwrap();
    assert!(matches!(parked.outcome().await.unwrap(), Outcome::Parked(_)));
    let Outcome::Parked(why) = engine.outcome(parked.id()).await.unwrap() else { panic!("it has no output") };
    assert_eq!(why.step.as_deref(), Some("pay"));
    let unknown = SagaId::generate();
    assert!(matches!(engine.outcome(unknown).await.unwrap_err(), Error::NoSuchSaga(saga) if saga == unknown));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_registered_is_named_and_its_status_is_known_all_the_same() {
    let store = MemoryStore::default();
    let both = Engine::builder(store.clone()).register::<Old>(()).unwrap();
    let both = both.register::<Another>(()).unwrap().start().await.unwrap();
    let order = both.sagas::<Old>().submit("seven", 7).await.unwrap();
    order.outcome().await.unwrap();
    let engine = Engine::builder(store).register::<New>(()).unwrap().start().await.unwrap();
    let error = engine.outcome(order.id()).await.unwrap_err();
    let told = format!(
        "saga {} is a `order v1`, which is not registered here: register it, or ask for the saga's `status`",
        order.id()
    );
    assert!(matches!(error, Error::NotRegistered { .. }), "{error}");
    assert_eq!(error.to_string(), told);
    let found = engine.sagas::<New>().find("seven").await.unwrap().unwrap();
    for error in [found.outcome().await.map(drop), found.history().await.map(drop)].map(Result::unwrap_err) {
        let Error::WrongDefinition { saga, found, expected } = &error else { panic!("{error}") };
        assert_eq!((*saga, found.as_str(), expected.as_str()), (order.id(), "order v1", "order v2"));
    }
    assert_eq!(found.status().await.unwrap(), Status::Completed);
    // Another name is another type, registered or not.
    let strange = both.sagas::<Another>().get(order.id());
    assert!(matches!(strange.outcome().await.unwrap_err(), Error::WrongDefinition { .. }));
    // Its own version needs no registration, where only sagas are started.
    let client = Engine::builder(MemoryStore::default()).start().await.unwrap();
    let waiting = client.sagas::<Old>().submit("k", 7).await.unwrap();
    assert_eq!(waiting.history().await.unwrap().outcome().unwrap(), None);
}
