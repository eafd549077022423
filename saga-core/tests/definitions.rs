//! What a definition's words mean: who waits for whom, and what is refused.

use saga_core::{
    BuildError, CompensationCx, Cx, Definition, Engine, Error, MemoryStore, Out, Saga, SagaBuilder, StepError,
    testing::same_graph,
};

async fn nothing(_: Cx<()>, (): ()) -> Result<(), StepError> {
    Ok(())
}
async fn undo(_: CompensationCx<()>, (): (), _: Option<()>) -> Result<(), StepError> {
    Ok(())
}

/// A saga whose definition is `$define`.
macro_rules! saga {
    ($name:ident, $saga:ident => $define:block) => {
        pub(crate) struct $name;
        impl Saga for $name {
            const NAME: &'static str = stringify!($name);
            const VERSION: u32 = 1;
            type Input = ();
            type Output = ();
            type Deps = ();
            fn define($saga: &mut SagaBuilder<Self>) -> Out<Self, ()> $define
        }
    };
}

saga!(List, saga => {
    saga.effect_free("a").run(nothing);
    saga.compensatable("b").run(nothing).compensate(undo);
    saga.pivot("c").run(nothing)
});

#[test]
fn a_list_runs_in_the_order_written() {
    same_graph::<List>("a: effect-free\nb: compensatable after a\nc: pivot after b\n");
}

saga!(Branches, saga => {
    saga.effect_free("before").run(nothing);
    saga.parallel(|saga| {
        saga.effect_free("alone").run(nothing);
        saga.sequence(|saga| {
            saga.effect_free("first").run(nothing);
            saga.effect_free("second").run(nothing);
        });
    });
    saga.pivot("after").run(nothing)
});

#[test]
fn branches_start_together_and_what_follows_waits_for_all() {
    same_graph::<Branches>(
        "before: effect-free\nalone: effect-free after before\nfirst: effect-free after before\n\
         second: effect-free after first\nafter: pivot after alone, second\n",
    );
}

saga!(Reading, saga => {
    saga.parallel(|saga| {
        let a = saga.effect_free("a").run(nothing);
        saga.effect_free("b").reads(a).run(async |_, (), ()| Ok(()));
        saga.effect_free("c").run(nothing);
    });
    saga.effect_free("d").run(nothing)
});

#[test]
fn in_parallel_a_step_waits_for_what_it_reads_only() {
    same_graph::<Reading>("a: effect-free\nb: effect-free after a\nc: effect-free\nd: effect-free after b, c\n");
}

saga!(After, saga => {
    let a = saga.effect_free("a").run(nothing);
    saga.effect_free("b").run(nothing);
    saga.effect_free("c").after(a).run(nothing);
    saga.effect_free("d").run(nothing)
});

#[test]
fn after_replaces_the_default_wait_and_what_follows_still_waits_for_all() {
    same_graph::<After>("a: effect-free\nb: effect-free after a\nc: effect-free after a\nd: effect-free after b, c\n");
}

saga!(Empty, saga => {
    let a = saga.effect_free("a").run(nothing);
    saga.parallel(|_| ());
    saga.effect_free("b").run(nothing);
    a
});

#[test]
fn an_empty_block_changes_nothing() {
    same_graph::<Empty>("a: effect-free\nb: effect-free after a\n");
}

saga!(Unfinished, saga => {
    let _ = saga.compensatable("reserve").run(nothing);
    saga.pivot("charge").run(nothing)
});

#[test]
fn a_compensatable_step_without_its_compensation_is_refused_by_name() {
    let error = Definition::<Unfinished>::build().map(|_| ()).unwrap_err();
    assert!(matches!(&error, BuildError::NoCompensation { step, .. } if step == "reserve"), "{error}");
}

saga!(Twice, saga => {
    saga.effect_free("a").run(nothing);
    saga.effect_free("a").run(nothing)
});

#[test]
fn a_name_that_is_used_twice_is_refused_when_the_saga_is_registered() {
    let error = Engine::builder(MemoryStore::default()).register::<Twice>(()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("two steps are named `a`"), "{error}");
}

mod changed {
    use super::*;

    saga!(List, saga => {
        saga.effect_free("a").run(nothing);
        saga.pivot("c").run(nothing)
    });
}

#[tokio::test]
async fn a_changed_graph_under_the_same_version_is_refused_and_both_are_shown() {
    let store = MemoryStore::default();
    let engine = Engine::builder(store.clone()).register::<List>(()).unwrap().start().await.unwrap();
    engine.kill().await;
    let changed = Engine::builder(store).register::<changed::List>(()).unwrap().start().await;
    let error = changed.map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::ChangedGraph { .. }));
    assert!(error.to_string().contains("b: compensatable after a"), "{error}");
}

#[test]
#[should_panic(expected = "change its version together with its graph")]
fn a_changed_graph_is_found_by_the_users_ci() {
    same_graph::<changed::List>("a: effect-free\nb: compensatable after a\nc: pivot after b\n");
}
