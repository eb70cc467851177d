//! End to end: the gateway as a child process between real servers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod checker;
