//! What runs in every environment: a small saga, the ledger that its steps write to, callers that start it, and the
//! process that all of this lives in.
//!
//! It is also compiled against the previous release, so it uses only what both of them have.

mod errand;
mod events;
mod ledger;
mod serve;
mod traffic;

#[allow(unused_imports, reason = "one of the two programs that this is in needs no more than the last line")]
pub use self::{
    errand::{Errand, Fate, Order},
    ledger::{Ledger, TABLES},
};
pub use serve::{Settings, serve};

/// Whatever goes wrong, in words.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;
