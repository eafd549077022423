//! placeholder
pub mod definition;
mod encoded;
mod engine;
mod error;
mod id;
pub mod machine;
mod memory;
mod retry;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;

pub use definition::{BuildError, CompensationCx, Cx, Definition, Out, Saga, SagaBuilder};
pub use encoded::{CodecError, Encoded, Payload};
pub use engine::*;
pub use error::*;
pub use id::*;
pub use memory::MemoryStore;
pub use retry::*;
