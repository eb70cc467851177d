//! A scan that is made step by step, with other commands between.
//!
//! A whole scan names everything that was there from its beginning to its end, whatever connection or side its steps go to.

use std::collections::HashSet;

use super::sequence::{Fault, FaultKind};
use crate::cli::demo::connection::Reply;

/// One scan after the other.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Empty: none is under way.
    cursor: Vec<u8>,
    /// How much had to be named when it began, and what of it has not been named yet.
    due: usize,
    unnamed: HashSet<Vec<u8>>,
}

impl Scan {
    /// The cursor of the next step; a scan that begins has to name all of `there`.
    pub(super) fn cursor(&mut self, there: impl FnOnce() -> HashSet<Vec<u8>>) -> Vec<u8> {
        if self.cursor.is_empty() {
            let unnamed = there();
            *self = Self { cursor: b"0".to_vec(), due: unnamed.len(), unnamed };
        }
        self.cursor.clone()
    }

    /// Takes the answer to a step; when it was the last, how much the scan had to name.
    ///
    /// # Errors
    /// It has missed something.
    pub(super) fn took(&mut self, reply: Option<&Reply>) -> Result<Option<usize>, Fault> {
        let Some([cursor, named]) = reply.map(Reply::items) else {
            self.cursor.clear();
            return Ok(None);
        };
        self.cursor = cursor.bytes().unwrap_or_default().to_vec();
        for name in named.items() {
            self.unnamed.remove(name.bytes().unwrap_or_default());
        }
        if self.cursor != b"0" {
            return Ok(None);
        }
        self.cursor.clear();
        match self.unnamed.iter().min() {
            None => Ok(Some(self.due)),
            Some(first) => {
                let (missed, first) = (self.unnamed.len(), String::from_utf8_lossy(first));
                let text = format!("a scan missed {missed} of {}, first {first}", self.due);
                Err(Fault::new(FaultKind::WrongReply, None, text))
            }
        }
    }
}
