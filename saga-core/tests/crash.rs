//! `crash_everywhere` on sagas that keep their promises, and on some that do not: it has to tell them apart.

use saga_core::{
    CompensationCx, Cx, Out, Saga, SagaBuilder, StepError,
    testing::{Report, World, crash_everywhere},
};
use std::panic::catch_unwind;

/// Two parallel reservations, a pivot that reads one of them, two retriable steps.
struct Order;

impl Saga for Order {
    const NAME: &'static str = "order";
    const VERSION: u32 = 1;
    type Input = u32;
    type Output = String;
    type Deps = World;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, String> {
        saga.effect_free("validate").run(async |_, quantity: u32| Ok(quantity));
        let (stock, _) = saga.parallel(|saga| {
            (
                saga.compensatable("reserve").run(reserve).compensate(release),
                saga.compensatable("authorize").run(apply).compensate(revert),
            )
        });
        let receipt = saga.pivot("capture").reads(stock).run(capture);
        saga.retriable("deliver").run(apply);
        saga.retriable("thank")
            .reads(receipt)
            .run(async |world: Cx<World>, _, _: String| world.apply(world.idempotency_key()));
        receipt
    }
}

async fn reserve(world: Cx<World>, quantity: u32) -> Result<u32, StepError> {
    world.apply(world.idempotency_key())?;
    Ok(quantity)
}
async fn release(world: CompensationCx<World>, _: u32, _: Option<u32>) -> Result<(), StepError> {
    world.revert(world.forward_key())
}
async fn apply(world: Cx<World>, _: u32) -> Result<(), StepError> {
    world.apply(world.idempotency_key())
}
async fn revert(world: CompensationCx<World>, _: u32, _: Option<()>) -> Result<(), StepError> {
    world.revert(world.forward_key())
}
async fn capture(world: Cx<World>, _: u32, stock: u32) -> Result<String, StepError> {
    world.apply(world.idempotency_key())?;
    Ok(format!("paid for {stock}"))
}

#[test]
fn a_saga_that_keeps_its_promises_survives_everything() {
    let report = crash_everywhere::<Order>(|| 3, |world| world);
    println!("{report}");
    let Report { completed, rolled_back, parked, .. } = report;
    assert!(completed > 60 && rolled_back > 60 && parked > 5, "{report}");
}

fn complaint<S: Saga<Input = u32, Deps = World>>() -> String {
    let panic = catch_unwind(|| crash_everywhere::<S>(|| 3, |world| world)).expect_err("it should have complained");
    *panic.downcast::<String>().unwrap()
}

macro_rules! saga {
    ($name:ident, $saga:ident => $define:block) => {
        struct $name;
        impl Saga for $name {
            const NAME: &'static str = stringify!($name);
            const VERSION: u32 = 1;
            type Input = u32;
            type Output = ();
            type Deps = World;
            fn define($saga: &mut SagaBuilder<Self>) -> Out<Self, ()> $define
        }
    };
}

saga!(Forgetful, saga => {
    saga.compensatable("reserve").run(apply).compensate(async |_, _, _: Option<()>| Ok(()));
    saga.pivot("capture").run(apply)
});

#[test]
fn an_undo_that_forgets_something_is_found() {
    assert!(complaint::<Forgetful>().contains("it was rolled back, but these effects stand: [\"<saga>/reserve\"]"));
}

saga!(Trusting, saga => {
    saga.compensatable("reserve").run(apply).compensate(async |world: CompensationCx<World>, _, known: Option<()>| {
        match known {
            Some(()) => world.revert(world.forward_key()),
            None => Ok(()),
        }
    });
    saga.pivot("capture").run(apply)
});

#[test]
fn an_undo_that_does_nothing_in_doubt_is_found() {
    let complaint = complaint::<Trusting>();
    assert!(complaint.contains("it was rolled back, but these effects stand"), "{complaint}");
}

saga!(Unkeyed, saga => {
    saga.compensatable("reserve").run(apply).compensate(revert);
    saga.pivot("capture").run(async |world: Cx<World>, _| {
        let number = world.effects().len();
        world.apply(format!("charge {number}"))
    })
});

#[test]
fn an_effect_without_a_key_is_found() {
    let complaint = complaint::<Unkeyed>();
    assert!(complaint.contains("it completed, but of the effects"), "{complaint}");
}

saga!(Silent, saga => {
    saga.compensatable("reserve").run(async |_, _| Ok(())).compensate(async |_, _, _: Option<()>| Ok(()));
    saga.pivot("capture").run(async |_, _| Ok(()))
});

#[test]
fn fakes_that_say_nothing_of_what_they_do_prove_nothing() {
    let complaint = complaint::<Silent>();
    assert!(complaint.contains("there is no effect in the `World`"), "{complaint}");
}

saga!(Harmless, saga => {
    saga.effect_free("look").run(async |_, _| Ok(()))
});

#[test]
fn a_saga_that_only_looks_has_no_effects() {
    crash_everywhere::<Harmless>(|| 3, |world| world);
}
