//! placeholder
pub mod definition;
mod encoded;
mod error;
mod id;
pub mod machine;
mod retry;
pub use definition::*;
pub use encoded::*;
pub use error::*;
pub use id::*;
pub use retry::*;
