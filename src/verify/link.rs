//! One connection of the verifier: what its server can do, and round trips of many commands.

use std::collections::BTreeMap;

use super::VerifyOptions;
use crate::error::{Error, Result};
use crate::mirror::expiry::true_expiry;
use crate::resp::value::Value;
use crate::resp::write;
use crate::server::{Client, Endpoint};

/// Commands for one round trip.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    bytes: Vec<u8>,
    count: usize,
}

impl Commands {
    pub(crate) fn add(&mut self, args: &[&[u8]]) {
        write::command(&mut self.bytes, args);
        self.count += 1;
    }
}

/// What the server can be asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Abilities {
    pub(crate) pexpiretime: bool,
    pub(crate) memory_usage: bool,
    pub(crate) dump: bool,
    pub(crate) field_expiry: bool,
    functions: bool,
}

pub(crate) struct Link {
    client: Client,
    db: Option<u32>,
    pub(crate) can: Abilities,
    padded: bool,
}

impl Link {
    pub(crate) async fn open(endpoint: &Endpoint, options: &VerifyOptions, padded: bool) -> Result<Self> {
        // The endpoint's own db may be one that this server forbids; the verifier selects by itself.
        let mut client = Client::open(&Endpoint { db: 0, ..endpoint.clone() }, options.timeout).await?;
        let asked = ["COMMAND", "INFO", "pexpiretime", "memory", "dump", "hpexpiretime", "function"];
        let answer = client.call(&asked).await?;
        let known: Vec<bool> = match answer.as_array() {
            Some(rows) if rows.len() == asked.len() - 2 => {
                rows.iter().map(|row| row.as_array().is_some_and(|row| !row.is_empty())).collect()
            }
            // COMMAND is forbidden or unknown: only what every server has.
            _ => vec![false; asked.len() - 2],
        };
        let can = Abilities {
            pexpiretime: known[0],
            memory_usage: known[1],
            dump: known[2],
            field_expiry: known[3],
            functions: known[4],
        };
        Ok(Self { client, db: Some(0), can, padded })
    }

    /// The server's answer makes no sense.
    pub(crate) fn odd(&self, command: &str) -> Error {
        Error::new(self.client.side(), format!("{command} gave an answer that makes no sense"))
    }

    /// What an error reply means that nobody expected.
    pub(crate) fn refused(&self, command: &str, text: &[u8]) -> Error {
        Error::new(
            self.client.side(),
            format!("{command} was refused during the verification: {}", String::from_utf8_lossy(text)),
        )
    }

    pub(crate) async fn ask(&mut self, commands: &Commands) -> Result<Vec<Value>> {
        if commands.count == 0 {
            return Ok(Vec::new());
        }
        let values = self.client.pipeline(&commands.bytes, commands.count).await?;
        if values.len() == commands.count { Ok(values) } else { Err(self.odd("a pipeline")) }
    }

    /// One command; an error reply is an error.
    pub(crate) async fn one(&mut self, args: &[&[u8]]) -> Result<Value> {
        self.client.command(args).await
    }

    pub(crate) async fn select(&mut self, db: u32) -> Result<()> {
        if self.db != Some(db) {
            self.db = None;
            self.client.command(&["SELECT", &db.to_string()]).await?;
            self.db = Some(db);
        }
        Ok(())
    }

    /// The dbs that have keys, with their numbers.
    pub(crate) async fn dbs(&mut self) -> Result<BTreeMap<u32, u64>> {
        let info = self.one(&[b"INFO", b"keyspace"]).await?;
        let text = info.as_bytes().map(String::from_utf8_lossy).unwrap_or_default();
        let mut dbs = BTreeMap::new();
        for line in text.lines() {
            let Some((db, rest)) = line.strip_prefix("db").and_then(|line| line.split_once(":keys=")) else {
                continue;
            };
            let keys = rest.split(',').next().and_then(|keys| keys.parse().ok());
            if let (Ok(db), Some(keys)) = (db.parse(), keys) {
                dbs.insert(db, keys);
            }
        }
        Ok(dbs)
    }

    /// The server's clock, in milliseconds.
    pub(crate) fn clock(value: &Value) -> Option<u64> {
        let parts = value.as_array()?;
        let (seconds, micros) = (parts.first()?.as_i64()?, parts.get(1)?.as_i64()?);
        u64::try_from(seconds * 1000 + micros / 1000).ok()
    }

    /// An expiry as it is meant: without the pad, if this server's are padded.
    pub(crate) fn true_expiry(&self, stored: u64) -> u64 {
        if self.padded { true_expiry(stored) } else { stored }
    }

    /// Function libraries, by name.
    pub(crate) async fn libraries(&mut self) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut libraries = BTreeMap::new();
        if !self.can.functions {
            return Ok(libraries);
        }
        let reply = self.client.call(&["FUNCTION", "LIST", "WITHCODE"]).await?;
        for library in reply.into_array().unwrap_or_default() {
            let name = library.field("library_name").and_then(Value::as_bytes).unwrap_or_default();
            let code = library.field("library_code").and_then(Value::as_bytes).unwrap_or_default();
            libraries.insert(name.escape_ascii().to_string(), code.to_vec());
        }
        Ok(libraries)
    }
}
