//! Checks implementations of [`Store`](crate::store::Store).
