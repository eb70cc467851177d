//! What a server can do, asked of the server itself where it answers, and concluded from its version where it
//! does not. Nothing is written to the server.

use std::fmt;

use super::{Client, Info};
use crate::error::Result;
use crate::resp::value::Value;

/// Which family of servers it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// Redis.
    Redis,
    /// Valkey, which counts its own versions from 7.2 and its own RDB versions from 80 (Valkey 9).
    Valkey,
    /// Redict, a fork of Redis 7.2.
    Redict,
    /// Something else that speaks RESP: KeyDB, Dragonfly, a managed service under a version of its own.
    Other,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flavour::Redis => "Redis",
            Flavour::Valkey => "Valkey",
            Flavour::Redict => "Redict",
            Flavour::Other => "Redis-compatible server",
        })
    }
}

/// What one server can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Which family it belongs to.
    pub flavour: Flavour,
    /// Its version in its family's own counting: Valkey 9.0.1 is (9, 0, 1).
    pub version: (u16, u16, u16),
    /// The version of Redis that it claims to be compatible with: Valkey 9 says 7.2.4.
    pub compatible: (u16, u16, u16),
    /// The RDB version that it writes, and the highest that its RESTORE takes.
    pub rdb_version: u32,
    /// Whether it runs as a node of a cluster.
    pub cluster: bool,
    /// `PSYNC`: it lets itself be replicated with an offset. Redis 2.8 has it, many managed services hide it.
    pub psync: bool,
    /// `CLIENT PAUSE … WRITE` (6.2).
    pub pause_write: bool,
    /// `REPLCONF rdb-filter-only` (7.0).
    pub rdb_filter: bool,
    /// `PEXPIRETIME` (7.0).
    pub pexpiretime: bool,
    /// `FUNCTION` (7.0).
    pub functions: bool,
    /// `CLIENT UNBLOCK` (5.0).
    pub client_unblock: bool,
    /// `RESTORE … ABSTTL` (5.0).
    pub restore_absttl: bool,
    /// `DUMP` and `RESTORE`.
    pub restore: bool,
    /// `UNLINK` (4.0).
    pub unlink: bool,
}

/// What is asked for by name, in the order of the answer.
const ASKED: [&str; 7] = ["psync", "pexpiretime", "function", "dump", "restore", "unlink", "client"];

impl Capabilities {
    /// Asks the server: INFO, the existence of some commands, and the RDB version as `FUNCTION DUMP` carries it.
    /// Where an ACL forbids a question, the version decides.
    ///
    /// # Errors
    /// The connection failed, or INFO was refused.
    pub async fn probe(client: &mut Client) -> Result<Self> {
        let info = client.info("server").await?;
        let mut question = vec!["COMMAND", "INFO"];
        question.extend(ASKED);
        let known = match client.call(&question).await? {
            Value::Array(answers) if answers.len() == ASKED.len() => {
                Some(answers.iter().map(|answer| answer.as_array().is_some_and(|a| !a.is_empty())).collect())
            }
            _ => None,
        };
        let mut found = Self::conclude(&info, known);
        if found.functions
            && let Value::Bulk(payload) = client.call(&["FUNCTION", "DUMP"]).await?
        {
            found.rdb_version = stamp(&payload).unwrap_or(found.rdb_version);
        }
        Ok(found)
    }

    /// Whether it has what Redis has since that version. Forks count by the Redis they are compatible with.
    pub fn at_least(&self, major: u16, minor: u16) -> bool {
        (self.compatible.0, self.compatible.1) >= (major, minor)
    }

    fn conclude(info: &Info, known: Option<Vec<bool>>) -> Self {
        let mut compatible = version(info.get("redis_version").unwrap_or_default());
        if compatible.0 < 7 && compatible.1 == 9 {
            // Release candidates of 4.0 to 6.0 called themselves 3.9.x to 5.9.x.
            compatible = (compatible.0 + 1, 0, 0);
        }
        let (flavour, own) = if let Some(own) = info.get("valkey_version") {
            (Flavour::Valkey, version(own))
        } else if let Some(own) = info.get("redict_version") {
            (Flavour::Redict, version(own))
        } else if info.get("dragonfly_version").is_some()
            // KeyDB went on from 6.2 in its own way; Redis never had a 6.3.
            || (compatible.0, compatible.1) == (6, 3)
            || info.get("redis_version").is_none()
        {
            (Flavour::Other, compatible)
        } else {
            (Flavour::Redis, compatible)
        };
        let since = |major, minor| (compatible.0, compatible.1) >= (major, minor);
        let asked = |name: &str, by_version: bool| {
            let at = ASKED.iter().position(|asked| *asked == name);
            match (&known, at) {
                (Some(known), Some(at)) => known.get(at).copied().unwrap_or(by_version),
                _ => by_version,
            }
        };
        let genuine = flavour != Flavour::Other;
        Self {
            flavour,
            version: own,
            compatible,
            rdb_version: rdb_version(flavour, own, compatible),
            cluster: info.get("redis_mode").or(info.get("server_mode")) == Some("cluster"),
            psync: asked("psync", since(2, 8)),
            pause_write: asked("client", true) && since(6, 2),
            rdb_filter: genuine && since(7, 0),
            pexpiretime: asked("pexpiretime", since(7, 0)),
            functions: asked("function", since(7, 0)),
            client_unblock: asked("client", true) && since(5, 0),
            restore_absttl: asked("restore", true) && since(5, 0),
            restore: asked("dump", since(2, 6)) && asked("restore", since(2, 6)),
            unlink: asked("unlink", since(4, 0)),
        }
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor, patch) = self.version;
        write!(f, "{} {major}.{minor}.{patch}", self.flavour)
    }
}

/// A version as servers write it, "7.0.15" or "8.0-rc1".
pub(crate) fn version(text: &str) -> (u16, u16, u16) {
    let mut parts = text.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// The version in a DUMP payload: two bytes, little-endian, before the 8 bytes of checksum.
fn stamp(payload: &[u8]) -> Option<u32> {
    let at = payload.len().checked_sub(10)?;
    Some(u32::from(u16::from_le_bytes([payload[at], payload[at + 1]])))
}

/// What released servers write; the lower one where a release candidate or a fork may differ, since a server takes every
/// version below its own.
fn rdb_version(flavour: Flavour, own: (u16, u16, u16), compatible: (u16, u16, u16)) -> u32 {
    if flavour == Flavour::Valkey && own.0 >= 9 {
        return 80;
    }
    let compatible = if flavour == Flavour::Redis { compatible } else { compatible.min((7, 2, 4)) };
    match (compatible.0, compatible.1) {
        (0..=2, _) | (3, 0 | 1) => 6,
        (3, _) => 7,
        (4, _) => 8,
        (5 | 6, _) => 9,
        (7, 0 | 1) => 10,
        (7, 2 | 3) => 11,
        (7, _) | (8, 0..=5) => 12,
        _ => 13,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn concluded(text: &str) -> Capabilities {
        Capabilities::conclude(&Info::parse(text), None)
    }

    #[test]
    fn families_versions_and_what_follows() {
        let old = concluded("redis_version:2.8.17\r\nredis_mode:standalone\r\n");
        assert_eq!((old.flavour, old.version, old.rdb_version), (Flavour::Redis, (2, 8, 17), 6));
        assert!(old.psync && !old.client_unblock && !old.restore_absttl && !old.unlink && !old.pause_write);
        let redis = concluded("redis_version:7.0.15\r\nredis_mode:cluster\r\n");
        assert!(
            redis.pause_write && redis.rdb_filter && redis.pexpiretime && redis.functions && redis.cluster
        );
        assert_eq!((redis.rdb_version, redis.to_string()), (10, "Redis 7.0.15".into()));
        let valkey = concluded("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.0.0\r\n");
        assert_eq!((valkey.flavour, valkey.version, valkey.rdb_version), (Flavour::Valkey, (9, 0, 0), 80));
        assert!(valkey.at_least(7, 2) && !valkey.at_least(7, 4));
        let redict = concluded("redict_version:7.3.6\r\nredis_version:7.2.4\r\n");
        assert_eq!((redict.flavour, redict.rdb_version), (Flavour::Redict, 11));
        let keydb = concluded("redis_version:6.3.4\r\n");
        assert_eq!((keydb.flavour, keydb.rdb_filter, keydb.rdb_version), (Flavour::Other, false, 9));
        assert_eq!(concluded("redis_version:8.0.0-rc1").version, (8, 0, 0));
        assert_eq!(concluded("redis_version:3.9.102").rdb_version, 8);
    }

    #[test]
    fn the_servers_own_answer_wins() {
        let info = Info::parse("redis_version:7.2.4\r\n");
        let known = ASKED.iter().map(|name| *name != "psync" && *name != "restore").collect();
        let found = Capabilities::conclude(&info, Some(known));
        assert!(!found.psync && !found.restore && found.unlink && found.functions && !found.restore_absttl);
    }

    #[test]
    fn the_stamp_of_a_payload() {
        assert_eq!(stamp(b"\x0b\x0012345678"), Some(11));
        assert_eq!(stamp(b"xyz\x50\x0012345678"), Some(80));
        assert_eq!(stamp(b"short"), None);
    }
}
