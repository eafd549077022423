//! What those who run the shop go by: spans, log lines, figures, a load run, and what it is deployed with.

#![allow(unreachable_pub, reason = "a test has nobody outside")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends there")]

mod collector;
mod containers;
mod deploy;
mod figures;
mod load;
mod logs;
mod opened;
mod spans;
mod zipkin;

use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
/// A trace that a caller began, and its span.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
