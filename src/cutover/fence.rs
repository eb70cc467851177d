//! Holding writers that bypass the gateway.
//!
//! From Redis 6.2 `CLIENT PAUSE ms WRITE` holds every write, and freezes expiry and eviction; held writers notice
//! nothing but a delay. Before, `min-replicas-to-write` (`min-slaves-to-write` before 5.0) above any number of replicas
//! makes the server refuse writes with NOREPLICAS. Its former value is in the durable record before it is changed, so
//! that a crash does not leave the server closed.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use crate::error::Result;
use crate::resp::value::Value;
use crate::server::Client;

/// How one server can be fenced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fence {
    /// `CLIENT PAUSE … WRITE`.
    Pause,
    /// A setting and its value without the fence.
    Setting {
        /// `min-replicas-to-write` or its old name.
        name: String,
        /// What to restore.
        former: String,
    },
    /// The server allows neither.
    Nothing,
}

impl Fence {
    /// Finds out what the server allows. Changes nothing there.
    pub(super) async fn probe(client: &mut Client) -> Result<Self> {
        // A pause of 0 ms ends before it begins; servers before 6.2 refuse the extra word.
        if client.call(&["CLIENT", "PAUSE", "0", "WRITE"]).await?.is_ok() {
            return Ok(Fence::Pause);
        }
        for name in ["min-replicas-to-write", "min-slaves-to-write"] {
            let found = client.call(&["CONFIG", "GET", name]).await?.into_array().unwrap_or_default();
            if let Some(former) = found.get(1).and_then(Value::as_str).map(str::to_owned) {
                // Allowed to read is not allowed to write: write what is there.
                if client.call(&["CONFIG", "SET", name, &former]).await?.is_ok() {
                    return Ok(Fence::Setting { name: name.to_owned(), former });
                }
            }
        }
        Ok(Fence::Nothing)
    }

    /// In words.
    pub(super) fn name(&self) -> Option<&'static str> {
        match self {
            Fence::Pause => Some("CLIENT PAUSE WRITE"),
            Fence::Setting { .. } => Some("min-replicas-to-write"),
            Fence::Nothing => None,
        }
    }

    /// The command that puts it up, for `lasting` at most where the server can end it by itself.
    pub(super) fn up(&self, lasting: Duration) -> Option<Vec<String>> {
        match self {
            Fence::Pause => Some(words(&["CLIENT", "PAUSE", &lasting.as_millis().to_string(), "WRITE"])),
            // i32::MAX: more replicas than anybody has.
            Fence::Setting { name, .. } => Some(words(&["CONFIG", "SET", name, "2147483647"])),
            Fence::Nothing => None,
        }
    }

    /// The command that takes it down.
    pub(super) fn down(&self) -> Option<Vec<String>> {
        match self {
            Fence::Pause => Some(words(&["CLIENT", "UNPAUSE"])),
            Fence::Setting { name, former } => Some(words(&["CONFIG", "SET", name, former])),
            Fence::Nothing => None,
        }
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// Closes the connections whose write the pause still holds. After the commit such a write would land on the old side
/// only; its sender has no answer yet, and a closed connection says that the outcome is unknown.
pub(super) async fn close_held_writers(client: &mut Client) -> Result<usize> {
    let list = client.command(&["CLIENT", "LIST"]).await?;
    let held: Vec<String> = list
        .as_str()
        .unwrap_or_default()
        .lines()
        .filter(|line| field(line, "flags").is_some_and(|flags| flags.contains('b')))
        .filter(|line| !ours(line))
        .filter_map(|line| field(line, "id").map(str::to_owned))
        .collect();
    for id in &held {
        client.call(&["CLIENT", "KILL", "ID", id]).await?;
    }
    Ok(held.len())
}

/// Connections, other than the gateway's, whose last command was a write, not longer ago than `recent`. `own` are our
/// addresses.
pub(super) async fn foreign_writers(
    client: &mut Client,
    own: &HashSet<SocketAddr>,
    recent: Duration,
) -> Result<Vec<String>> {
    let id = client.command(&["CLIENT", "ID"]).await?.as_i64().unwrap_or(-1).to_string();
    let list = client.command(&["CLIENT", "LIST"]).await?;
    let text = list.as_str().unwrap_or_default();
    let is_own = |line: &str| address(line).is_some_and(|address| own.contains(&address));
    // When even the connection that asks is not recognised, something between us and the server changes addresses.
    if !text.lines().any(|line| field(line, "id") == Some(&id) && is_own(line)) {
        return Ok(Vec::new());
    }
    let strangers = text.lines().filter(|line| !ours(line) && !is_own(line));
    Ok(strangers.filter_map(|line| foreign_writer(line, recent)).take(5).collect())
}

fn foreign_writer(line: &str, recent: Duration) -> Option<String> {
    let addr = address(line)?;
    let command = field(line, "cmd")?.split('|').next()?;
    let idle: u64 = field(line, "idle")?.parse().ok()?;
    let spec = crate::command::lookup(command.as_bytes())?;
    let wrote = spec.kind == crate::command::Kind::Write && idle < recent.as_secs();
    wrote.then(|| format!("{addr} ({command})"))
}

fn address(line: &str) -> Option<SocketAddr> {
    field(line, "addr")?.parse().ok()
}

fn ours(line: &str) -> bool {
    field(line, "name").is_some_and(|name| name.starts_with("crossfade"))
}

fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_client_line() {
        let line = "id=7 addr=127.0.0.1:5 laddr=x name=crossfade-mirror age=1 idle=0 flags=xb db=0 cmd=client|list user=default";
        assert_eq!(field(line, "id"), Some("7"));
        assert_eq!(field(line, "addr"), Some("127.0.0.1:5"));
        assert_eq!(field(line, "flags"), Some("xb"));
        assert!(ours(line));
        assert!(!ours("id=7 name= cmd=set"));
        let line = |cmd, idle| format!("id=9 addr=10.0.0.1:77 name= idle={idle} flags=N db=0 cmd={cmd}");
        let minute = Duration::from_secs(60);
        assert_eq!(foreign_writer(&line("set", 2), minute).as_deref(), Some("10.0.0.1:77 (set)"));
        assert_eq!(foreign_writer(&line("get", 2), minute), None);
        assert_eq!(foreign_writer(&line("set", 200), minute), None);
        assert_eq!(foreign_writer(&line("set", 2), Duration::from_secs(1)), None);
    }

    #[test]
    fn what_goes_up_comes_down() {
        assert_eq!(Fence::Pause.up(Duration::from_secs(1)).unwrap().join(" "), "CLIENT PAUSE 1000 WRITE");
        let setting = Fence::Setting { name: "min-slaves-to-write".into(), former: "1".into() };
        assert_eq!(setting.down().unwrap().join(" "), "CONFIG SET min-slaves-to-write 1");
        assert!(Fence::Nothing.up(Duration::from_secs(1)).is_none());
    }
}
