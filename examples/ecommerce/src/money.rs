//! Money, as it travels between services.

use serde::{Deserialize, Serialize};

/// A whole number of a currency's smallest unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Money {
    pub amount: i64,
    /// ISO 4217.
    pub currency: String,
}
