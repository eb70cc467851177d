//! `crossfade:holder` on the destination: which gateway works there (one at a time).
//!
//! The value names the migration, the host and the process, and expires; the gateway renews it. Another migration that
//! finds it refuses to begin and says who holds the server. The same migration (the same state directory) takes it over:
//! a gateway that was killed does not wait for its own ghost. A mirrored FLUSHALL removes the key; the next renewal
//! writes it again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result, Side};
use crate::server::Client;

/// The key.
pub const KEY: &str = "crossfade:holder";
/// How long a holder counts after its last renewal.
pub const EXPIRY: Duration = Duration::from_secs(30);
/// How often it is renewed.
pub const RENEWAL: Duration = Duration::from_secs(8);

/// Who holds a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Id of the migration.
    pub id: String,
    /// Where the gateway runs.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// Since when, unix seconds.
    pub since: u64,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {} {}", self.id, self.host, self.pid, self.since)
    }
}

impl Holder {
    /// This process, for the migration `id`.
    #[must_use]
    pub fn this(id: &str) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { id: id.to_owned(), host: host(), pid: std::process::id(), since }
    }

    fn decode(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (id, host) = (words.next()?.to_owned(), words.next()?.to_owned());
        Some(Self { id, host, pid: words.next()?.parse().ok()?, since: words.next()?.parse().ok()? })
    }

    /// Takes or renews the key.
    ///
    /// # Errors
    /// When another migration holds the server, or when the server refuses.
    pub async fn claim(&self, client: &mut Client, side: Side) -> Result<()> {
        let expiry = EXPIRY.as_millis().to_string();
        // Between GET and SET another gateway could slip in; SET NX decides the first time, and afterwards the key is ours.
        let taken = client.command(&["SET", KEY, &self.to_string(), "PX", &expiry, "NX"]).await?;
        if taken.is_ok() {
            return Ok(());
        }
        let found = client.command(&["GET", KEY]).await?;
        match found.as_str().and_then(Holder::decode) {
            Some(other) if other.id != self.id => Err(other.refusal(side)),
            _ => client.command(&["SET", KEY, &self.to_string(), "PX", &expiry]).await.map(|_| ()),
        }
    }

    fn refusal(&self, side: Side) -> Error {
        let age = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
            .saturating_sub(self.since);
        Error::new(
            Side::Gateway,
            format!(
                "the {side} is held by another gateway: migration {}, process {} on {}, since {} ago",
                self.id,
                self.pid,
                self.host,
                humantime::format_duration(Duration::from_secs(age))
            ),
        )
        .remedy(format!(
            "end that migration, or wait {} after its gateway has stopped",
            humantime::format_duration(EXPIRY)
        ))
    }
}

/// The name of this machine, without spaces.
#[must_use]
pub fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::fs::read_to_string("/etc/hostname"))
        .unwrap_or_default();
    let name: String = name.trim().chars().map(|c| if c.is_whitespace() { '-' } else { c }).collect();
    if name.is_empty() { "unknown-host".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_read_back() {
        let holder = Holder::this("00ff");
        assert_eq!(Holder::decode(&holder.to_string()), Some(holder.clone()));
        assert_eq!(Holder::decode("nonsense"), None);
        let refusal = holder.refusal(Side::Destination).to_string();
        assert!(refusal.contains(&holder.host) && refusal.contains(&holder.pid.to_string()), "{refusal}");
    }
}
