//! Questions about keys of several dbs in one round trip.

use super::refused;
use crate::error::Result;
use crate::mirror::transform::select;
use crate::resp::value::Value;
use crate::resp::write;
use crate::server::Client;

/// A pipeline that selects the db of each key.
#[derive(Default)]
pub(super) struct Asking {
    out: Vec<u8>,
    db: Option<u32>,
    /// Whether each reply answers a question; the others answer SELECT.
    replies: Vec<bool>,
}

impl Asking {
    /// Adds a command for this db.
    pub(super) fn add(&mut self, db: u32, words: &[&[u8]]) {
        if self.db != Some(db) {
            select(db, &mut self.out);
            self.replies.push(false);
            self.db = Some(db);
        }
        write::command(&mut self.out, words);
        self.replies.push(true);
    }

    /// The answers, in order; `None` where the key is of another type by now. Nothing is sent when nothing was added.
    ///
    /// # Errors
    /// The server does not answer, or refuses.
    pub(super) async fn answers(self, client: &mut Client, name: &str) -> Result<Vec<Option<Value>>> {
        if self.replies.is_empty() {
            return Ok(Vec::new());
        }
        let replies = client.pipeline(&self.out, self.replies.len()).await?;
        let mut answers = Vec::with_capacity(replies.len());
        for (reply, answers_one) in replies.into_iter().zip(self.replies) {
            if matches!(&reply, Value::Error(text) if text.starts_with(b"WRONGTYPE")) {
                answers.push(None);
                continue;
            }
            let reply = refused(client, Some(reply), name)?;
            if answers_one {
                answers.push(Some(reply));
            }
        }
        Ok(answers)
    }
}
