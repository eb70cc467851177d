//! The end of a migration: the mirror stops, expiries on the server that was written to become exact, and the gateway's
//! own keys go from both servers.
//!
//! A server that cannot be reached does not keep a migration from ending: that it is gone may be why somebody ends it.

use std::time::Duration;

use tokio::time::Instant;

use crate::cutover::live::{EPOCH_KEY, connect};
use crate::error::Result;
use crate::mirror::expiry::PAD_MS;
use crate::mirror::settle::settle_all_fields;
use crate::mirror::{Mirror, POSITION_KEY, expiry, heartbeat_key};
use crate::resp::value::Value;
use crate::resp::write;
use crate::server::{Client, Endpoint};

/// Ends it. `active` keeps the clients, `other` was written to by the mirror.
///
/// # Errors
/// When a server that can be reached refuses; what was done so far may be done again.
pub(super) async fn end(
    mirror: Option<Mirror>,
    active: Endpoint,
    other: Endpoint,
    within: Duration,
    id: String,
) -> Result<()> {
    if let Some(mirror) = mirror {
        // What has arrived is applied as far as that goes quickly; the other side stays behind as a copy.
        let received = mirror.state().borrow().received;
        if let Err(error) = mirror.wait_applied(received, Instant::now() + Duration::from_secs(5)).await {
            tracing::warn!(%error, "the {} does not hold the last writes", other.side);
        }
        mirror.stop().await;
    }
    match connect(&other, within).await {
        Ok(mut client) => {
            let settled = settle(&mut client).await?;
            tracing::info!(keys = settled, "expiries on the {} are exact", other.side);
            remove_keys(&mut client, &id).await?;
        }
        Err(error) => tracing::warn!(
            %error,
            "the {} cannot be reached: its expiries stay padded and the gateway's keys (crossfade:*) stay there",
            other.side
        ),
    }
    match connect(&active, within).await {
        Ok(mut client) => remove_keys(&mut client, &id).await?,
        Err(error) => {
            tracing::warn!(%error, "the {} cannot be reached: the gateway's keys (crossfade:*) stay there", active.side)
        }
    }
    Ok(())
}

async fn remove_keys(client: &mut Client, id: &str) -> Result<()> {
    let heartbeat = heartbeat_key(id);
    client.command(&["DEL", POSITION_KEY, EPOCH_KEY, super::holder::KEY, &heartbeat]).await.map(|_| ())
}

/// Makes every padded expiry exact. Nobody else writes there: the mirror has stopped, the clients are elsewhere.
async fn settle(client: &mut Client) -> Result<u64> {
    let mut settled = 0;
    for space in client.info("keyspace").await?.keyspace() {
        if space.expires == 0 {
            continue;
        }
        client.command(&["SELECT", &space.db.to_string()]).await?;
        let mut cursor = "0".to_owned();
        loop {
            let page =
                client.command(&["SCAN", &cursor, "COUNT", "1000"]).await?.into_array().unwrap_or_default();
            let keys = page.get(1).cloned().and_then(Value::into_array).unwrap_or_default();
            settled += settle_keys(client, &keys).await?;
            match page.first().and_then(Value::as_str) {
                Some(next) if next != "0" => cursor = next.to_owned(),
                _ => break,
            }
        }
    }
    settled += settle_all_fields(client).await?;
    client.command(&["SELECT", "0"]).await?;
    Ok(settled)
}

async fn settle_keys(client: &mut Client, keys: &[Value]) -> Result<u64> {
    let keys: Vec<&[u8]> = keys.iter().filter_map(Value::as_bytes).collect();
    let mut ask = Vec::new();
    for key in &keys {
        write::command(&mut ask, &[&b"PTTL"[..], key]);
    }
    let left = client.pipeline(&ask, keys.len()).await?;
    let mut set = Vec::new();
    let mut count = 0;
    for (key, left) in keys.iter().zip(left) {
        // Relative on purpose: the server's clock and ours may differ. A pad is so large that what remains tells it.
        let Some(left) = left.as_i64().and_then(|ms| u64::try_from(ms).ok()) else { continue };
        if expiry::is_padded(left.saturating_add(super::record::now_ms())) {
            // Due already: a time in the past removes the key.
            let exact = (left as i64).saturating_sub(PAD_MS as i64);
            write::command(&mut set, &[&b"PEXPIRE"[..], key, exact.to_string().as_bytes()]);
            count += 1;
        }
    }
    client.pipeline(&set, count).await?;
    Ok(count as u64)
}
