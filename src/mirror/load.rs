//! The load of a snapshot from the journal into the destination.
//!
//! Before the first key the destination gets the mark `loading` with the snapshot's generation; behind the last key
//! the mark becomes the position at which the snapshot was taken. A load that breaks off in between begins again with
//! the same snapshot while the journal has it, or will have it, whole; else with the next one.
//!
//! Whatever is not the first snapshot loaded finds keys that may be gone from the source: the destination is emptied
//! for it, in one transaction with the mark and the gateway's own keys. Where it was allowed to hold keys of its own
//! (`on_existing_key` is not "fail") that would take them away, and keys that were copied earlier would be taken for such
//! keys: there the mirror stops.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::notes::Dropped;
use super::run::{End, Step, TICK, TIMEOUT, Task, refuse};
use super::{POSITION_KEY, Position, Reach, SnapshotProgress, Stage};
use crate::backfill::{self, LoadOptions, Progress};
use crate::config::{OnExistingKey, OnUnsupported};
use crate::error::{Error, Side};
use crate::replication::{Link as ReceiverLink, SnapshotInfo};
use crate::resp::value::Value;
use crate::resp::write;
use crate::server::{Capabilities, Client};

/// How long an old server may take to give back the memory of everything that it holds.
const EMPTIES: Duration = Duration::from_secs(600);

impl Task {
    /// Loads the snapshot of a generation, or of a later one; answers the position behind it.
    pub(super) async fn load(
        &mut self,
        client: &mut Client,
        mut generation: u64,
        mut flush: bool,
    ) -> Step<Position> {
        let begun = Instant::now();
        self.state.snapshot = SnapshotProgress::default();
        loop {
            self.stage(Stage::Snapshot);
            let info = self.await_snapshot(generation).await?;
            flush |= info.generation != generation;
            generation = info.generation;
            let mut position = Position {
                replid: info.replid.clone().unwrap_or_else(|| "?".into()),
                offset: info.offset,
                db: 0,
            };
            let loaded = match self.load_once(client, &info, flush, begun).await {
                Ok(()) => {
                    position.db = self.db_behind_snapshot(generation).await?;
                    self.mark(client, Reach::At(position.clone())).await.map_err(End::Failed)
                }
                Err(end) => Err(end),
            };
            match loaded {
                Ok(()) => {
                    self.notes.set_begun(Some(&position.to_string()))?;
                    self.notes.set_padded(true)?;
                    // What was to be copied anew has come with the snapshot.
                    self.notes.set_copies(&[])?;
                    self.recovered();
                    self.applied.send_replace(position.offset);
                    if let Some(heartbeat) = &mut self.heartbeat {
                        heartbeat.begin_anew();
                    }
                    self.state.snapshot.seconds = begun.elapsed().as_secs_f64();
                    tracing::info!(
                        keys = self.state.snapshot.keys_loaded,
                        seconds = self.state.snapshot.seconds,
                        "the snapshot is loaded"
                    );
                    return Ok(position);
                }
                Err(End::Failed(error)) => {
                    self.wait_out(error, self.options.retry.connection).await?;
                    if self.journal.snapshot().is_none_or(|now| now.generation != generation) {
                        flush = true;
                    } else if !self.snapshot_arrives() {
                        generation += 1;
                        flush = true;
                    }
                    *client = self.open().await?.client;
                }
                Err(End::Stopped) => return Err(End::Stopped),
            }
        }
    }

    /// The db that the stream has selected where the snapshot of that generation ends, which has just been loaded. When there is
    /// another one by now, the stream behind this one is of no use any more, nor is its db.
    async fn db_behind_snapshot(&self, generation: u64) -> Step<u32> {
        if self.journal.snapshot().is_none_or(|now| now.generation != generation) {
            return Ok(0);
        }
        let reader = self.journal.snapshot_reader()?;
        // The head of the file has been read before: nothing is waited for.
        let read = tokio::task::spawn_blocking(move || crate::rdb::stream_db(reader)).await;
        let lost =
            |cause| Error::new(Side::Gateway, "the head of the snapshot cannot be read").because(cause);
        Ok(read.map_err(lost)?)
    }

    /// Whether the snapshot in the journal is whole, or will be.
    fn snapshot_arrives(&self) -> bool {
        let receiving = self.receiver.as_ref().map(|receiver| receiver.state.borrow().link.clone());
        self.journal.snapshot().is_some_and(|info| info.complete)
            || matches!(receiving, Some(ReceiverLink::Snapshot { .. } | ReceiverLink::Streaming))
    }

    /// Waits until a snapshot of that generation, or of a later one, is there or arriving.
    async fn await_snapshot(&mut self, generation: u64) -> Step<SnapshotInfo> {
        loop {
            if let Some(info) = self.journal.snapshot().filter(|info| info.generation >= generation) {
                return Ok(info);
            }
            let Some(receiver) = &mut self.receiver else {
                self.full_sync().await;
                continue;
            };
            let link = receiver.state.borrow_and_update().link.clone();
            self.note_receiver(&link)?;
            self.publish();
            let Some(receiver) = &mut self.receiver else { continue };
            tokio::select! {
                () = self.cancel.cancelled() => return Err(End::Stopped),
                changed = receiver.state.changed() => if changed.is_err() { self.receiver = None },
                Some(request) = self.requests.recv() => refuse(request, "the mirror is waiting for the snapshot"),
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    async fn load_once(
        &mut self,
        client: &mut Client,
        info: &SnapshotInfo,
        flush: bool,
        begun: Instant,
    ) -> Step<()> {
        let loading = self.mark_text(Reach::Loading { generation: info.generation });
        if flush && self.options.on_existing_key != OnExistingKey::Fail {
            return Err(Error::new(
                self.options.from.side,
                format!(
                    "a new copy is needed, and the {} may hold keys of its own (snapshot.on_existing_key), which nothing tells from those that were copied",
                    self.options.to.side
                ),
            )
            .remedy("crossfade abort, put the destination into the state from which the copy is to begin, crossfade start")
            .into());
        }
        if flush {
            let (from, to) = (self.options.from.side, self.options.to.side);
            tracing::warn!("the {from} made us take a new snapshot: the {to} is emptied for it");
            let mut out = Vec::new();
            write::command(&mut out, &["MULTI"]);
            // From 4.0 on the memory is given back in the background.
            let asynchronous = Capabilities::probe(client).await?.unlink;
            write::command(&mut out, if asynchronous { &["FLUSHALL", "ASYNC"][..] } else { &["FLUSHALL"] });
            write::command(&mut out, &["SET", POSITION_KEY, &loading]);
            for (key, value) in &self.options.own_keys {
                write::command(&mut out, &[&b"SET"[..], key.as_bytes(), value]);
            }
            write::command(&mut out, &["EXEC"]);
            client.set_timeout(if asynchronous { TIMEOUT } else { EMPTIES });
            let replies = client.pipeline(&out, 4 + self.options.own_keys.len()).await;
            client.set_timeout(TIMEOUT);
            if let Some(text) = replies?.iter().find_map(Value::error) {
                let error = if crate::server::passes(&text) { Error::passing } else { Error::new };
                return Err(error(self.options.to.side, format!("FLUSHALL was refused: {text}")).into());
            }
        } else {
            client.command(&["SET", POSITION_KEY, &loading]).await?;
        }
        let progress = Arc::new(Progress::default());
        if let Some(expected) = info.expected {
            progress.set_bytes_expected(expected);
        }
        let options = LoadOptions {
            connections: self.options.load_connections,
            existing: self.options.on_existing_key,
            throttle: Arc::clone(&self.options.limits.snapshot),
            drop_unsupported: self.options.on_unsupported == OnUnsupported::Drop,
            select: self.options.select.clone(),
            map: self.options.map.clone(),
            ..LoadOptions::new(self.options.to.clone())
        };
        if self.load_as_replica(client, info, &options, &progress, begun).await? {
            return Ok(());
        }
        let reader = self.journal.snapshot_reader()?;
        let load = backfill::load(reader, options, Arc::clone(&progress), self.cancel.child_token());
        match self.while_loading(load, &progress, begun).await {
            _ if self.cancel.is_cancelled() => Err(End::Stopped),
            Ok(report) => {
                // Of an earlier load of the same data there is nothing left.
                let mut dropped = Dropped::default();
                dropped.add(report.dropped_count, report.dropped.iter().map(ToString::to_string));
                self.notes.set_dropped(&dropped)?;
                self.state.dropped = dropped;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}
