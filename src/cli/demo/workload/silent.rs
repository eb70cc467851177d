//! A client that wants no replies: CLIENT REPLY OFF for a while, or SKIP for one command.
//!
//! It appends numbered tokens unanswered. Then it asks for what it has appended: exactly these tokens, in their order, and
//! nothing that came unasked before the answer.

use std::time::{Duration, Instant};

use super::Plan;
use super::link::{Dice, Link};
use super::sequence::{Fault, FaultKind, Sequence, TOKEN, parse_token, token};
use crate::cli::demo::connection::{Connection, Reply};

/// Between two things that it sends, at most.
const REST_US: u64 = 12_000;

pub(super) struct Silent {
    link: Link,
    dice: Dice,
    key: String,
    steps: Sequence,
}

impl Silent {
    pub(super) fn new(index: usize, link: Link, plan: &Plan) -> Self {
        let key = format!("{}:silent:{index}", plan.prefix);
        Self { link, dice: Dice::new(plan.seed ^ (0x5113_0000 + index as u64)), key, steps: Sequence::new() }
    }

    /// Works until the traffic is stopped.
    pub(super) async fn run(mut self) -> Self {
        while !self.link.stop.is_cancelled() && self.link.ready().await.is_some() {
            let before = self.steps.attempts();
            let began = Instant::now();
            if self.dice.below(3) == 0 {
                self.unanswered(&["CLIENT", "REPLY", "SKIP"]);
                self.append();
                self.rest().await;
            } else {
                self.unanswered(&["CLIENT", "REPLY", "OFF"]);
                for _ in 0..=self.dice.below(16) {
                    self.append();
                    self.rest().await;
                }
                self.link.queue(&["CLIENT", "REPLY", "ON"]);
            }
            self.ask(before, began).await;
            self.rest().await;
        }
        self
    }

    fn unanswered(&mut self, args: &[&str]) {
        if let Some(connection) = self.link.connection() {
            connection.queue(args);
        }
    }

    fn append(&mut self) {
        let step = self.steps.attempt();
        let key = self.key.clone();
        self.unanswered(&["APPEND", &key, &token(step)]);
    }

    /// Lets a switch come between.
    async fn rest(&mut self) {
        if let Some(connection) = self.link.connection() {
            // A lost connection is told by whoever waits for its reply.
            let _ = connection.flush().await;
        }
        tokio::time::sleep(Duration::from_micros(self.dice.below(REST_US))).await;
    }

    /// Asks for what was appended since `before`.
    async fn ask(&mut self, before: u64, began: Instant) {
        let steps = before + 1..=self.steps.attempts();
        let from = (before * TOKEN as u64).to_string();
        let key = self.key.clone();
        self.link.queue(&["GETRANGE", &key, &from, "-1"]);
        let replies = self.link.exchange().await;
        let text = match replies.as_slice() {
            [Reply::Bulk(text)] => text,
            [Reply::Simple(ok), Reply::Bulk(text)] if ok == b"OK" => text,
            [.., Reply::Error(text)] => {
                steps.for_each(|step| self.steps.lose(step));
                return self.link.refused("silent", before + 1, text).await;
            }
            other => {
                if let Some(reply) = other.first() {
                    let text = format!("an answer that nobody asked for: {}", reply.brief());
                    self.link.fault("silent", Some(before + 1), FaultKind::WrongReply, text);
                    self.link.hang_up();
                }
                steps.for_each(|step| self.steps.lose(step));
                return;
            }
        };
        let found: Vec<u64> = text.chunks(TOKEN).map(parse_token).collect();
        self.link.remember("silent", before + 1, Some(found.len() as i64), "answered", began);
        if self.steps.unknown() == 0 && !found.iter().copied().eq(steps.clone()) {
            let kind =
                if found.len() < steps.clone().count() { FaultKind::Lost } else { FaultKind::Duplicated };
            let text = format!("steps {steps:?} were sent, and {found:?} are there");
            self.link.told("silent", Fault::new(kind, Some(before + 1), text));
        }
        for step in steps {
            let _ = self.steps.acknowledge(step, None);
        }
    }

    /// Compares what the server holds with what was sent.
    pub(super) async fn judge(&self, server: &mut Connection) -> std::io::Result<()> {
        let text = server.must(&["GET", &self.key]).await?;
        let found: Vec<u64> = text.bytes().unwrap_or_default().chunks(TOKEN).map(parse_token).collect();
        for fault in self.steps.judge(&found) {
            self.link.told("silent", fault);
        }
        Ok(())
    }
}
