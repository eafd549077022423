use super::{
    Saga,
    context::{CompensationCx, Cx},
    graph::{Kind, Node, StepIndex},
    work::{self, Backward, Forward, Work},
};
use crate::{Payload, Retry, StepError, participant::Command};
use std::{marker::PhantomData, time::Duration};

/// The output of a step that has not run yet: to be read by later steps, or to be the saga's own output.
///
/// It belongs to the saga type `S`, so that the steps of two sagas cannot be mixed up.
pub struct Out<S, T> {
    pub(crate) step: StepIndex,
    brand: PhantomData<fn() -> (S, T)>,
}

impl<S, T> Out<S, T> {
    fn new(step: StepIndex) -> Self {
        Self { step, brand: PhantomData }
    }
}

impl<S, T> Clone for Out<S, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S, T> Copy for Out<S, T> {}

impl<S, T> std::fmt::Debug for Out<S, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Out({})", self.step)
    }
}

/// Declares the steps of a saga, in the order in which they run.
///
/// The first word of a line is the step's kind, then come its policies, then the work, then (for a compensatable step) its undo:
///
/// ```
/// # use saga_core::{*, definition::*};
/// # struct Order; struct Shop;
/// # impl Saga for Order {
/// #     const NAME: &'static str = "order"; const VERSION: u32 = 1;
/// #     type Input = u32; type Output = String; type Deps = Shop;
/// fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, String> {
///     let reservation = saga.compensatable("reserve-stock").run(reserve).compensate(release);
///     saga.pivot("charge").reads(reservation).run(charge)
/// }
/// # }
/// # async fn reserve(_: Cx<Shop>, _: u32) -> Result<u64, StepError> { Ok(1) }
/// # async fn release(_: CompensationCx<Shop>, _: u32, _: Option<u64>) -> Result<(), StepError> { Ok(()) }
/// # async fn charge(_: Cx<Shop>, _: u32, reservation: u64) -> Result<String, StepError> { Ok(String::new()) }
/// # Definition::<Order>::build().unwrap();
/// ```
pub struct SagaBuilder<S: Saga> {
    nodes: Vec<Node>,
    works: Vec<Work<S::Deps>>,
    scope: Scope,
}

/// What a step waits for when it does not say so itself.
#[derive(Debug, Default)]
struct Scope {
    parallel: bool,
    /// What the next step waits for.
    awaited: Vec<StepIndex>,
    /// In a parallel scope: the ends of what was declared in it.
    ends: Vec<StepIndex>,
}

impl<S: Saga> SagaBuilder<S> {
    pub(crate) fn new() -> Self {
        Self { nodes: vec![], works: vec![], scope: Scope::default() }
    }

    pub(crate) fn finish(self) -> (Vec<Node>, Vec<Work<S::Deps>>) {
        (self.nodes, self.works)
    }

    /// A step that reads or computes: there is nothing to undo.
    pub fn effect_free(&mut self, name: &'static str) -> Step<'_, S, EffectFree> {
        Step::new(self, name)
    }

    /// A step that changes the world and knows how to undo itself.
    pub fn compensatable(&mut self, name: &'static str) -> Step<'_, S, Compensatable> {
        Step::new(self, name)
    }

    /// The point of no return: if it fails everything before it is undone, once it succeeded everything after it goes forward.
    pub fn pivot(&mut self, name: &'static str) -> Step<'_, S, Pivot> {
        Step::new(self, name)
    }

    /// A step after the pivot: tried until it succeeds, never undone.
    pub fn retriable(&mut self, name: &'static str) -> Step<'_, S, Retriable> {
        Step::new(self, name)
    }

    /// Exists for its error message only: a step's kind cannot be left out.
    #[doc(hidden)]
    pub fn step(&mut self, name: &'static str) -> Step<'_, S, Compensatable>
    where
        Self: StatesItsKind,
    {
        Step::new(self, name)
    }

    /// Steps (or [sequences](Self::sequence) of steps) that do not wait for each other, except where one reads another.
    /// What follows waits for all of them.
    pub fn parallel<R>(&mut self, declare: impl FnOnce(&mut Self) -> R) -> R {
        self.scoped(true, declare)
    }

    /// Inside [`parallel`](Self::parallel): steps that run in the order written, beside the others.
    pub fn sequence<R>(&mut self, declare: impl FnOnce(&mut Self) -> R) -> R {
        self.scoped(false, declare)
    }

    fn scoped<R>(&mut self, parallel: bool, declare: impl FnOnce(&mut Self) -> R) -> R {
        let inner = Scope { parallel, awaited: self.scope.awaited.clone(), ends: vec![] };
        let outer = std::mem::replace(&mut self.scope, inner);
        let first = self.nodes.len();
        let result = declare(self);
        self.scope = outer;
        let declared = first..self.nodes.len();
        let is_end = |step: &StepIndex| !self.nodes[*step..].iter().any(|later| later.after.contains(step));
        let ends: Vec<StepIndex> = declared.clone().filter(is_end).collect();
        for step in declared {
            self.scope.no_longer_awaits(&self.nodes[step].after);
        }
        match self.scope.parallel {
            true => self.scope.ends.extend(ends),
            false => self.scope.awaited.extend(ends),
        }
        result
    }

    fn push(&mut self, mut node: Node, after: Option<Vec<StepIndex>>, work: Work<S::Deps>) -> StepIndex {
        let step = self.nodes.len();
        node.after = after.unwrap_or_else(|| self.scope.awaited.clone());
        node.after.extend(&node.reads);
        node.after.sort_unstable();
        node.after.dedup();
        for &read in &node.reads {
            if let Some(read) = self.nodes.get_mut(read) {
                read.output_is_read = true;
            }
        }
        self.scope.no_longer_awaits(&node.after);
        match self.scope.parallel {
            true => self.scope.ends.push(step),
            false => self.scope.awaited.push(step),
        }
        self.nodes.push(node);
        self.works.push(work);
        step
    }
}

impl Scope {
    /// Who waits for a step waits for all before it. Parallel steps all wait for what came before their block.
    fn no_longer_awaits(&mut self, steps: &[StepIndex]) {
        if !self.parallel {
            self.awaited.retain(|awaited| !steps.contains(awaited));
        }
    }
}

#[diagnostic::on_unimplemented(
    message = "every step of a saga says which kind it is: write `.effect_free(name)`, `.compensatable(name)`, `.pivot(name)` or `.retriable(name)`",
    label = "the kind of this step is missing",
    note = "the kind says what the step may do to the world, and how the engine can take it back"
)]
#[doc(hidden)]
pub trait StatesItsKind {}

/// A step's kind, as a type.
pub trait StepKind: sealed::Sealed {
    /// The same, as a value.
    const KIND: Kind;
    /// What `run` and `command` return: the step's output, or for a compensatable step what still waits for its compensation, which
    /// has to be of the same sort `W` as the work.
    type Ran<'s, S: Saga, A, T: Payload, W>;
    #[doc(hidden)]
    fn ran<S: Saga, A, T: Payload, W>(saga: &mut SagaBuilder<S>, step: StepIndex) -> Self::Ran<'_, S, A, T, W>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! kind {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub enum $name {}
        impl sealed::Sealed for $name {}
        impl StepKind for $name {
            const KIND: Kind = Kind::$name;
            type Ran<'s, S: Saga, A, T: Payload, W> = Out<S, T>;
            fn ran<S: Saga, A, T: Payload, W>(_: &mut SagaBuilder<S>, step: StepIndex) -> Out<S, T> {
                Out::new(step)
            }
        }
    )*};
}
kind! {
    /// See [`Kind::EffectFree`].
    EffectFree
    /// See [`Kind::Pivot`].
    Pivot
    /// See [`Kind::Retriable`].
    Retriable
}

/// See [`Kind::Compensatable`].
#[derive(Debug)]
pub enum Compensatable {}
impl sealed::Sealed for Compensatable {}
impl StepKind for Compensatable {
    const KIND: Kind = Kind::Compensatable;
    type Ran<'s, S: Saga, A, T: Payload, W> = Uncompensated<'s, S, A, T, W>;
    fn ran<S: Saga, A, T: Payload, W>(saga: &mut SagaBuilder<S>, step: StepIndex) -> Uncompensated<'_, S, A, T, W> {
        Uncompensated { saga, step, types: PhantomData }
    }
}

/// Work that is a function of this process.
#[derive(Debug)]
pub enum InProcess {}

/// Work that a participant does, asked for by a command.
#[derive(Debug)]
pub enum AtParticipant {}

/// One or several outputs, to be read or waited for.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be read by a step of `{S}`",
    label = "not the output of a step of this saga",
    note = "a step can read one output, or a tuple of up to four"
)]
pub trait Outs<S> {
    /// The types of the outputs, as a tuple.
    type Types;
    #[doc(hidden)]
    fn steps(&self) -> Vec<StepIndex>;
}

impl<S, A> Outs<S> for Out<S, A> {
    type Types = (A,);
    fn steps(&self) -> Vec<StepIndex> {
        vec![self.step]
    }
}

#[diagnostic::on_unimplemented(
    message = "a compensatable step that has no compensation yet cannot be read",
    label = "finish this step's line with `.compensate(..)`, or after a command with `.compensate_command(..)`"
)]
#[doc(hidden)]
pub trait HasItsCompensation {}

/// Exists for its error message only: nothing has the trait that it asks for.
#[doc(hidden)]
impl<S: Saga, A, T, W> Outs<S> for Uncompensated<'_, S, A, T, W>
where
    Self: HasItsCompensation,
{
    type Types = (T,);
    fn steps(&self) -> Vec<StepIndex> {
        vec![self.step]
    }
}

macro_rules! outs {
    ($($name:ident $index:tt),*) => {
        impl<S, $($name),*> Outs<S> for ($(Out<S, $name>,)*) {
            type Types = ($($name,)*);
            fn steps(&self) -> Vec<StepIndex> {
                vec![$(self.$index.step),*]
            }
        }
    };
}
outs!(A0 0);
outs!(A0 0, A1 1);
outs!(A0 0, A1 1, A2 2);
outs!(A0 0, A1 1, A2 2, A3 3);

/// A step that is being declared: its policies, then its work.
#[must_use = "a step does nothing until its line ends with `.run(..)` or `.command(..)`"]
pub struct Step<'s, S: Saga, K, A = ()> {
    saga: &'s mut SagaBuilder<S>,
    node: Node,
    after: Option<Vec<StepIndex>>,
    types: PhantomData<fn() -> (K, A)>,
}

impl<'s, S: Saga, K: StepKind> Step<'s, S, K> {
    fn new(saga: &'s mut SagaBuilder<S>, name: &'static str) -> Self {
        Self { saga, node: Node::new(name, K::KIND, &[]), after: None, types: PhantomData }
    }

    /// The step's function takes these outputs, after the saga's input, and waits for their steps.
    pub fn reads<O: Outs<S>>(self, outputs: O) -> Step<'s, S, K, O::Types> {
        let mut node = self.node;
        node.reads = outputs.steps();
        Step { saga: self.saga, node, after: self.after, types: PhantomData }
    }
}

impl<'s, S: Saga, K: StepKind, A> Step<'s, S, K, A> {
    /// Waits for these steps (and for what it reads), instead of for everything written before.
    pub fn after<O: Outs<S>>(mut self, steps: O) -> Self {
        self.after = Some(steps.steps());
        self
    }

    /// When an attempt that did not succeed is made again. Defaults to 48 attempts from 200 ms on, which takes 5
    /// minutes at least, and for a retriable step to 25, which takes 8.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.node.forward.retry = retry;
        self
    }

    /// How long one attempt may take, of a command from its publication to its reply; then the outcome is unknown. Defaults to 30 seconds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.node.forward.timeout = timeout;
        self
    }
}

/// A compensatable step that still waits for its compensation.
#[must_use = "a compensatable step needs its compensation: finish its line with `.compensate(..)`, or after a command with `.compensate_command(..)`"]
pub struct Uncompensated<'s, S: Saga, A, T, W = InProcess> {
    saga: &'s mut SagaBuilder<S>,
    step: StepIndex,
    types: Types<A, T, W>,
}

/// What a step has read, what it returns, and where it works.
type Types<A, T, W> = PhantomData<fn() -> (A, T, W)>;

impl<S: Saga, A, T, W> Uncompensated<'_, S, A, T, W> {
    /// When an attempt to undo that did not succeed is made again. Defaults to 25 attempts,
    /// which takes 8 minutes at least; then the saga is parked.
    pub fn retry_compensation(self, retry: Retry) -> Self {
        self.saga.nodes[self.step].compensation.retry = retry;
        self
    }

    /// How long one attempt to undo may take; then it is dropped and made again. Defaults to 30 seconds.
    pub fn compensation_timeout(self, timeout: Duration) -> Self {
        self.saga.nodes[self.step].compensation.timeout = timeout;
        self
    }
}

macro_rules! run_and_compensate {
    ($($name:ident $arg:ident),*) => {
        impl<'s, S: Saga, K: StepKind, $($name: Payload),*> Step<'s, S, K, ($($name,)*)> {
            /// The work: a function of the context, the saga's input, and what the step reads.
            pub fn run<F, Fut, T>(self, run: F) -> K::Ran<'s, S, ($($name,)*), T, InProcess>
            where
                F: Fn(Cx<S::Deps>, S::Input, $($name),*) -> Fut + Send + Sync + 'static,
                Fut: Future<Output = Result<T, StepError>> + Send + 'static,
                T: Payload,
            {
                let run = work::run::<S, ($($name,)*), T, _, _>(move |cx, input, ($($arg,)*)| run(cx, input, $($arg),*));
                let step = self.saga.push(self.node, self.after, Work { forward: Forward::Run(run), backward: None });
                K::ran(self.saga, step)
            }

            /// The work is done by a [participant](crate::participant), which is sent this command: a pure function of the saga's input and what the step
            /// reads. The step's output is the reply. It is called once for each generation: what it returned is journaled before it is sent, and sent
            /// again under the same id until a reply comes, or the attempts are used up.
            pub fn command<F, C>(mut self, command: F) -> K::Ran<'s, S, ($($name,)*), C::Reply, AtParticipant>
            where
                F: Fn(S::Input, $($name),*) -> C + Send + Sync + 'static,
                C: Command,
            {
                self.node.command = Some(C::TYPE.into());
                let send = work::send::<S, ($($name,)*), C, _>(move |input, ($($arg,)*)| command(input, $($arg),*));
                let step = self.saga.push(self.node, self.after, Work { forward: Forward::Send(send), backward: None });
                K::ran(self.saga, step)
            }
        }

        impl<S: Saga, T: Payload, $($name: Payload),*> Uncompensated<'_, S, ($($name,)*), T, InProcess> {
            /// The undo: a function of the context, the saga's input, what the step read, and what it returned, which is
            /// `None` when the step is in doubt. It may be called more than once, and it may find nothing to undo.
            pub fn compensate<F, Fut>(self, undo: F) -> Out<S, T>
            where
                F: Fn(CompensationCx<S::Deps>, S::Input, $($name,)* Option<T>) -> Fut + Send + Sync + 'static,
                Fut: Future<Output = Result<(), StepError>> + Send + 'static,
            {
                let undo = work::undo::<S, ($($name,)*), T, _, _>(
                    move |cx, input, ($($arg,)*), output| undo(cx, input, $($arg,)* output),
                );
                self.saga.works[self.step].backward = Some(Backward::Run(undo));
                Out::new(self.step)
            }
        }

        impl<S: Saga, T: Payload, $($name: Payload),*> Uncompensated<'_, S, ($($name,)*), T, AtParticipant> {
            /// The undo: a command to the same participant, made from the saga's input, what the step read, and the reply, which is `None` when the
            /// step is in doubt. The participant's [barrier](crate::participant::Inbox) knows what there is to undo, and refuses the step's command if that comes later.
            pub fn compensate_command<F, C>(self, command: F) -> Out<S, T>
            where
                F: Fn(S::Input, $($name,)* Option<T>) -> C + Send + Sync + 'static,
                C: Command<Reply = ()>,
            {
                self.saga.nodes[self.step].undo_command = Some(C::TYPE.into());
                let undo = work::send_undo::<S, ($($name,)*), T, C, _>(
                    move |input, ($($arg,)*), output| command(input, $($arg,)* output),
                );
                self.saga.works[self.step].backward = Some(Backward::Send(undo));
                Out::new(self.step)
            }
        }
    };
}
run_and_compensate!();
run_and_compensate!(A0 a0);
run_and_compensate!(A0 a0, A1 a1);
run_and_compensate!(A0 a0, A1 a1, A2 a2);
run_and_compensate!(A0 a0, A1 a1, A2 a2, A3 a3);
