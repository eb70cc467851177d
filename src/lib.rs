//! Crossfade moves a live Redis or Valkey to another server while applications keep working, and can
//! move it back.
//!
//! Applications connect to the gateway. It forwards their commands to the *source*, keeps a
//! *destination* exactly in step through the source's own replication stream, and switches all
//! clients at once. The binary `crossfade` is a thin shell around this library.
//!
//! Data flows down this list; a module imports only what stands below it:
//!
//! | module | subject |
//! |---|---|
//! | [`cli`] | one file per subcommand; output as a table or as JSON |
//! | [`admin`] | HTTP: control API, metrics, dashboard page |
//! | [`migration`] | the phases, their durable record, retry windows; owns every task below |
//! | [`cutover`] | the switch: prepare, gate, fence, drain, commit, reverse |
//! | [`verify`] | compare two servers key by key |
//! | [`backfill`] | snapshot to destination: RESTORE or commands |
//! | [`mirror`] | journal, decode, batch with position, destination; keeper of expiries |
//! | [`replication`] | replica handshake, snapshot and stream framing, ACKs, journal on disk |
//! | [`rdb`] | RDB reader: opcodes, value boundaries, values, DUMP payloads |
//! | [`proxy`] | listener, worker, session, lane, pinned connection, gate |
//! | [`server`] | one Redis server: address, transport, AUTH, INFO, capabilities |
//! | [`command`] | command table: kind, key positions, how it crosses lane, mirror and switch |
//! | [`resp`] | RESP2/RESP3: resumable scanner, limits, argument view, writer, cold values |
//! | [`config`] | the TOML file, its defaults, checks and documentation |
//! | [`telemetry`] | log set-up; metric handles, their names in one place |

pub mod admin;
pub mod backfill;
pub mod cli;
pub mod command;
pub mod config;
pub mod cutover;
#[cfg(test)]
mod dice;
mod disk;
pub mod error;
pub mod migration;
pub mod mirror;
pub mod proxy;
pub mod rdb;
pub mod replication;
pub mod resp;
pub mod server;
pub mod telemetry;
pub mod verify;

pub use error::{Error, Result, Side};
