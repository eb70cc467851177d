//! Applies the stream: one batch on its way, the next one collected meanwhile.
//!
//! As in a group commit, a batch goes out when the one before is answered, with whatever has come by then. At a
//! low rate each command goes at once; under load batches grow until the limits. The position in memory also moves over
//! bytes that have no effect (PING, keys of gateways); such a move alone is written down every ten seconds.
//!
//! A mirror that is behind and a link to the source that is down look alike from the position alone. So the stage is
//! `live` only while the source's stream arrives.

mod settling;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use tokio::sync::oneshot;
use tokio::time::{Duration, Instant, MissedTickBehavior};

use super::batch::{Answer, Batch, Collector};
use super::copying::Stuck;
use super::heartbeat::{Heartbeat, heartbeat_key};
use super::link::{Link, Opened};
use super::run::{End, Exit, Step, TICK, Task, refuse, unix_ms};
use super::settle::Sweep;
use super::transform::{Dialect, Transform};
use super::{Position, Request, SettleReport, Stage, Trouble};
use crate::backfill::Pace;
use crate::error::{Error, Result};
use crate::replication::{JournalReader, Link as ReceiverLink};
use crate::server::{Client, processors};

/// How long a position that moved over bytes without effect may stay unwritten.
const WRITE_POSITION: Duration = Duration::from_secs(10);
/// How far it may move.
const UNWRITTEN: u64 = 1024 * 1024;
/// The mirror counts as live below this lag, and stays so up to ten times as much.
const LIVE_MS: f64 = 500.0;
/// For the batch on its way when the mirror is stopped.
const LAST_ANSWER: Duration = Duration::from_secs(5);
/// After this silence the destination is shown as stalled, and asked over another connection.
const STALLED: Duration = Duration::from_secs(10);

type SettleReply = oneshot::Sender<Result<SettleReport>>;

/// Everything about the stream that is being applied.
struct Flow {
    link: Link,
    client: Client,
    dialect: Dialect,
    collector: Collector,
    reader: JournalReader,
    pace: Pace,
    /// The position on the destination, and when it was written.
    written: u64,
    written_at: Instant,
    /// When the batch on its way was sent.
    sent_at: Instant,
    /// The highest db that the destination is known to have.
    highest_db: u32,
    sweep: Option<Sweep>,
    settling: Option<(Instant, SettleReply)>,
    /// Until when expiries stay settled.
    settled_until: Option<Instant>,
    /// A slice of the sweep comes before the next batch.
    sweep_turn: bool,
    probe: Option<tokio::task::JoinHandle<bool>>,
    probes: u32,
    /// Keys are to be copied anew: applying begins again once the batch on its way is answered.
    begins_again: bool,
    /// The batch on its way will not be answered: its connection is lost.
    deaf: bool,
}

impl Flow {
    /// Up to where the stream is applied, while no batch is on its way.
    fn applied(&self) -> u64 {
        if self.collector.has_effects() { self.written } else { self.collector.sealed().0.max(self.written) }
    }
}

/// What happened.
enum Event {
    Answer(Result<(Batch, Answer)>),
    Chunk(Result<crate::replication::Chunk>),
    Request(Request),
    Tick,
    Paused,
    Stop,
}

impl Task {
    /// Applies the stream behind a position that the destination holds.
    pub(super) async fn apply(&mut self, opened: Opened, position: Position) -> Step<Exit> {
        let Opened { link, client, dialect, .. } = opened;
        self.stand_at(position.offset);
        let reader = match self.journal.reader(position.offset) {
            Ok(reader) => reader,
            // The receiver began a new stream in the meantime, or is about to.
            Err(_) if self.journal.snapshot().is_some_and(|info| info.offset != position.offset) => {
                return Ok(Exit::Superseded);
            }
            Err(error) => return Err(error.into()),
        };
        let own = self
            .options
            .own_keys
            .iter()
            .map(|(key, value)| (key.clone().into_bytes(), value.clone()))
            .collect();
        let mut transform = Transform::new(dialect, own);
        transform.set_clocks(self.clocks);
        transform.leave_out(self.left_out.clone());
        for text in self.notes.scripts()? {
            transform.scripts().remember(text.into());
        }
        let mut collector = Collector::new(position.offset, position.db, transform, self.options.batch);
        collector.select(self.options.select.clone());
        collector.map(self.options.map.clone());
        if self.each_by_itself {
            collector.join_nothing();
        }
        self.forget_skipped(position.offset, &mut collector)?;
        self.begin_heartbeat(&mut collector);
        self.begin_copying(&mut collector).await?;
        let now = Instant::now();
        let mut flow = Flow {
            link,
            client,
            dialect,
            collector,
            reader,
            pace: Pace::new(Arc::clone(&self.options.limits.mirror), now.into_std()),
            written: position.offset,
            written_at: now,
            sent_at: now,
            highest_db: 0,
            sweep: None,
            settling: None,
            settled_until: None,
            sweep_turn: false,
            probe: None,
            probes: 0,
            begins_again: false,
            deaf: false,
        };
        self.state.settled = false;
        self.hurry(false);
        self.watch_source(&mut flow)?;
        self.compare_clocks(&mut flow).await;
        let outcome = self.flow(&mut flow).await;
        if let Some((_, reply)) = flow.settling.take() {
            let _ = reply.send(Err(Error::passing(self.options.to.side, "the connection was lost")));
        }
        self.state.settled = false;
        if let Some(probe) = flow.probe.take() {
            probe.abort();
        }
        match outcome {
            Err(End::Stopped) => {
                self.last_words(&mut flow).await;
                Err(End::Stopped)
            }
            other => {
                if !flow.deaf && tokio::time::timeout(LAST_ANSWER, self.last_answer(&mut flow)).await.is_err()
                {
                    tracing::info!("the last batch was not answered; the position tells what became of it");
                }
                other
            }
        }
    }

    async fn flow(&mut self, flow: &mut Flow) -> Step<Exit> {
        if !self.notes.padded() {
            match Sweep::pad(&mut flow.client, &mut flow.collector).await {
                Ok(sweep) => flow.sweep = Some(sweep),
                Err(error) => return self.reopen(flow, error, false).await,
            }
        }
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            flow.collector.transform().tick(unix_ms());
            self.fill(flow)?;
            if !flow.link.is_busy() {
                // Not before: a command that failed in the batch on its way would be forgotten.
                if flow.begins_again {
                    return Ok(Exit::Reopen);
                }
                if let Some((named, stuck)) = flow.collector.unselected() {
                    if let Stuck::Obstacle(why) = stuck {
                        return self.refused(flow.written, named, why.clone());
                    }
                    tracing::debug!(
                        command = named.name,
                        offset = named.end,
                        "it has keys inside and outside the filter"
                    );
                    self.widen(stuck)?;
                    return Ok(Exit::Reopen);
                }
                if let Some(stuck) = flow.collector.stuck() {
                    self.widen(stuck)?;
                    return Ok(Exit::Reopen);
                }
                if flow.sweep.is_some() && self.is_sweeps_turn(flow) {
                    flow.sweep_turn = false;
                    if let Err(error) = self.slice(flow).await? {
                        return self.reopen(flow, error, false).await;
                    }
                }
                if let Err(error) = self.send(flow).await? {
                    return self.reopen(flow, error, false).await;
                }
            }
            let paused = *self.paused.borrow_and_update();
            let hungry = flow.collector.is_hungry();
            let busy = flow.link.is_busy();
            let held = self.held_until(flow).filter(|_| !busy && flow.collector.has_effects());
            let applied = flow.applied();
            let sweeping = !busy
                && flow.sweep.as_ref().is_some_and(|sweep| sweep.is_ready(applied))
                && self.is_sweeps_turn(flow);
            let event = tokio::select! {
                biased;
                () = self.cancel.cancelled() => Event::Stop,
                answer = flow.link.answer() => Event::Answer(answer),
                Some(request) = self.requests.recv() => Event::Request(request),
                _ = self.paused.changed() => Event::Paused,
                _ = tick.tick() => Event::Tick,
                chunk = flow.reader.next(), if hungry => Event::Chunk(chunk),
                () = tokio::time::sleep_until(held.unwrap_or_else(Instant::now)), if held.is_some() => continue,
                () = std::future::ready(()), if sweeping && !paused => continue,
            };
            match event {
                Event::Stop => return Err(End::Stopped),
                Event::Paused => self.watch_source(flow)?,
                Event::Chunk(Ok(chunk)) => flow.collector.push(&chunk.bytes, chunk.arrived_ms),
                Event::Chunk(Err(_)) if flow.reader.is_superseded() => return Ok(Exit::Superseded),
                Event::Chunk(Err(error)) => return Err(error.into()),
                Event::Answer(Err(error)) => return self.reopen(flow, error, true).await,
                Event::Answer(Ok((batch, answer))) => {
                    if let Some(exit) = self.answered(flow, batch, answer).await? {
                        return Ok(exit);
                    }
                }
                Event::Request(Request::CopyAnew { keys, reply }) => {
                    flow.begins_again |= self.copy_anew(keys, reply)?;
                }
                Event::Request(request) => {
                    if let Err(error) = self.serve(flow, request).await? {
                        return self.reopen(flow, error, false).await;
                    }
                }
                Event::Tick => {
                    if flow.written_at.elapsed() > TICK {
                        processors::forget_destination();
                    }
                    self.watch_source(flow)?;
                    if self.watch_stall(flow).await {
                        let error = Error::passing(self.options.to.side, "a batch got no answer, others did");
                        return self.reopen(flow, error, true).await;
                    }
                    if let Err(error) = self.watch_settled(flow).await {
                        return self.reopen(flow, error, false).await;
                    }
                }
            }
        }
    }

    /// Collects as much as there is room for.
    fn fill(&mut self, flow: &mut Flow) -> Result<()> {
        loop {
            flow.collector.collect().map_err(|error| {
                Error::new(self.options.from.side, "the replication stream cannot be read").because(error)
            })?;
            if !flow.collector.is_hungry() {
                return Ok(());
            }
            match flow.reader.try_next() {
                Some(chunk) => flow.collector.push(&chunk.bytes, chunk.arrived_ms),
                None => return Ok(()),
            }
        }
    }

    /// Sends what is collected. The link is idle.
    async fn send(&mut self, flow: &mut Flow) -> Step<Result<()>> {
        let (sealed, _) = flow.collector.sealed();
        if !flow.collector.has_effects() {
            self.note_applied(sealed);
            self.note_beat(flow, sealed);
            if self.is_waiting() && sealed == self.journal.received() {
                // Connected again, and there was nothing to do.
                self.recovered();
            }
            let far = sealed - flow.written;
            if far == 0 || (far < UNWRITTEN && flow.written_at.elapsed() < WRITE_POSITION) {
                return Ok(Ok(()));
            }
        }
        if *self.paused.borrow() || self.held_until(flow).is_some() {
            return Ok(Ok(()));
        }
        let highest = flow.collector.highest_db();
        if highest > flow.highest_db {
            // A SELECT that fails inside EXEC would let the commands behind it run in the wrong db.
            let db = highest.to_string();
            for db in [db.as_str(), "0"] {
                match flow.client.call(&["SELECT", db]).await {
                    Ok(value) => {
                        if let Some(text) = value.error() {
                            let side = self.options.to.side;
                            return Err(Error::new(side, format!("the {side} has no db {db}: {text}"))
                                .remedy("raise \"databases\" in its configuration, and restart it")
                                .into());
                        }
                    }
                    Err(error) => return Ok(Err(error)),
                }
            }
            flow.highest_db = highest;
        }
        let Some(batch) = flow.collector.take(true, |offset, db| self.mark_at(offset, db)) else {
            return Ok(Ok(()));
        };
        let left_out = flow.collector.transform().take_left_out();
        if left_out > 0 {
            self.state.dropped.add(left_out, []);
            self.notes.set_dropped(&self.state.dropped)?;
        }
        // In this order: one that was forgotten may have come again.
        for digest in flow.collector.transform().scripts().take_gone() {
            self.notes.forget_script(&digest)?;
        }
        for (digest, text) in flow.collector.transform().scripts().take_fresh() {
            self.notes.keep_script(&digest, &text)?;
        }
        flow.pace.spend(Instant::now().into_std(), batch.wire.len(), batch.commands);
        flow.link.send(batch);
        flow.sent_at = Instant::now();
        flow.probes = 0;
        Ok(Ok(()))
    }

    /// When the limits let the next batch go. Near a switch nothing is held back.
    fn held_until(&self, flow: &Flow) -> Option<Instant> {
        let held = flow.pace.held_until(Instant::now().into_std());
        held.filter(|_| !self.is_hurried()).map(Instant::from_std)
    }

    pub(super) fn note_applied(&self, offset: u64) {
        if self.copying.is_some() {
            // Of the keys that are copied anew the destination has nothing yet.
            return;
        }
        self.applied.send_if_modified(|applied| std::mem::replace(applied, offset) != offset);
    }

    /// The beats go on while connections to the destination come and go.
    fn begin_heartbeat(&mut self, collector: &mut Collector) {
        let Some(interval) = self.options.heartbeat else { return };
        collector.watch_heartbeat(heartbeat_key(&self.options.id));
        if self.heartbeat.is_none() {
            let (from, quiet) = (&self.options.from, Arc::clone(&self.hurry));
            self.heartbeat = Some(Heartbeat::spawn(from, &self.options.id, interval, quiet));
        }
    }

    fn note_beat(&mut self, flow: &mut Flow, applied: u64) {
        if let (Some(ms), Some(heartbeat)) = (flow.collector.beat_before(applied), &mut self.heartbeat) {
            heartbeat.passed(ms);
        }
    }

    /// `Some`: applying ends.
    async fn answered(&mut self, flow: &mut Flow, batch: Batch, answer: Answer) -> Step<Option<Exit>> {
        let side = self.options.to.side;
        match answer {
            Answer::Applied { failed } => {
                let copy = !failed.is_empty() && self.failed(&batch, &failed)?;
                self.recovered_from_stall(flow);
                flow.pace.worked(Instant::now().into_std(), flow.sent_at.elapsed());
                self.state.commands_applied += batch.commands;
                flow.written = batch.end;
                flow.written_at = Instant::now();
                flow.sweep_turn = flow.sweep.is_some();
                if flow.sweep.is_none() {
                    flow.collector.transform().forget_swaps(batch.end);
                }
                if copy || (batch.copies && !self.copied()?) {
                    return Ok(Some(Exit::Reopen));
                }
                let applied =
                    if flow.collector.has_effects() { batch.end } else { flow.collector.sealed().0 };
                self.note_applied(applied);
                self.note_beat(flow, applied);
                flow.collector.recycle(batch);
                Ok(None)
            }
            Answer::Refused { index, text } if crate::server::passes(&text) => {
                let what = index.map_or_else(|| "a batch".to_owned(), |index| batch.name(index).name);
                let error = Error::passing(side, format!("{what} was refused: {text}"));
                let lag = unix_ms().saturating_sub(batch.oldest_ms.max(1)) as f64;
                self.set_lag(if batch.oldest_ms == 0 { 0.0 } else { lag });
                self.wait_out(error, self.options.retry.other).await?;
                Ok(Some(Exit::Reopen))
            }
            Answer::Refused { index: Some(index), text } if batch.is_joined(index) => {
                // Nothing of it ran. Which of the SETs it is, or whether it is MSET itself that a user may not run,
                // shows when each goes by itself.
                tracing::info!(%text, "the destination refuses an MSET: SETs are not joined any more");
                self.each_by_itself = true;
                Ok(Some(Exit::Reopen))
            }
            Answer::Refused { index, text } => {
                let named = index.map(|index| batch.name(index)).filter(|named| named.end != 0);
                let Some(named) = named else {
                    if batch.copies {
                        return Err(self.copy_refused(&text).into());
                    }
                    return Err(Error::new(side, format!("a batch was refused: {text}")).into());
                };
                self.refused(flow.written, &named, text).map(Some)
            }
            Answer::Torn { text } => Err(Error::new(
                side,
                format!("MULTI was refused ({text}), but not what followed: commands may have run twice"),
            )
            .remedy("verify and repair before the switch")
            .into()),
        }
    }

    /// After trouble with the connection to the destination.
    async fn reopen(&mut self, flow: &mut Flow, error: Error, lost: bool) -> Step<Exit> {
        let lag = self.lag(flow);
        self.set_lag(lag);
        flow.deaf |= lost;
        let window = if lost { self.options.retry.connection } else { self.options.retry.other };
        self.wait_out(error, window).await?;
        Ok(Exit::Reopen)
    }

    /// Answers a request. The inner error: the connection to the destination failed.
    async fn serve(&mut self, flow: &mut Flow, request: Request) -> Step<Result<()>> {
        let wants_quiet =
            matches!(request, Request::SettleLast { .. } | Request::Settle { .. } | Request::Pad { .. });
        if wants_quiet && flow.link.is_busy() {
            // What it does is read and write at one place of the stream.
            let answer = tokio::time::timeout(LAST_ANSWER, flow.link.answer()).await;
            match answer {
                Ok(Ok((batch, answer))) => {
                    if self.answered(flow, batch, answer).await?.is_some() {
                        refuse(request, "the destination refuses writes");
                        return Ok(Err(Error::passing(self.options.to.side, "a batch was refused")));
                    }
                }
                Ok(Err(error)) => {
                    refuse(request, "the connection to the destination was lost");
                    return Ok(Err(error));
                }
                Err(_) => {
                    refuse(request, "the destination does not answer");
                    return Ok(Ok(()));
                }
            }
        }
        match request {
            Request::Settle { deadline, reply } => self.settle(flow, deadline, reply).await,
            Request::SettleLast { reply } => Ok(Self::settle_last(flow, reply).await),
            Request::Pad { reply } => Ok(self.pad_on_request(flow, reply).await),
            other => {
                refuse(other, "the mirror is applying");
                Ok(Ok(()))
            }
        }
    }

    fn recovered_from_stall(&mut self, flow: &mut Flow) {
        if flow.probes > 0 || self.state.error.is_some() {
            self.recovered();
        }
        flow.probes = 0;
    }

    /// Notices a destination that does not answer. True: it does answer others, so the connection is of no use.
    async fn watch_stall(&mut self, flow: &mut Flow) -> bool {
        let silent = flow.sent_at.elapsed();
        if !flow.link.is_busy() || silent < STALLED {
            return false;
        }
        let side = self.options.to.side;
        if self.state.error.is_none() {
            let left = self.options.retry.connection.saturating_sub(silent);
            let error =
                Error::passing(side, format!("the {side} has not answered for {} s", silent.as_secs()));
            self.state.error = Some(Trouble::new(&error, Some(SystemTime::now() + left)));
            tracing::warn!(%error, "the mirror waits");
        }
        match &mut flow.probe {
            Some(probe) if probe.is_finished() => {
                let answered = probe.await.unwrap_or(false);
                flow.probe = None;
                flow.probes = if answered { flow.probes + 1 } else { 1 };
                // Twice, some time apart: a long command may have ended between the question and the answer.
                answered && flow.probes > 3
            }
            Some(_) => false,
            None => {
                let to = self.options.to.clone();
                flow.probes = flow.probes.max(1);
                flow.probe = Some(tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(3)).await;
                    let Ok(mut client) = Client::open(&to, Duration::from_secs(3)).await else {
                        return false;
                    };
                    client.command(&["PING"]).await.is_ok()
                }));
                false
            }
        }
    }

    /// The age of the oldest byte that is not applied, in milliseconds.
    fn lag(&self, flow: &Flow) -> f64 {
        if *self.applied.borrow() >= self.journal.received() {
            return 0.0;
        }
        let oldest = flow.link.oldest_ms().or_else(|| flow.collector.oldest_ms());
        oldest.map_or(0.0, |oldest| unix_ms().saturating_sub(oldest) as f64)
    }

    /// Stage, lag and the receiver's troubles.
    fn watch_source(&mut self, flow: &mut Flow) -> Result<()> {
        let link = self.receiver.as_mut().map(|receiver| receiver.state.borrow_and_update().link.clone());
        let stalled = flow.probes > 0 && flow.link.is_busy();
        match &link {
            Some(ReceiverLink::Streaming) | None if stalled => {}
            Some(link) => self.note_receiver(link)?,
            None => {}
        }
        let mut lag = self.lag(flow);
        let mut lost = false;
        if let Some(ReceiverLink::Lost { since, .. }) = &link {
            lost = true;
            lag = lag.max(since.elapsed().as_secs_f64() * 1000.0);
        }
        let mut shown = lag;
        if let Some(heartbeat) = &mut self.heartbeat {
            lag = lag.max(heartbeat.late_ms());
            // Near a switch no beats come, and the last one says nothing about now.
            let last = if self.hurry.load(Relaxed) { None } else { heartbeat.lag_ms() };
            shown = lag.max(last.unwrap_or(0.0));
        }
        self.set_lag(shown);
        let streaming = matches!(link, Some(ReceiverLink::Streaming));
        let was_live = self.state.stage == Stage::Live;
        let stage = if *self.paused.borrow() {
            Stage::Paused
        } else if lost {
            Stage::Connecting
        } else if streaming
            && !stalled
            && !self.is_waiting()
            && self.copying.is_none()
            && lag <= if was_live { LIVE_MS * 10.0 } else { LIVE_MS }
        {
            Stage::Live
        } else {
            Stage::CatchingUp
        };
        self.stage(stage);
        self.publish();
        self.journal.trim(flow.written);
        Ok(())
    }

    /// Takes what the destination has to say of the batch on its way: what failed in it is told once. False: it has not applied it.
    async fn last_answer(&mut self, flow: &mut Flow) -> Result<bool> {
        if !flow.link.is_busy() {
            return Ok(true);
        }
        let (batch, answer) = flow.link.answer().await?;
        let Answer::Applied { failed } = answer else { return Ok(false) };
        if !failed.is_empty() {
            let _ = self.failed(&batch, &failed);
        }
        flow.written = batch.end;
        Ok(true)
    }

    /// Stopped: the batch on its way is answered, and a position that only moved in memory is written.
    async fn last_words(&mut self, flow: &mut Flow) {
        let farewell = async {
            let busy = flow.link.is_busy();
            if !self.last_answer(flow).await? {
                return Ok(());
            }
            if busy {
                self.note_applied(flow.written);
            }
            let (sealed, db) = flow.collector.sealed();
            if !flow.collector.has_effects() && sealed > flow.written {
                let text = self.mark_at(sealed, db);
                // A sweep may have left another one selected.
                flow.client.command(&["SELECT", "0"]).await?;
                flow.client.command(&["SET", super::POSITION_KEY, &text]).await?;
                self.note_applied(sealed);
            }
            Ok::<(), Error>(())
        };
        if tokio::time::timeout(LAST_ANSWER, farewell).await.is_err() {
            tracing::info!(
                "the mirror stops without an answer to its last batch; the position tells what became of it"
            );
        }
    }
}
