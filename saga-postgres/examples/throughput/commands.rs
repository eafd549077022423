//! A saga of three commands, to a participant in this process.

use saga_core::{
    Out, Saga, SagaBuilder, StepError,
    participant::{Command, CommandCx, MemoryInbox, Participant, Participating},
    transport::Transport,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

macro_rules! command {
    ($name:ident, $kind:literal) => {
        #[derive(Serialize, Deserialize)]
        struct $name;
        impl Command for $name {
            const TYPE: &'static str = $kind;
            const TOPIC: &'static str = "participant.commands";
            type Reply = ();
        }
    };
}
command!(One, "participant.one.v1");
command!(UndoOne, "participant.undo-one.v1");
command!(Two, "participant.two.v1");
command!(Three, "participant.three.v1");

pub(crate) struct ThreeCommands;

impl Saga for ThreeCommands {
    const NAME: &'static str = "throughput-of-commands";
    const VERSION: u32 = 1;
    type Input = ();
    type Output = ();
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, ()> {
        saga.compensatable("one").command(|()| One).compensate_command(|(), _| UndoOne);
        saga.pivot("two").command(|()| Two);
        saga.retriable("three").command(|()| Three)
    }
}

pub(crate) async fn participate(transport: Arc<dyn Transport>) -> Participating {
    let participant = Participant::new("participant", MemoryInbox::default(), ());
    participant.on(one).on_undo(undo_one).on(two).on(three).start(transport).await.expect("a participant")
}

async fn one(_: CommandCx<()>, (): &mut (), _: One) -> Result<(), StepError> {
    Ok(())
}

async fn undo_one(_: CommandCx<()>, (): &mut (), _: UndoOne) -> Result<(), StepError> {
    Ok(())
}

async fn two(_: CommandCx<()>, (): &mut (), _: Two) -> Result<(), StepError> {
    Ok(())
}

async fn three(_: CommandCx<()>, (): &mut (), _: Three) -> Result<(), StepError> {
    Ok(())
}
