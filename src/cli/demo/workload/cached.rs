//! A client that keeps what it has read, as client-side caching does, and is told by the server what to forget.
//!
//! It reads counters that all clients change. What it was not told to forget between two readings has to be the same
//! in the second: a change that comes before a reading is announced before the answer to that reading.

use std::time::{Duration, Instant};

use super::link::{Dice, Link};
use super::sequence::FaultKind;
use super::{Plan, SHARED, solo};
use crate::cli::demo::connection::Reply;

/// Between two readings, at most.
const REST_US: u64 = 4000;

pub(super) struct Cached {
    link: Link,
    dice: Dice,
    keys: [String; SHARED],
    known: [Option<i64>; SHARED],
}

impl Cached {
    pub(super) fn new(link: Link, plan: &Plan) -> Self {
        let keys = std::array::from_fn(|index| solo::shared_key(&plan.prefix, "counter", index));
        Self { dice: Dice::new(plan.seed ^ 0xcac4_ed00), link, keys, known: [None; SHARED] }
    }

    /// Reads until the traffic is stopped.
    pub(super) async fn run(mut self) {
        while !self.link.stop.is_cancelled() {
            match self.link.ready().await {
                None => break,
                Some(true) => self.known = [None; SHARED],
                Some(false) => {}
            }
            self.read().await;
            tokio::time::sleep(Duration::from_micros(self.dice.below(REST_US))).await;
        }
    }

    async fn read(&mut self) {
        let index = self.dice.below(SHARED as u64) as usize;
        let began = Instant::now();
        self.link.queue(&["GET", &self.keys[index]]);
        let replies = self.link.exchange().await;
        let pushes = self.link.connection().map(|connection| connection.take_pushes()).unwrap_or_default();
        pushes.iter().for_each(|push| self.forget(push));
        let now = match replies.first() {
            Some(Reply::Error(text)) => {
                self.known[index] = None;
                return self.link.refused("cached", 0, text).await;
            }
            Some(reply) => reply.number().unwrap_or(0),
            None => return,
        };
        self.link.remember("cached", 0, Some(now), "read", began);
        if let Some(before) = self.known[index].replace(now)
            && before != now
        {
            let text = format!("{} was {before} and is {now}, and nobody said so", self.keys[index]);
            self.link.fault("cached", None, FaultKind::Lost, text);
        }
    }

    /// `invalidate` with the keys, or with null for all of them.
    fn forget(&mut self, push: &Reply) {
        match push.items() {
            [kind, Reply::Nil] if kind.bytes() == Some(b"invalidate") => self.known = [None; SHARED],
            [kind, keys] if kind.bytes() == Some(b"invalidate") => {
                for key in keys.items() {
                    if let Some(at) = self.keys.iter().position(|own| key.bytes() == Some(own.as_bytes())) {
                        self.known[at] = None;
                    }
                }
            }
            _ => {
                let text = format!("a message that nobody asked for: {}", push.brief());
                self.link.fault("cached", None, FaultKind::WrongReply, text);
            }
        }
    }
}
