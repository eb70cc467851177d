//! The mirror under the controller: it begins once the destination is ours, and what it does moves the phase.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;

use super::{Controller, Note, RETRY, Running};
use crate::config::{FeedFrom, OnExistingKey};
use crate::cutover::live::{connect, strays, take_down};
use crate::error::{Error, Result, Side};
use crate::migration::handle::ResumeRequest;
use crate::migration::holder::{self, Holder};
use crate::migration::machine::{Begin, Input, Seen};
use crate::migration::record::{self, Failure, Fence};
use crate::migration::status::{ActiveSide, ErrorInfo, Phase};
use crate::mirror::notes::Notes;
use crate::mirror::{
    BatchLimits, Direction, Mapping, Mirror, MirrorOptions, Position, Selection, Stage, Start, Trouble,
    make_writable,
};
use crate::server::Endpoint;

impl Controller {
    /// Keeps the destination ours from now on; says so once, and when it changes.
    pub(super) fn hold(&mut self) {
        let Some(endpoint) = self.config.destination.clone() else { return };
        if let Some(old) = self.holding.take() {
            old.cancel();
        }
        let cancel = self.cancel.child_token();
        self.holding = Some(cancel.clone());
        let holder = Holder::this(&self.record.id);
        let dir =
            self.store.as_ref().filter(|store| store.line().active == ActiveSide::Source).map(|store| {
                let line = store.line();
                store.journal_dir(line.epoch, line.active)
            });
        let (noting, within) = (self.noting.clone(), self.config.server.connect_timeout);
        tokio::spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = keep_held(endpoint, holder, dir, within, noting) => {}
            }
        });
    }

    pub(super) fn mirror_options(
        &self,
        epoch: u64,
        active: ActiveSide,
        start: Start,
    ) -> Option<MirrorOptions> {
        let store = self.store.as_ref()?;
        let direction = match active {
            ActiveSide::Source => Direction::Forward,
            ActiveSide::Destination => Direction::Reverse,
        };
        let (from, to) = (self.endpoint(active)?.clone(), self.endpoint(active.other())?.clone());
        let mut options =
            MirrorOptions::new(from, to, direction, store.journal_dir(epoch, active), &self.record.id, start);
        // What the source holds was all its own, and came here: on the way back there is nothing to be kept.
        if direction == Direction::Forward {
            options.on_existing_key = self.config.snapshot.on_existing_key;
            options.from_replica = self.config.feed_from == FeedFrom::Replica;
        }
        options.on_unsupported = self.config.snapshot.on_unsupported;
        (options.select, options.map) = self.chosen(active);
        options.journal_bytes = self.config.journal_bytes;
        options.method = self.config.snapshot.method;
        options.on_conflict = self.config.mirror.on_conflict;
        options.on_error = self.config.mirror.on_error;
        options.load_connections = self.config.snapshot.connections;
        options.batch = BatchLimits {
            commands: self.config.mirror.batch_commands,
            bytes: self.config.mirror.batch_bytes,
        };
        options.limits = Arc::clone(&self.limits);
        options.retry = self.config.retry;
        options.heartbeat = self.config.heartbeat;
        if active == ActiveSide::Source {
            options.own_keys =
                vec![(holder::KEY.to_owned(), Holder::this(&self.record.id).to_string().into_bytes())];
        }
        Some(options)
    }

    /// What is copied from the active side, and how it is called on the other.
    pub(super) fn chosen(&self, active: ActiveSide) -> (Option<Arc<Selection>>, Option<Arc<Mapping>>) {
        let existing = self.config.snapshot.on_existing_key;
        let map = Mapping::new(&self.config.map);
        let (select, map) = match active {
            ActiveSide::Source => (Selection::new(&self.config.filter, map.as_ref(), existing), map),
            ActiveSide::Destination => {
                let back = map.and_then(|map| map.turned_round());
                let shared = existing != OnExistingKey::Fail;
                (Selection::on_the_way_back(&self.config.filter, back.as_ref(), shared), back)
            }
        };
        (select.map(Arc::new), map.map(Arc::new))
    }

    pub(super) fn spawn_mirror(&mut self) {
        let Some(begin) = self.begin.take() else { return };
        let Some(store) = &self.store else { return };
        let line = store.line().clone();
        let start = match (line.start, begin) {
            // Also right behind a crash between the commit line and the first thing that the mirror back wrote. How far it
            // has come since is written on its target.
            (Some(start), _) => {
                Start::At(Position { replid: start.replid, offset: start.offset, db: start.db })
            }
            (None, Begin::Snapshot) => Start::Snapshot,
            (None, Begin::Resume) => Start::Resume,
        };
        let Some(options) = self.mirror_options(line.epoch, line.active, start) else { return };
        store.remove_journals(std::slice::from_ref(&options.dir));
        tracing::info!(start = ?options.start, "mirroring from the {} ({}) to the {} ({})", options.from.side, options.from.address, options.to.side, options.to.address);
        let mirror = Mirror::spawn(options, self.cancel.clone());
        if self.machine.paused() {
            mirror.pause();
        }
        let mut state = mirror.state();
        state.mark_changed();
        self.running = Some(Running { mirror, state });
    }

    pub(super) async fn mirror_moved(&mut self) {
        let Some(running) = &mut self.running else { return };
        let state = running.state.borrow_and_update().clone();
        let seen = match state.stage {
            Stage::Snapshot => Seen::Snapshot,
            Stage::CatchingUp => Seen::CatchingUp,
            Stage::Live => Seen::Live,
            Stage::Failed => Seen::Failed,
            Stage::Connecting | Stage::Standby | Stage::Paused | Stage::Stopped => return,
        };
        if seen == Seen::Live && self.record.mirrored_epoch != Some(self.epoch) && self.store.is_some() {
            let epoch = self.epoch;
            if let Err(error) =
                self.with_store(|store| store.update(|record| record.mirrored_epoch = Some(epoch)))
            {
                tracing::error!(%error, "that the mirror is complete cannot be recorded");
            }
        }
        if seen == Seen::Failed && self.failure.is_none() {
            let trouble = state.error.clone().unwrap_or_else(|| {
                Trouble::new(&Error::new(Side::Gateway, "the mirror stopped without a reason"), None)
            });
            self.fail(trouble.side, trouble.message, trouble.remedy);
        }
        if seen == Seen::Snapshot {
            self.progress.look(Instant::now(), &state.snapshot);
        }
        if let Err(error) = self.feed(Input::Mirror(seen)).await {
            tracing::error!(%error, "the phases are confused");
        }
    }

    /// Before the mirror is resumed: resolves the commands that it stopped at, if that was asked for.
    pub(super) async fn resolve_failed(&self, request: ResumeRequest) -> Result<()> {
        let what = match (request.skip_failed, request.copy_failed) {
            (false, false) => return Ok(()),
            (true, true) => {
                return Err(Error::new(Side::Gateway, "a failed command is either skipped or copied")
                    .remedy("give one of --skip-failed and --copy-failed"));
            }
            (true, false) => "skip",
            (false, true) => "copy",
        };
        // Tried on a copy: a resume that is refused must not have skipped anything.
        self.machine.clone().handle(Input::Resume)?;
        if self.machine.phase() != Phase::Failed {
            return Err(Error::new(Side::Gateway, format!("there is no failed command to {what}"))
                .remedy("`crossfade resume` without it goes on"));
        }
        // A mirror that failed is let go of: only its notes speak of the failure.
        let line = self.store.as_ref().map(|store| store.line().clone());
        let options = line.and_then(|line| self.mirror_options(line.epoch, line.active, Start::Resume));
        match options {
            Some(options) if request.copy_failed => Notes::open(&options.dir)?.copy_failures(),
            Some(options) => Notes::open(&options.dir)?.skip_failures(options.to.side),
            None => Err(Error::new(Side::Gateway, "nothing was mirrored yet")
                .remedy("`crossfade resume` without it goes on")),
        }
    }

    pub(super) fn fail(&mut self, side: Side, message: String, remedy: Option<String>) {
        tracing::error!(%side, remedy, "the mirror stopped: {message}");
        self.failure = Some(Failure { side, message, remedy, at_ms: record::now_ms() });
    }

    pub(super) async fn noted(&mut self, note: Note) {
        match note {
            Note::Held => {
                self.complaint = None;
                self.spawn_mirror();
            }
            Note::NotHeld(error) => {
                // Only before the mirror runs is this worth showing: afterwards the mirror tells it better.
                if self.running.is_none() && self.switching.is_none() {
                    self.complaint =
                        Some(ErrorInfo::new(&error, Some(SystemTime::now() + self.config.retry.connection)));
                }
            }
            Note::HeldByOther(error) => {
                self.fail(error.side, error.message.clone(), error.remedy.clone());
                self.begin = None;
                if let Err(error) = self.feed(Input::Mirror(Seen::Failed)).await {
                    tracing::error!(%error, "the phases are confused");
                }
            }
            Note::Strays(found) => {
                let side = self.machine.active().other();
                let new: Vec<&String> = found.iter().filter(|stray| !self.strays.contains(stray)).collect();
                if !new.is_empty() {
                    tracing::warn!(
                        strays = ?new,
                        "somebody writes to the {side} without the gateway: the two servers will differ; stop these clients, then verify"
                    );
                }
                self.strays = found;
            }
            Note::FenceDown => {
                if let Err(error) = self.with_store(|store| store.update(|record| record.fence = None)) {
                    tracing::debug!(%error, "the record still speaks of a fence");
                }
            }
        }
    }

    pub(super) fn look_for_strays(&self) {
        let Some(endpoint) = self.endpoint(self.machine.active().other()).cloned() else { return };
        let Some(at_ms) = self.store.as_ref().map(|store| store.line().at_ms) else { return };
        let noting = self.noting.clone();
        tokio::spawn(async move {
            // That it cannot be reached is the mirror's to tell.
            if let Ok(found) = strays(&endpoint, at_ms).await {
                let _ = noting.send(Note::Strays(found)).await;
            }
        });
    }

    pub(super) fn take_fence_down(&mut self, fence: Fence) {
        if self.unfencing.as_ref().is_some_and(|attempt| !attempt.is_finished()) {
            return;
        }
        let Some(endpoint) = self.endpoint(fence.side).cloned() else { return };
        let noting = self.noting.clone();
        let abandoned = fence.side != self.machine.active();
        self.unfencing = Some(tokio::spawn(async move {
            match take_down(&endpoint, &fence, abandoned).await {
                Ok(()) => {
                    tracing::info!("the fence that was left on the {} is down", fence.side);
                    let _ = noting.send(Note::FenceDown).await;
                }
                Err(error) => tracing::debug!(%error, "the fence on the {} is still up", fence.side),
            }
        }));
    }
}

async fn keep_held(
    endpoint: Endpoint,
    holder: Holder,
    dir: Option<PathBuf>,
    within: Duration,
    noting: mpsc::Sender<Note>,
) {
    let mut client = None;
    let mut ours = false;
    loop {
        let attempt = async {
            let client = match &mut client {
                Some(client) => client,
                slot => slot.insert(connect(&endpoint, within).await?),
            };
            if let Some(dir) = dir.as_ref().filter(|_| !ours) {
                make_writable(dir, client).await?;
            }
            holder.claim(client, endpoint.side).await
        };
        let (note, pause) = match attempt.await {
            Ok(()) if ours => (None, holder::RENEWAL),
            Ok(()) => {
                ours = true;
                (Some(Note::Held), holder::RENEWAL)
            }
            // Who holds it is the gateway's own matter; what the server says is the server's.
            Err(error) if error.side == Side::Gateway => {
                let _ = noting.send(Note::HeldByOther(error)).await;
                return;
            }
            Err(error) => {
                client = None;
                (Some(Note::NotHeld(error)), RETRY)
            }
        };
        if let Some(note) = note {
            if noting.send(note).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(pause).await;
    }
}
