//! What the mirror writes about itself on the destination: one key, in db 0, one line of text.
//!
//! ```text
//! <migration id> <direction> <replication id> <offset> <db>     everything up to <offset> is applied; <db> is selected behind it
//! <migration id> <direction> loading <generation>               a snapshot is being loaded; the keys are a part of it
//! ```
//! The line is read from its end, so a migration id may contain blanks.

use std::fmt;

use serde::{Deserialize, Serialize};

pub use crate::replication::Position;

/// The key that holds the mark.
pub const POSITION_KEY: &str = "crossfade:position";

/// Which way a mirror runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the source to the destination.
    Forward,
    /// From the destination back to the source.
    Reverse,
}

impl Direction {
    /// `forward` or `reverse`.
    pub fn name(self) -> &'static str {
        match self {
            Direction::Forward => "forward",
            Direction::Reverse => "reverse",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A migration's id without the epoch that its mirrors add to it (`orders.3`): each switch begins a new pair of
/// positions, and what an earlier epoch left behind is not another migration's.
pub(super) fn lineage(id: &str) -> &str {
    match id.rsplit_once('.') {
        Some((name, epoch)) if !epoch.is_empty() && epoch.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => id,
    }
}

/// The content of [`POSITION_KEY`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The migration that the mark belongs to.
    pub id: String,
    /// Which of its two mirrors wrote it.
    pub direction: Direction,
    /// How far it is.
    pub reach: Reach,
}

/// How far a mirror has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// A snapshot is being loaded.
    Loading {
        /// The full resync that the snapshot belongs to.
        generation: u64,
    },
    /// Everything up to here is applied.
    At(Position),
}

impl Mark {
    /// The mark that a text holds; `None` when it is no mark.
    pub fn parse(text: &str) -> Option<Mark> {
        let direction = |word: &str| match word {
            "forward" => Some(Direction::Forward),
            "reverse" => Some(Direction::Reverse),
            _ => None,
        };
        let (rest, last) = text.rsplit_once(' ')?;
        let (rest, middle) = rest.rsplit_once(' ')?;
        if middle == "loading" {
            let (id, way) = rest.rsplit_once(' ')?;
            let reach = Reach::Loading { generation: last.parse().ok()? };
            return Some(Mark { id: id.to_owned(), direction: direction(way)?, reach });
        }
        let (rest, replid) = rest.rsplit_once(' ')?;
        let (id, way) = rest.rsplit_once(' ')?;
        let position =
            Position { replid: replid.to_owned(), offset: middle.parse().ok()?, db: last.parse().ok()? };
        Some(Mark { id: id.to_owned(), direction: direction(way)?, reach: Reach::At(position) })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.id, self.direction)?;
        match &self.reach {
            Reach::Loading { generation } => write!(f, "loading {generation}"),
            Reach::At(at) => write!(f, "{} {} {}", at.replid, at.offset, at.db),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_not_part_of_the_lineage() {
        assert_eq!(lineage("orders.3"), "orders");
        assert_eq!(lineage("orders"), "orders");
        assert_eq!(lineage("orders.v"), "orders.v");
        assert_eq!(lineage("a.b.10"), "a.b");
        assert_eq!(lineage("a."), "a.");
    }

    #[test]
    fn a_mark_is_read_back_as_it_was_written() {
        let at = Position { replid: "0123456789012345678901234567890123456789".into(), offset: 77, db: 3 };
        for reach in [Reach::Loading { generation: 4 }, Reach::At(at)] {
            for id in ["orders-cache", "two words", "forward loading 3"] {
                let mark = Mark { id: id.into(), direction: Direction::Reverse, reach: reach.clone() };
                assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
            }
        }
        for text in ["", "x", "a b c", "id forward loading x", "id sideways loading 1", "id forward r 1"] {
            assert_eq!(Mark::parse(text), None, "{text:?}");
        }
    }
}
