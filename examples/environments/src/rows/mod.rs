//! The environments, a file for each kind.

mod clock;
mod connections;
mod cost;
mod failover;
mod poolers;
mod refusal;
mod rights;
mod settings;
mod versions;

use crate::{Result, books::Verdict, world::World};
use futures::future::BoxFuture;

/// An environment, and how to try it.
pub struct Row {
    pub environment: &'static str,
    /// Whether the short form has it: it needs nothing but the packages of this system.
    pub short: bool,
    pub run: for<'w> fn(&'w World) -> BoxFuture<'w, Result<Story>>,
}

/// What was done, and what came of it.
pub struct Story {
    pub done: String,
    /// None where nothing was to run in the books.
    pub verdict: Option<Verdict>,
    /// Whether nothing stood in the way of any call: then each was answered at once.
    pub quiet: bool,
}

impl Story {
    /// Nothing happened but the workload.
    pub fn quiet(done: impl Into<String>, verdict: Verdict) -> Self {
        Self { done: done.into(), verdict: Some(verdict), quiet: true }
    }

    /// Something happened meanwhile: calls may have had to be made again.
    pub fn rough(done: impl Into<String>, verdict: Verdict) -> Self {
        Self { done: done.into(), verdict: Some(verdict), quiet: false }
    }

    /// Sagas of its own ended; nobody keeps books of them.
    pub fn measured(done: impl Into<String>) -> Self {
        Self { done: done.into(), verdict: None, quiet: true }
    }

    /// What cannot work was refused, as it should be.
    pub fn refused(done: impl Into<String>) -> Self {
        Self { done: done.into(), verdict: None, quiet: true }
    }
}

/// All environments, in the order of the table.
pub fn all() -> impl Iterator<Item = &'static Row> {
    let kinds = [
        versions::ROWS,
        poolers::ROWS,
        settings::ROWS,
        rights::ROWS,
        failover::ROWS,
        clock::ROWS,
        connections::ROWS,
        cost::ROWS,
    ];
    kinds.into_iter().flatten()
}
