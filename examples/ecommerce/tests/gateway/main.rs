//! The gateway as the world sees it: a process, in front of services that write down all that reaches them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends there")]
#![allow(unreachable_pub, reason = "a test has nobody outside")]

mod browser;
mod door;
mod issuer;
mod limits;
mod page;
mod proxy;
mod shop;
mod tokens;
mod traces;
mod upstream;
