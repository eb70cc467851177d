//! One connection of the verifier: what its server can do, and round trips of many commands.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::VerifyOptions;
use crate::error::{Error, Result};
use crate::mirror::Mapping;
use crate::mirror::expiry::{true_expiry, true_field_expiry};
use crate::resp::scan::{CommandScanner, Limits};
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

/// Which of the two servers a connection leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    A,
    B,
}

/// What names on `a` are on `b`, and back.
struct Names {
    there: Arc<Mapping>,
    back: Option<Mapping>,
}

impl Names {
    fn led_there(&self, commands: &[u8]) -> Result<Vec<u8>, String> {
        let limits = Limits { arguments: usize::MAX >> 1, bulk: 1 << 40, ..Default::default() };
        let mut out = Vec::with_capacity(commands.len() + commands.len() / 4);
        let mut rest = commands;
        while let Ok(Some(frame)) = CommandScanner::default().next(rest, &limits) {
            let (command, behind) = rest.split_at(frame.len);
            match self.there.command(&frame.args(command).collect::<Vec<_>>())? {
                Some(renamed) => out.extend_from_slice(&renamed),
                None => out.extend_from_slice(command),
            }
            rest = behind;
        }
        Ok(out)
    }
}

pub(crate) struct Link {
    client: Client,
    /// Where they differ from those on `a`.
    names: Option<Names>,
    db: Option<u32>,
    pub(crate) can: Abilities,
    padded: bool,
}

impl Link {
    pub(crate) async fn open(endpoint: &Endpoint, options: &VerifyOptions, on: On) -> Result<Self> {
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
        let names = options
            .map
            .as_ref()
            .filter(|_| on == On::B)
            .map(|map| Names { there: Arc::clone(map), back: map.turned_round() });
        Ok(Self { client, names, db: None, can, padded: on == On::B && options.padded })
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
        let values = match &self.names {
            None => self.client.pipeline(&commands.bytes, commands.count).await?,
            Some(names) => {
                let bytes = names.led_there(&commands.bytes).map_err(|why| self.nameless(why))?;
                self.client.pipeline(&bytes, commands.count).await?
            }
        };
        if values.len() == commands.count { Ok(values) } else { Err(self.odd("a pipeline")) }
    }

    /// One command; an error reply is an error.
    pub(crate) async fn one(&mut self, args: &[&[u8]]) -> Result<Value> {
        let renamed = match &self.names {
            Some(names) => names.there.command(args).map_err(|why| self.nameless(why))?,
            None => None,
        };
        let Some(bytes) = renamed else { return self.client.command(args).await };
        match self.client.pipeline(&bytes, 1).await?.pop() {
            Some(Value::Error(text)) => Err(self.refused(&args[0].escape_ascii().to_string(), &text)),
            Some(value) => Ok(value),
            None => Err(self.odd("a command")),
        }
    }

    fn nameless(&self, why: String) -> Error {
        Error::new(self.client.side(), format!("its keys cannot be compared: {why}"))
    }

    /// What a key of this server is called on `a`; `None`: it has no name there.
    pub(crate) fn named_on_a(&self, key: Bytes) -> Option<Bytes> {
        let Some(names) = &self.names else { return Some(key) };
        let named = names.back.as_ref()?.key(&key).ok()?.into_owned();
        Some(named.into())
    }

    pub(crate) async fn select(&mut self, db: u32) -> Result<()> {
        if self.db != Some(db) {
            self.db = None;
            let number = match &self.names {
                Some(names) => names.there.db(db).map_err(|why| self.nameless(why))?,
                None => db,
            };
            self.client.command(&["SELECT", &number.to_string()]).await?;
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
            let (Ok(db), Some(keys)) = (db.parse(), keys) else { continue };
            let db = match &self.names {
                None => Some(db),
                Some(names) => names.back.as_ref().and_then(|back| back.db(db).ok()),
            };
            if let Some(db) = db {
                dbs.insert(db, keys);
            }
        }
        Ok(dbs)
    }

    /// An expiry as it is meant: without the pad, if this server's are padded.
    pub(crate) fn true_expiry(&self, stored: u64) -> u64 {
        if self.padded { true_expiry(stored) } else { stored }
    }

    /// The same for the expiry of a hash's field.
    pub(crate) fn true_field_expiry(&self, stored: u64) -> u64 {
        if self.padded { true_field_expiry(stored) } else { stored }
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
