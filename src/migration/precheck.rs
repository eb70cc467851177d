//! What must hold before a migration begins.

use std::time::Duration;

use super::holder::Holder;
use crate::config::OnExistingKey;
use crate::cutover::live::connect;
use crate::error::{Error, Result, Side};
use crate::resp::value::Value;
use crate::server::{Client, Endpoint};

/// Keys that are named when the destination is not empty.
const NAMED: usize = 20;

/// Looks at both servers and takes hold of the destination.
///
/// # Errors
/// With what a person has to change, or when a server cannot be reached.
pub(super) async fn begin(
    source: &Endpoint,
    destination: &Endpoint,
    policy: OnExistingKey,
    holder: &Holder,
    within: Duration,
) -> Result<()> {
    let mut from = connect(source, within).await?;
    let info = from.info("server").await?;
    tracing::info!(
        version = info.get("redis_version").unwrap_or("?"),
        "the source answers at {}",
        source.address
    );
    let mut to = connect(destination, within).await?;
    let info = to.info("replication").await?;
    if info.get("role") == Some("slave") {
        return Err(Error::new(Side::Destination, "it is a replica, and refuses writes")
            .remedy("make it a primary (REPLICAOF NO ONE), or name its primary as the destination"));
    }
    holder.claim(&mut to, Side::Destination).await?;
    if policy == OnExistingKey::Fail {
        let (count, names) = existing(&mut to).await?;
        if count > 0 {
            let more = if count > names.len() as u64 { ", …" } else { "" };
            return Err(Error::new(Side::Destination, format!("it is not empty: {count} keys, such as {}{more}", names.join(", ")))
                .remedy("empty it (FLUSHALL), name another destination, or choose snapshot.on_existing_key = \"keep\" or \"replace\""));
        }
    }
    Ok(())
}

/// How many keys that are not the gateway's the server holds, and the names of some.
async fn existing(client: &mut Client) -> Result<(u64, Vec<String>)> {
    let mut count = 0;
    let mut names = Vec::new();
    for space in client.info("keyspace").await?.keyspace() {
        client.command(&["SELECT", &space.db.to_string()]).await?;
        count += space.keys;
        if space.db == 0 {
            for key in ["crossfade:holder", "crossfade:position", "crossfade:epoch"] {
                count -= u64::from(client.command(&["EXISTS", key]).await?.as_i64() == Some(1)).min(count);
            }
        }
        let mut cursor = "0".to_owned();
        while names.len() < NAMED && count > 0 {
            let page =
                client.command(&["SCAN", &cursor, "COUNT", "100"]).await?.into_array().unwrap_or_default();
            let keys = page.get(1).cloned().and_then(Value::into_array).unwrap_or_default();
            for key in keys.iter().filter_map(Value::as_bytes).filter(|key| !key.starts_with(b"crossfade:")) {
                if names.len() < NAMED {
                    names.push(format!("{} (db {})", key.escape_ascii(), space.db));
                }
            }
            match page.first().and_then(Value::as_str) {
                Some(next) if next != "0" => cursor = next.to_owned(),
                _ => break,
            }
        }
    }
    client.command(&["SELECT", "0"]).await?;
    Ok((count, names))
}
