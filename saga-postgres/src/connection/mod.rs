//! Connections of this crate's own: how they find the primary, what their sessions are like, how they are shared, and
//! when they are given up.
//!
//! # One law
//!
//! A connection goes back only when what was asked on it was answered. Whatever else happens (a call that is dropped in
//! the middle, silence, an error of the connection, a server that cannot write), it is closed, and its place in the
//! pool is free at once. So no future of this crate keeps anything when it is dropped.
//!
//! # What is believed
//!
//! A connection is looked at when it is made, and again before it is used when the last look is a second old:
//! it has to lead to a server that can write, and its session has to be as it was set up. So a `SELECT` that finds
//! nothing is never believed from a former primary, and settings that a pooler lost are noticed.

mod lent;
mod pool;
mod route;
mod session;

pub(crate) use lent::{Lent, in_time};
pub(crate) use pool::{Connections, Sql};
pub(crate) use route::{Opened, Route, servers};
pub(crate) use session::{Keeps, Settings};
