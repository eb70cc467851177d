//! What a server's clock says, against ours.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::Client;
use crate::error::{Error, Result};
use crate::resp::value::Value;

/// How far a server's clock and ours are apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Its clock minus ours, in milliseconds.
    pub ahead_ms: i64,
    /// Half of a round trip: how exact that is.
    pub within_ms: i64,
}

impl Clock {
    /// Asks with `TIME`, and compares with the middle of the round trip.
    ///
    /// # Errors
    /// The server does not answer, or with something else.
    pub async fn ask(client: &mut Client) -> Result<Self> {
        let before = Instant::now();
        let reply = client.command(&["TIME"]).await?;
        let within_ms = i64::try_from(before.elapsed().as_millis() / 2).unwrap_or(i64::MAX);
        let ours = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let theirs = Self::read(&reply).and_then(|ms| i64::try_from(ms).ok());
        let theirs = theirs.ok_or_else(|| Error::new(client.side(), "TIME did not answer as TIME does"))?;
        Ok(Self { ahead_ms: theirs - (i64::try_from(ours).unwrap_or(i64::MAX) - within_ms), within_ms })
    }

    /// What `TIME` answered: unix time in milliseconds.
    pub fn read(reply: &Value) -> Option<u64> {
        let [seconds, micros] = reply.as_array()? else { return None };
        let number = |value: &Value| value.as_str()?.parse::<u64>().ok();
        Some(number(seconds)?.saturating_mul(1000).saturating_add(number(micros)? / 1000))
    }

    /// The most exact of some answers; a difference that is hardly more than what cannot be told is none.
    ///
    /// # Errors
    /// As [`Clock::ask`].
    pub async fn ahead_ms(client: &mut Client) -> Result<i64> {
        let mut best = Self::ask(client).await?;
        for _ in 0..4 {
            let next = Self::ask(client).await?;
            if next.within_ms < best.within_ms {
                best = next;
            }
        }
        Ok(if best.ahead_ms.abs() <= best.within_ms + AGREED_MS { 0 } else { best.ahead_ms })
    }
}

/// Clocks that are no further apart agree.
const AGREED_MS: i64 = 2;
