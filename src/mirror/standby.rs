//! Follows the stream of a server that may soon be the active one, and applies nothing.
//!
//! Needed is only the db that the stream has selected at the offset of the switch, so commands are read and thrown
//! away. That offset is told by [`super::Mirror::engage`] after the fact: the reading may have passed it. So the places that
//! were passed lately are remembered, and reading goes back to one of them; the journal keeps the stream behind.

use std::collections::VecDeque;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::batch::Collector;
use super::run::{End, Step, TICK, Task, refuse};
use super::transform::{Dialect, Transform};
use super::{Position, Request, Stage};
use crate::error::{Error, Result, Side};
use crate::replication::{JournalReader, Link as ReceiverLink, ReceiveFrom};

/// The distance between two remembered places, in bytes, unless the db changes.
const STRIDE: u64 = 64 * 1024;
/// Places that are remembered. The journal keeps more than this many strides.
const PLACES: usize = 1024;

/// What a standby was asked for.
struct Wanted {
    offset: u64,
    deadline: Instant,
    reply: oneshot::Sender<Result<Position>>,
}

struct Standby {
    reader: JournalReader,
    collector: Collector,
    /// Offsets where a command ends, and the db selected there.
    places: VecDeque<(u64, u32)>,
    wanted: Option<Wanted>,
    engaged: Option<Position>,
}

impl Standby {
    fn remember(&mut self) {
        let (offset, db) = self.collector.sealed();
        let due = self
            .places
            .back()
            .is_none_or(|&(at, before)| offset >= at + STRIDE || (db != before && offset > at));
        if due {
            self.places.push_back((offset, db));
            if self.places.len() > PLACES {
                self.places.pop_front();
            }
        }
    }
}

impl Task {
    /// Follows until the mirror is told to go; answers where it was engaged.
    pub(super) async fn standby(&mut self) -> Step<Position> {
        let before = self.journal.generation();
        self.hurry(true);
        self.replace_receiver(ReceiveFrom::Tail).await;
        let mut standby = self.attach(before).await?;
        self.going.mark_unchanged();
        loop {
            standby.collector.collect().map_err(|error| {
                Error::new(self.options.from.side, "the replication stream cannot be read").because(error)
            })?;
            standby.remember();
            let (offset, _) = standby.collector.sealed();
            self.applied.send_if_modified(|applied| std::mem::replace(applied, offset) != offset);
            self.check_wanted(&mut standby);
            if *self.going.borrow_and_update() {
                if let Some(position) = standby.engaged.take() {
                    return Ok(position);
                }
                return Err(
                    Error::new(Side::Gateway, "the mirror was told to go, but nowhere to begin").into()
                );
            }
            let held = standby.engaged.is_some();
            let deadline = standby.wanted.as_ref().map(|wanted| wanted.deadline);
            tokio::select! {
                () = self.cancel.cancelled() => return Err(End::Stopped),
                chunk = standby.reader.next(), if !held => match chunk {
                    Ok(chunk) => standby.collector.push(&chunk.bytes, chunk.arrived_ms),
                    Err(_) if standby.reader.is_superseded() => {
                        if let Some(wanted) = standby.wanted.take() {
                            let error = Error::passing(self.options.from.side, "the stream began anew");
                            let _ = wanted.reply.send(Err(error));
                        }
                        standby = self.attach(self.journal.generation().saturating_sub(1)).await?;
                    }
                    Err(error) => return Err(error.into()),
                },
                Some(request) = self.requests.recv() => match request {
                    Request::Engage { offset, deadline, reply } => {
                        let wanted = Wanted { offset, deadline, reply };
                        if let Err((error, wanted)) = self.aim(&mut standby, wanted) {
                            let _ = wanted.reply.send(Err(error));
                        }
                    }
                    other => refuse(other, "the mirror stands by, it applies nothing"),
                },
                _ = self.going.changed() => {}
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
                () = tokio::time::sleep(TICK) => {
                    self.watch_standby()?;
                    let oldest = standby.places.front().map_or(0, |&(offset, _)| offset);
                    self.journal.trim(oldest);
                }
            }
        }
    }

    /// Waits for the stream of a generation behind `before`, and begins to read it.
    async fn attach(&mut self, before: u64) -> Step<Standby> {
        loop {
            self.watch_standby()?;
            let streaming = self.is_streaming();
            if streaming && self.journal.generation() > before {
                let start = self.journal.start();
                // Dialect and limits do not matter: nothing is written.
                let transform = Transform::new(Dialect::of_version(7, 0), Vec::new());
                let db = self.receiver.as_ref().map_or(0, |receiver| receiver.state.borrow().tail_db);
                let mut collector = Collector::new(start, db, transform, self.options.batch);
                collector.discard_until(u64::MAX);
                let reader = self.journal.reader(start)?;
                self.stage(Stage::Standby);
                return Ok(Standby {
                    reader,
                    collector,
                    places: VecDeque::from([(start, db)]),
                    wanted: None,
                    engaged: None,
                });
            }
            let Some(receiver) = &mut self.receiver else {
                return Err(Error::new(Side::Gateway, "the receiver has ended").into());
            };
            tokio::select! {
                () = self.cancel.cancelled() => return Err(End::Stopped),
                _ = receiver.state.changed() => {}
                Some(request) = self.requests.recv() => refuse(request, "the mirror is not attached yet"),
            }
        }
    }

    fn is_streaming(&self) -> bool {
        self.receiver
            .as_ref()
            .is_some_and(|receiver| matches!(receiver.state.borrow().link, ReceiverLink::Streaming))
    }

    fn watch_standby(&mut self) -> Result<()> {
        if let Some(receiver) = &mut self.receiver {
            let link = receiver.state.borrow_and_update().link.clone();
            self.note_receiver(&link)?;
        }
        let attached = matches!(self.state.stage, Stage::Standby | Stage::Connecting);
        if attached && !self.is_streaming() {
            self.stage(Stage::Connecting);
        } else if self.state.stage == Stage::Connecting && *self.applied.borrow() > 0 && self.is_streaming() {
            self.stage(Stage::Standby);
        }
        self.publish();
        Ok(())
    }

    /// Goes back to a place before the wanted offset, if that was passed.
    fn aim(&mut self, standby: &mut Standby, wanted: Wanted) -> Result<(), (Error, Wanted)> {
        let offset = wanted.offset;
        let (now, _) = standby.collector.sealed();
        if offset < now {
            let found = standby.places.iter().rev().find(|&&(at, _)| at <= offset).copied();
            let reader = found
                .ok_or_else(|| {
                    Error::new(
                        Side::Gateway,
                        format!("offset {offset} lies too far back, the stream is at {now}"),
                    )
                })
                .and_then(|(at, db)| Ok((self.journal.reader(at)?, at, db)));
            match reader {
                Ok((reader, at, db)) => {
                    standby.reader = reader;
                    standby.collector.restart(at, db);
                    standby.places.retain(|&(place, _)| place <= at);
                }
                Err(error) => return Err((error, wanted)),
            }
        }
        standby.collector.discard_until(offset);
        standby.collector.hold_at(offset);
        standby.engaged = None;
        if let Some(before) = standby.wanted.replace(wanted) {
            let _ = before.reply.send(Err(Error::passing(Side::Gateway, "engaged again, elsewhere")));
        }
        Ok(())
    }

    fn check_wanted(&mut self, standby: &mut Standby) {
        let Some(wanted) = &standby.wanted else { return };
        let (offset, db) = standby.collector.sealed();
        let outcome = if offset == wanted.offset {
            Ok(self.place(offset, db))
        } else if offset > wanted.offset {
            Err(Error::new(
                Side::Gateway,
                format!("no command of the stream ends at offset {}", wanted.offset),
            ))
        } else if Instant::now() >= wanted.deadline {
            Err(Error::passing(
                self.options.from.side,
                format!(
                    "the stream was received up to offset {offset} in time, {} was asked for",
                    wanted.offset
                ),
            ))
        } else {
            return;
        };
        if let Ok(position) = &outcome {
            standby.engaged = Some(position.clone());
        } else {
            standby.collector.discard_until(u64::MAX);
            standby.collector.hold_at(u64::MAX);
        }
        if let Some(wanted) = standby.wanted.take() {
            let _ = wanted.reply.send(outcome);
        }
    }
}
