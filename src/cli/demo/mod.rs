//! `crossfade demo`: two real servers, live checked traffic, copy, cutover, rollback, in one command.

pub mod connection;
pub mod gateway;
pub mod servers;
pub mod workload;
