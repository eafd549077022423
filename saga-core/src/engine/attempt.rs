//! One attempt of a step or a compensation: its limits, its span, and how it ended.

use super::{Shared, here, lease::Lease};
use crate::{SagaId, error::panic_message, message::Op, trace};
use opentelemetry::{
    Context, KeyValue, StringValue,
    context::FutureExt,
    trace::{SpanKind, TraceContextExt},
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

/// What bounds an attempt, and which one it is.
pub(super) struct Limits {
    pub(super) shared: Arc<Shared>,
    pub(super) lease: Lease,
    pub(super) trace: Context,
    pub(super) saga: SagaId,
    /// The definition's name.
    pub(super) of: StringValue,
    /// The step's.
    pub(super) name: StringValue,
    pub(super) op: Op,
    pub(super) number: u32,
}

impl Limits {
    /// Runs one attempt within the limits of concurrency, lease and time, in a task of its own: whatever the user's code does there, a panic
    /// on drop included, is its attempt's affair. `told` names the outcome, and says why it is no success.
    pub(super) async fn attempt<T: Send + 'static>(
        self,
        allowed: Duration,
        work: impl Future<Output = T> + Send + 'static,
        told: impl FnOnce(&T) -> (&'static str, Option<String>),
    ) -> Attempt<T> {
        let room = self.shared.attempts.room((self.of.clone(), self.name.clone()));
        // Who waits when the engine stops need not come to its turn to know that it has not begun.
        let _permit = self.shared.draining.run_until_cancelled(room).await;
        if !self.lease.holds() || self.shared.draining.is_cancelled() {
            return Attempt::NotBegun;
        }
        let (span, began) = (self.span(), Instant::now());
        let lease = self.lease;
        // The process may stand still before the task begins: only what is looked at there counts.
        let work = async move { if lease.holds() { Some(work.await) } else { None } };
        let work = here::within(Arc::downgrade(&self.shared), self.name.clone(), work);
        let work = AbortOnDropHandle::new(self.shared.drives.spawn(work.with_context(span.clone())));
        let attempt = match timeout(allowed, work).await {
            Ok(Ok(Some(outcome))) => Attempt::Ended(outcome),
            Ok(Ok(None)) => Attempt::NotBegun,
            Ok(Err(stopped)) => Attempt::Unknown(match stopped.try_into_panic() {
                Ok(panic) => format!("it panicked: {}", panic_message(&*panic)),
                Err(stopped) => format!("it was stopped: {stopped}"),
            }),
            Err(_) => Attempt::Unknown(format!("no answer within {allowed:?}")),
        };
        let told = match &attempt {
            Attempt::Ended(outcome) => Some(told(outcome)),
            Attempt::Unknown(error) => Some(("unknown", Some(error.clone()))),
            Attempt::NotBegun => None,
        };
        if let Some((outcome, error)) = told {
            self.shared.metrics.attempt(&self.of, &self.name, self.op, outcome, began.elapsed());
            if let Some(error) = error {
                trace::failed(&span, &error);
            }
        }
        span.span().end();
        attempt
    }

    fn span(&self) -> Context {
        let verb = if self.op == Op::Do { "step" } else { "compensate" };
        self.shared.tracing.begin(format!("saga {verb} {}", self.name), SpanKind::Internal, &self.trace, || {
            vec![
                KeyValue::new("saga.id", self.saga.to_string()),
                KeyValue::new("saga.step", self.name.clone()),
                KeyValue::new("saga.attempt", i64::from(self.number)),
            ]
        })
    }
}

/// How it ended.
pub(super) enum Attempt<T> {
    Ended(T),
    /// It panicked, took too long, or was stopped: it may have happened.
    Unknown(String),
    /// The lease did not hold any more, or the engine stops.
    NotBegun,
}
