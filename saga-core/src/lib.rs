//! An orchestrator-based **saga engine** for Rust services.
//!
//! A *saga* is one business action that spans several services: each step that changes the world knows how to undo itself, and when a step fails,
//! what was done before is undone. The engine runs inside your own service, on any number of nodes, keeps every saga in a
//! [store](store::Store) (Postgres, in the crate `saga-postgres`), and ends each one in exactly one of three ways: *completed*, *rolled back*, or *parked* for a
//! person. Kill any process at any moment: nothing is lost, and nothing stays half done.
//!
//! # The smallest complete saga
//!
//! ```
//! use saga_core::{Class, CompensationCx, Cx, Engine, MemoryStore, OrClass, Out, Outcome, Saga, SagaBuilder, StepError};
//! # #[derive(Debug, thiserror::Error)] #[error("declined")] struct Declined;
//! # struct Stock; impl Stock {
//! #     async fn reserve(&self, _: &str, n: u32) -> std::io::Result<u32> { Ok(n) }
//! #     async fn release(&self, _: &str) -> std::io::Result<()> { Ok(()) }
//! # }
//! # struct Payments; impl Payments { async fn charge(&self, _: &str, n: u32) -> Result<String, Declined> { Ok(format!("paid for {n}")) } }
//!
//! struct Shop { stock: Stock, payments: Payments }
//!
//! struct OrderSaga;
//!
//! impl Saga for OrderSaga {
//!     const NAME: &'static str = "order";
//!     const VERSION: u32 = 1;
//!     type Input = u32;
//!     type Output = String;
//!     type Deps = Shop;
//!
//!     fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, String> {
//!         let reserved = saga.compensatable("reserve-stock").run(reserve).compensate(release);
//!         saga.pivot("charge-payment").reads(reserved).run(charge)
//!     }
//! }
//!
//! async fn reserve(shop: Cx<Shop>, quantity: u32) -> Result<u32, StepError> {
//!     Ok(shop.stock.reserve(shop.idempotency_key(), quantity).await?) // `?`: unclassified, so it may have happened
//! }
//! async fn release(shop: CompensationCx<Shop>, _: u32, _known: Option<u32>) -> Result<(), StepError> {
//!     Ok(shop.stock.release(shop.forward_key()).await?)
//! }
//! async fn charge(shop: Cx<Shop>, _: u32, reserved: u32) -> Result<String, StepError> {
//!     shop.payments.charge(shop.idempotency_key(), reserved).await.classify(|Declined| Class::Fail)
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let shop = Shop { stock: Stock, payments: Payments };
//! let engine = Engine::builder(MemoryStore::default()).register::<OrderSaga>(shop)?.start().await?;
//! let orders = engine.sagas::<OrderSaga>();
//! match orders.submit("order-4711", 3).await?.outcome().await? {
//!     Outcome::Completed(receipt) => assert_eq!(receipt, "paid for 3"),
//!     Outcome::RolledBack(why) => println!("refused, and everything is undone: {why}"),
//!     Outcome::Parked(why) => println!("a person has to look: {why}"),
//! }
//! # Ok(()) }
//! ```
//!
//! # What you have to know
//!
//! - A step's **kind** is the first word of its line: `effect_free`, `compensatable`, `pivot` (the point of no return), `retriable` (after it).
//!   See [`definition`].
//! - An attempt has one of **four outcomes**: it succeeded; [`Class::Retry`], transient, nothing happened; [`Class::Fail`], a business no, nothing
//!   happened; [`Class::Unknown`], it may have happened. Errors are *unknown* unless you say otherwise.
//! - A step is recorded once and **attempted at least once**, always under the same [idempotency key](Cx::idempotency_key) and with the same arguments. Hand that
//!   key to whoever does the work. A step in doubt is undone too, and its undo is then told `None` for the output.
//! - What the engine writes first, and does second, is decided by a small pure [state machine](machine); the rest is its driver.
//!
//! # Idempotency keys
//!
//! `<saga id>/<step>` for a step, with `/undo` behind for its compensation. After an operator [resumed](Sagas::resume) a saga at a step that
//! had failed *for certain*, that step is tried under a new key, `<saga id>/<step>/<generation>`; a step in doubt keeps its key. The saga's own key is
//! the one that you [submit](Sagas::submit) it with.
//!
//! # When you get it wrong
//!
//! The compiler says so: a kind that was left out, an output of the wrong type, a compensation on a pivot, the output of a step that has no compensation yet. What
//! it cannot see, [`register`](EngineBuilder::register) says, naming the step and the rule. The compiler's messages are kept by snapshots in this
//! crate's tests.
//!
//! # Where to go next
//!
//! The module `testing` (behind the feature of that name) crashes your saga everywhere in one line; `saga-postgres` keeps it; `examples/ecommerce` is a
//! shop whose orders survive a `kill -9`; the guide in `docs/` begins with the first saga in ten minutes.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod definition;
mod encoded;
mod engine;
mod error;
mod id;
pub mod machine;
mod memory;
pub mod message;
pub mod participant;
mod portions;
mod retry;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
pub mod trace;
pub mod transport;

pub use definition::{BuildError, CompensationCx, Cx, Definition, Out, Saga, SagaBuilder};
pub use encoded::{CodecError, Encoded, Payload};
pub use engine::{Config, Engine, EngineBuilder, Error, History, Outcome, Sagas, Started, Why};
pub use error::{Class, OrClass, StepError};
pub use id::{SagaId, WorkerId};
pub use machine::Status;
pub use memory::MemoryStore;
pub use retry::Retry;
