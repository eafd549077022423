//! Where the current task is: in an attempt of a step, or outside of all.

use super::Shared;
use opentelemetry::StringValue;
use std::sync::{Arc, Weak};

tokio::task_local! {
    static HERE: Here;
}

struct Here {
    engine: Weak<Shared>,
    step: StringValue,
}

/// The work of an attempt, which can be told where it is.
pub(super) fn within<T>(
    engine: Weak<Shared>,
    step: StringValue,
    work: impl Future<Output = T>,
) -> impl Future<Output = T> {
    HERE.scope(Here { engine, step }, work)
}

/// The step of this very engine that is asking.
pub(super) fn step_of(engine: &Arc<Shared>) -> Option<String> {
    let is_it = |here: &Here| std::ptr::eq(here.engine.as_ptr(), Arc::as_ptr(engine));
    HERE.try_with(|here| is_it(here).then(|| here.step.to_string())).ok().flatten()
}
