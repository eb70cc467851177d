//! A place in a replication stream.

use std::fmt;
use std::str::FromStr;

/// A place in a replication stream, by Redis's own counting.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// The replication id: 40 characters that name one history of writes.
    pub replid: String,
    /// The last byte of the stream that counts as done; `PSYNC` asks for the one behind it.
    pub offset: u64,
    /// The db that the stream has selected there. It is not repeated after a partial resynchronisation.
    pub db: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.replid, self.offset, self.db)
    }
}

/// A text that is no position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a position is a replication id, an offset and a db")]
pub struct ParsePositionError;

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, ParsePositionError> {
        let mut words = text.split_ascii_whitespace();
        let (Some(replid), Some(offset), Some(db), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(ParsePositionError);
        };
        if !is_replid(replid) {
            return Err(ParsePositionError);
        }
        Ok(Self {
            replid: replid.to_owned(),
            offset: offset.parse().map_err(|_| ParsePositionError)?,
            db: db.parse().map_err(|_| ParsePositionError)?,
        })
    }
}

/// Redis writes 40 hex digits; forks are only held to the length and to characters that cannot break a line.
pub(super) fn is_replid(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let position = Position { replid: "a1".repeat(20), offset: u64::MAX, db: 15 };
        assert_eq!(position.to_string().parse(), Ok(position));
    }

    #[test]
    fn refuses_what_is_none() {
        let id = "a1".repeat(20);
        for text in [
            String::new(),
            "x 1 0".into(),
            id.clone(),
            format!("{id} 1"),
            format!("{id} -1 0"),
            format!("{id} 1 0 2"),
            format!("{id} 18446744073709551616 0"),
            format!("{} 1 0", "é".repeat(20)),
        ] {
            assert_eq!(text.parse::<Position>(), Err(ParsePositionError), "{text}");
        }
    }
}
