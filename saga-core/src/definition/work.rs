//! A step's functions with their types forgotten: bytes in, bytes out.

use super::{
    Saga, StepIndex,
    context::{Call, CompensationCx, Cx},
    graph::{BuildError, Graph},
};
use crate::{
    Class, CodecError, Encoded, Payload, StepError, definition::SagaBuilder, error::panic_message, machine::Outcome,
    message::Op, participant::Command,
};
use futures::future::BoxFuture;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// What a step is called with: the saga's input and what the step reads, as they were stored.
#[derive(Clone, Debug)]
pub(crate) struct Arguments {
    pub(crate) input: Encoded,
    pub(crate) reads: Vec<Encoded>,
}

type Run<D> = Box<dyn Fn(Cx<D>, Arguments) -> BoxFuture<'static, Outcome> + Send + Sync>;
type Undo<D> =
    Box<dyn Fn(CompensationCx<D>, Arguments, Option<Encoded>) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

pub(crate) enum Forward<D> {
    Run(Run<D>),
    Send(Sending),
}

pub(crate) enum Backward<D> {
    Run(Undo<D>),
    Send(Sending),
}

type Body = Box<dyn Fn(&Arguments, Option<&Encoded>) -> Result<Encoded, String> + Send + Sync>;

/// How a command is made, and what its reply has to be.
pub(crate) struct Sending {
    pub(crate) kind: &'static str,
    pub(crate) topic: &'static str,
    body: Body,
    check: fn(&Encoded) -> Result<(), CodecError>,
}

impl Sending {
    fn of<C: Command>(
        body: impl Fn(&Arguments, Option<&Encoded>) -> Result<C, CodecError> + Send + Sync + 'static,
    ) -> Self {
        let body = move |arguments: &Arguments, output: Option<&Encoded>| {
            let command = catch_unwind(AssertUnwindSafe(|| body(arguments, output)))
                .map_err(|panic| format!("making the command panicked: {}", panic_message(&*panic)))?;
            command.and_then(|command| Encoded::of_readable(&command)).map_err(|error| error.to_string())
        };
        let check = |reply: &Encoded| reply.decode::<C::Reply>().map(|_| ());
        Self { kind: C::TYPE, topic: C::TOPIC, body: Box::new(body), check }
    }

    /// The command's payload; `output` is what its step had returned, for an undo.
    pub(crate) fn body(&self, arguments: &Arguments, output: Option<&Encoded>) -> Result<Encoded, String> {
        (self.body)(arguments, output)
    }

    /// Whether a reply can be read as what the definition says.
    pub(crate) fn check(&self, reply: &Encoded) -> Result<(), CodecError> {
        (self.check)(reply)
    }
}

pub(crate) fn send<S, A, C, F>(command: F) -> Sending
where
    S: Saga,
    A: Reading,
    C: Command,
    F: Fn(S::Input, A) -> C + Send + Sync + 'static,
{
    Sending::of(move |arguments, _| {
        let (input, reads) = arguments.decode::<S, A>()?;
        Ok(command(input, reads))
    })
}

pub(crate) fn send_undo<S, A, T, C, F>(command: F) -> Sending
where
    S: Saga,
    A: Reading,
    T: Payload,
    C: Command,
    F: Fn(S::Input, A, Option<T>) -> C + Send + Sync + 'static,
{
    Sending::of(move |arguments, output| {
        let (input, reads) = arguments.decode::<S, A>()?;
        Ok(command(input, reads, output.map(Encoded::decode).transpose()?))
    })
}

pub(crate) struct Work<D> {
    pub(crate) forward: Forward<D>,
    pub(crate) backward: Option<Backward<D>>,
}

/// Tuples of what a step reads.
pub(crate) trait Reading: Sized + Send + 'static {
    fn decode(reads: &[Encoded]) -> Result<Self, CodecError>;
}

macro_rules! reading {
    ($($name:ident $index:tt),*) => {
        impl<$($name: Payload),*> Reading for ($($name,)*) {
            #[allow(unused_variables, reason = "nothing is read by a step without reads")]
            fn decode(reads: &[Encoded]) -> Result<Self, CodecError> {
                Ok(($(reads[$index].decode::<$name>()?,)*))
            }
        }
    };
}
reading!();
reading!(A0 0);
reading!(A0 0, A1 1);
reading!(A0 0, A1 1, A2 2);
reading!(A0 0, A1 1, A2 2, A3 3);

impl Arguments {
    fn decode<S: Saga, A: Reading>(&self) -> Result<(S::Input, A), CodecError> {
        Ok((self.input.decode()?, A::decode(&self.reads)?))
    }
}

pub(crate) fn run<S, A, T, F, Fut>(run: F) -> Run<S::Deps>
where
    S: Saga,
    A: Reading,
    T: Payload,
    F: Fn(Cx<S::Deps>, S::Input, A) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, StepError>> + Send + 'static,
{
    let run = Arc::new(run);
    Box::new(move |cx, arguments| {
        let run = run.clone();
        Box::pin(async move {
            let (input, reads) = match arguments.decode::<S, A>() {
                Ok(decoded) => decoded,
                Err(error) => return Outcome::Broken(error.to_string()),
            };
            match run(cx, input, reads).await {
                // What cannot be read again has to show here, where it can be undone.
                Ok(output) => match Encoded::of_readable(&output) {
                    Ok(output) => Outcome::Success(output),
                    Err(error) => Outcome::Broken(error.to_string()),
                },
                Err(error) => match error.class().unwrap_or_else(|| S::classify(error.source())) {
                    Class::Fail => Outcome::Fail(error.to_string()),
                    Class::Retry | Class::Unknown if waits_in_step(error.source()) => {
                        Outcome::Broken(error.to_string())
                    }
                    Class::Retry => Outcome::Retry(error.to_string()),
                    Class::Unknown => Outcome::Unknown(error.to_string()),
                },
            }
        })
    })
}

/// Whether the step's own code is at fault, and would be each time.
fn waits_in_step(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .any(|error| matches!(error.downcast_ref(), Some(crate::Error::WaitsInStep { .. })))
}

pub(crate) fn undo<S, A, T, F, Fut>(undo: F) -> Undo<S::Deps>
where
    S: Saga,
    A: Reading,
    T: Payload,
    F: Fn(CompensationCx<S::Deps>, S::Input, A, Option<T>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), StepError>> + Send + 'static,
{
    let undo = Arc::new(undo);
    Box::new(move |cx, arguments, output| {
        let undo = undo.clone();
        Box::pin(async move {
            let (input, reads) = arguments.decode::<S, A>().map_err(|error| error.to_string())?;
            let output = output.map(|output| output.decode::<T>()).transpose().map_err(|error| error.to_string())?;
            undo(cx, input, reads, output).await.map_err(|error| error.to_string())
        })
    })
}

/// A saga's definition, checked and ready to run.
pub struct Definition<S: Saga> {
    pub(crate) graph: Arc<Graph>,
    pub(crate) output: StepIndex,
    works: Vec<Work<S::Deps>>,
}

impl<S: Saga> Definition<S> {
    /// Calls [`Saga::define`] and checks the rules.
    ///
    /// # Errors
    /// A [`BuildError`] that names the step and the rule.
    pub fn build() -> Result<Self, BuildError> {
        let mut builder = SagaBuilder::new();
        let output = S::define(&mut builder).step;
        let (mut nodes, works) = builder.finish();
        if let Some(node) = nodes.get_mut(output) {
            node.output_is_read = true;
        }
        for (node, work) in nodes.iter().zip(&works) {
            if node.kind == super::Kind::Compensatable && work.backward.is_none() {
                return Err(BuildError::NoCompensation { saga: S::NAME.into(), step: node.name.to_string() });
            }
            if let (Forward::Send(sent), Some(Backward::Send(undo))) = (&work.forward, &work.backward)
                && sent.topic != undo.topic
            {
                let (saga, step) = (S::NAME.into(), node.name.to_string());
                let (topic, undo_topic) = (sent.topic.into(), undo.topic.into());
                return Err(BuildError::UndoneElsewhere { saga, step, topic, undo_topic });
            }
        }
        Ok(Self { graph: Arc::new(Graph::new(S::NAME, nodes)?), output, works })
    }

    /// The untyped shape.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }
}

/// A definition together with its dependencies: what the engine runs.
pub(crate) trait Process: Send + Sync {
    fn graph(&self) -> &Arc<Graph>;
    /// The step whose output is the saga's own.
    fn output(&self) -> StepIndex;
    /// How the step's work, or its undo, is sent; `None` when it runs in process.
    fn sending(&self, step: StepIndex, op: Op) -> Option<&Sending>;
    fn run(&self, step: StepIndex, call: Call, arguments: Arguments) -> BoxFuture<'static, Outcome>;
    fn compensate(
        &self,
        step: StepIndex,
        call: Call,
        arguments: Arguments,
        output: Option<Encoded>,
    ) -> BoxFuture<'static, Result<(), String>>;
}

pub(crate) struct Bound<S: Saga> {
    pub(crate) definition: Definition<S>,
    pub(crate) deps: Arc<S::Deps>,
}

impl<S: Saga> Process for Bound<S> {
    fn graph(&self) -> &Arc<Graph> {
        &self.definition.graph
    }

    fn output(&self) -> StepIndex {
        self.definition.output
    }

    fn sending(&self, step: StepIndex, op: Op) -> Option<&Sending> {
        let work = &self.definition.works[step];
        match (op, &work.forward, &work.backward) {
            (Op::Do, Forward::Send(sending), _) | (Op::Undo, _, Some(Backward::Send(sending))) => Some(sending),
            _ => None,
        }
    }

    fn run(&self, step: StepIndex, call: Call, arguments: Arguments) -> BoxFuture<'static, Outcome> {
        match &self.definition.works[step].forward {
            Forward::Run(run) => run(Cx::new(self.deps.clone(), call), arguments),
            Forward::Send(_) => Box::pin(std::future::ready(Outcome::Broken("a command is sent, not run".into()))),
        }
    }

    fn compensate(
        &self,
        step: StepIndex,
        call: Call,
        arguments: Arguments,
        output: Option<Encoded>,
    ) -> BoxFuture<'static, Result<(), String>> {
        match &self.definition.works[step].backward {
            Some(Backward::Run(undo)) => undo(CompensationCx::new(self.deps.clone(), call), arguments, output),
            Some(Backward::Send(_)) => Box::pin(std::future::ready(Err("a command is sent, not run".into()))),
            None => Box::pin(std::future::ready(Ok(()))),
        }
    }
}
