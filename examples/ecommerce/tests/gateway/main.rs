//! The gateway as the world sees it: a process, in front of services that write down all that reaches them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends there")]

mod door;
mod issuer;
mod limits;
mod proxy;
mod tokens;
mod upstream;
