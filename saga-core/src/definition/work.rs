//! A step's functions with their types forgotten: bytes in, bytes out.

use super::{
    Saga, StepIndex,
    context::{Call, CompensationCx, Cx},
    graph::{BuildError, Graph},
};
use crate::{Class, CodecError, Encoded, Payload, StepError, definition::SagaBuilder, machine::Outcome};
use futures::future::BoxFuture;
use std::sync::Arc;

/// What a step is called with: the saga's input and what the step reads, as they were stored.
#[derive(Clone, Debug)]
pub(crate) struct Arguments {
    pub(crate) input: Encoded,
    pub(crate) reads: Vec<Encoded>,
}

type Forward<D> = Box<dyn Fn(Cx<D>, Arguments) -> BoxFuture<'static, Outcome> + Send + Sync>;
type Backward<D> =
    Box<dyn Fn(CompensationCx<D>, Arguments, Option<Encoded>) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

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

pub(crate) fn forward<S, A, T, F, Fut>(run: F) -> Forward<S::Deps>
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
                // Some types write what they cannot read (a NaN, a deep tree): it has to show here, where it can be undone.
                Ok(output) => match Encoded::of(&output).and_then(|output| output.decode::<T>().map(|_| output)) {
                    Ok(output) => Outcome::Success(output),
                    Err(error) => Outcome::Broken(error.to_string()),
                },
                Err(error) => match error.class().unwrap_or_else(|| S::classify(error.source())) {
                    Class::Retry => Outcome::Retry(error.to_string()),
                    Class::Fail => Outcome::Fail(error.to_string()),
                    Class::Unknown => Outcome::Unknown(error.to_string()),
                },
            }
        })
    })
}

pub(crate) fn backward<S, A, T, F, Fut>(undo: F) -> Backward<S::Deps>
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

    fn run(&self, step: StepIndex, call: Call, arguments: Arguments) -> BoxFuture<'static, Outcome> {
        (self.definition.works[step].forward)(Cx::new(self.deps.clone(), call), arguments)
    }

    fn compensate(
        &self,
        step: StepIndex,
        call: Call,
        arguments: Arguments,
        output: Option<Encoded>,
    ) -> BoxFuture<'static, Result<(), String>> {
        match &self.definition.works[step].backward {
            Some(backward) => backward(CompensationCx::new(self.deps.clone(), call), arguments, output),
            None => Box::pin(std::future::ready(Ok(()))),
        }
    }
}
