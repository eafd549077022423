//! placeholder
mod error;
mod hints;
mod migrations;
mod queries;
mod store;
#[cfg(all(feature = "testing", unix))]
pub mod testing;
mod transaction;

pub use error::SetupError;
pub use store::{PgStore, PgStoreOptions};
pub use transaction::InTransaction;
