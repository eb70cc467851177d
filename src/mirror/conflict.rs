//! What becomes of commands that the destination did not run.
//!
//! *Refused*: nothing of the batch ran, and the position stands before it. *Failed*: the rest of the batch and the position are
//! applied. Either way the command is durable in the notes before anything else happens; then the configuration decides: the
//! mirror stops, the command is left out, or its keys are copied anew ([`super::copying`]).

use tokio::sync::oneshot;

use super::Stage;
use super::batch::{Batch, Collector, Named};
use super::copying::{self, Stuck};
use super::kinds::of_number;
use super::notes::{Failure, Failures, KeyAt};
use super::run::{CopyingNow, End, Exit, Step, Task, unix_ms};
use super::transform::Place;
use crate::config::{OnConflict, OnError, OnUnsupported};
use crate::error::{Error, Result, Side};

impl Task {
    /// The destination refused a batch because of this command; `written` is the position there.
    pub(super) fn refused(&mut self, written: u64, named: &Named, text: String) -> Step<Exit> {
        let side = self.options.to.side;
        let failure = self.failure(named, text, false);
        self.state.conflicts += 1;
        let mut failures = self.notes.failures()?.unwrap_or_default();
        if self.options.on_unsupported == OnUnsupported::Drop && is_unknown(&failure.error) {
            tracing::warn!(
                command = failure.command,
                key = failure.key,
                "the destination does not know this command: it is left out from here on"
            );
            let names = [failure.to_error(side, 0).message];
            self.state.dropped.add(1, names);
            self.notes.set_dropped(&self.state.dropped)?;
            self.left_out.insert(named.name.to_ascii_lowercase().into_bytes());
            self.state.conflicts -= 1;
            return Ok(Exit::Reopen);
        }
        let error = failure.to_error(side, 0);
        tracing::warn!(%error, "the destination refuses a command");
        // Where nobody knows its keys, a person has to decide.
        if self.options.on_error == OnError::Copy && !failure.places.is_empty() {
            self.notes.add_copies(failure.places)?;
            return Ok(Exit::Reopen);
        }
        let stop = self.options.on_error != OnError::Skip;
        if !stop {
            self.state.skipped = self.notes.skipped_too(std::slice::from_ref(&failure), side)?;
        }
        failures.commands.retain(|known| !known.passed && known.offset > written);
        failures.skip = !stop;
        failures.commands.push(failure);
        self.notes.set_failures(Some(&failures))?;
        if stop { Err(error.into()) } else { Ok(Exit::Reopen) }
    }

    /// Commands failed inside EXEC: the rest of the batch, and the position, are applied. True: their keys are to be copied anew.
    pub(super) fn failed(&mut self, batch: &Batch, failed: &[(usize, String)]) -> Step<bool> {
        let side = self.options.to.side;
        let mut failures = Vec::new();
        let mut indexes = Vec::new();
        let mut own = None;
        for (index, text) in failed {
            let named = batch.name(*index);
            if matches!(named.name.as_str(), "PUBLISH" | "SPUBLISH") {
                continue;
            }
            if named.end == 0 && batch.copies {
                own = Some(self.copy_refused(text));
                continue;
            }
            indexes.push(*index);
            failures.push(self.failure(&named, text.clone(), true));
        }
        if let Some(first) = failures.first_mut() {
            // What others in the batch have made of wrong keys is wrong too, and no error shows it.
            first.places = batch.spread(&indexes).map(|wrong| self.origins(&wrong)).unwrap_or_default();
        }
        let copy = match failures.first() {
            None => false,
            Some(first) => {
                let error = first.to_error(side, failures.len() - 1);
                self.resolve_conflicts(batch, failures, error)?
            }
        };
        match own {
            Some(error) => Err(error.into()),
            None => Ok(copy),
        }
    }

    /// Does with commands that failed what the configuration says. True: their keys are to be copied anew.
    fn resolve_conflicts(&mut self, batch: &Batch, failures: Vec<Failure>, error: Error) -> Step<bool> {
        self.state.conflicts += failures.len() as u64;
        let known = failures.iter().all(|failure| !failure.places.is_empty());
        match self.options.on_conflict {
            OnConflict::Skip => {
                tracing::warn!(%error, "left out");
                self.state.skipped = self.notes.skipped_too(&failures, self.options.to.side)?;
                Ok(false)
            }
            OnConflict::Copy if known => {
                self.notes.add_copies(failures.into_iter().flat_map(|failure| failure.places))?;
                tracing::warn!(%error, "its keys are copied anew");
                Ok(true)
            }
            OnConflict::Stop | OnConflict::Copy => {
                self.notes.set_failures(Some(&Failures { commands: failures, skip: false }))?;
                self.note_applied(batch.end);
                self.state.commands_applied += batch.commands;
                Err(error.into())
            }
        }
    }

    /// The destination does not take a value that is copied anew.
    pub(super) fn copy_refused(&self, text: &str) -> Error {
        Error::new(self.options.to.side, format!("a key could not be copied anew: {text}")).remedy(
            "make the server able to take it (version, modules, ACL), then `crossfade resume`; or leave it out with `crossfade resume --skip-failed`, and verify",
        )
    }

    /// Takes the values of the keys that are to be copied anew.
    pub(super) async fn begin_copying(&mut self, collector: &mut Collector) -> Step<()> {
        self.copying = None;
        let noted = self.notes.copies()?;
        let keys: Vec<Place> = noted.iter().map(|at| (at.db, at.key.clone().into_boxed_slice())).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let copying = loop {
            let replid = self.journal.replid();
            let from = self.options.from.clone();
            let select = self.options.select.clone();
            let taking = copying::take(&from, &keys, select.as_deref(), replid.as_deref());
            let cancel = self.cancel.clone();
            match cancel.run_until_cancelled(taking).await.ok_or(End::Stopped)? {
                Ok(copying) if copying.until < collector.sealed().0 => {
                    let what = "its replication offset is behind what was read from it";
                    let error = Error::passing(self.options.from.side, what);
                    self.wait_out(error, self.options.retry.connection).await?;
                }
                Ok(mut copying) => {
                    self.leave_types_out(&mut copying);
                    self.copying = Some(CopyingNow { keys: noted, replid });
                    break copying;
                }
                Err(error) => self.wait_out(error, self.options.retry.connection).await?,
            }
        };
        tracing::info!(keys = keys.len(), until = copying.until, "keys are copied anew");
        collector.copy(copying);
        Ok(())
    }

    /// A value of a type that is not copied counts as none.
    fn leave_types_out(&self, copying: &mut copying::Copying) {
        let Some(select) = self.options.select.as_ref().filter(|select| select.has_types()) else { return };
        for taken in &mut copying.taken {
            let kind = taken.value.as_ref().and_then(|value| value.payload.first()).map(|id| of_number(*id));
            if kind.is_some_and(|kind| !select.keeps_type(kind)) {
                taken.value = None;
            }
        }
    }

    /// Keys are to be copied anew because somebody asked for it. True: applying has to begin again for that.
    pub(super) fn copy_anew(&mut self, keys: Vec<Place>, reply: oneshot::Sender<Result<()>>) -> Result<bool> {
        if self.state.stage != Stage::Live || self.is_hurried() {
            let why = match self.is_hurried() {
                true => "a switch is near",
                false => "the mirror is not live",
            };
            let _ = reply.send(Err(Error::passing(Side::Gateway, why)));
            return Ok(false);
        }
        self.notes.add_copies(keys.into_iter().map(KeyAt::from))?;
        self.copy_waiters.push(reply);
        Ok(true)
    }

    /// More keys have to be copied together with those that are.
    pub(super) fn widen(&self, stuck: &Stuck) -> Step<()> {
        match stuck {
            Stuck::Missing(places) => Ok(self.notes.add_copies(places.iter().cloned().map(KeyAt::from))?),
            Stuck::Obstacle(why) => {
                let error = Error::new(
                    self.options.from.side,
                    format!("keys cannot be copied anew while the stream holds this: {why}"),
                );
                let remedy = "leave them out with `crossfade resume --skip-failed`; they differ until they are replaced as a whole, and `crossfade verify` names them until then";
                Err(error.remedy(remedy).into())
            }
        }
    }

    /// The destination has confirmed the values. False: their place was in another stream, or there are more by now.
    pub(super) fn copied(&mut self) -> Result<bool> {
        let Some(copying) = self.copying.take() else { return Ok(true) };
        if copying.replid != self.journal.replid() {
            tracing::info!("the stream is another by now: the keys are copied once more");
            return Ok(false);
        }
        let mut left = self.notes.copies()?;
        left.retain(|key| !copying.keys.contains(key));
        self.notes.set_copies(&left)?;
        self.state.copied += copying.keys.len() as u64;
        tracing::info!(keys = copying.keys.len(), left = left.len(), "copied anew");
        if !left.is_empty() {
            // Somebody asked for them meanwhile.
            return Ok(false);
        }
        for waiter in self.copy_waiters.drain(..) {
            let _ = waiter.send(Ok(()));
        }
        Ok(true)
    }

    fn failure(&self, named: &super::batch::Named, error: String, passed: bool) -> Failure {
        Failure {
            at_ms: unix_ms(),
            command: named.name.clone(),
            key: named.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned()),
            db: named.db,
            offset: named.end,
            error,
            passed,
            places: self.origins(&named.places),
        }
    }

    /// What keys of the server that is written to are on the one that is read; none when that cannot be told of one.
    fn origins(&self, places: &[Place]) -> Vec<KeyAt> {
        let origin = |place: &Place| match &self.options.map {
            Some(map) => map.origin(place),
            None => Some(place.clone()),
        };
        let found: Option<Vec<Place>> = places.iter().map(origin).collect();
        found.unwrap_or_default().into_iter().map(KeyAt::from).collect()
    }

    /// Leaves out what was decided to be left out, and forgets what lies behind us.
    pub(super) fn forget_skipped(&mut self, after: u64, collector: &mut Collector) -> Result<()> {
        let Some(mut failures) = self.notes.failures()? else { return Ok(()) };
        failures.commands.retain(|failure| failure.offset > after);
        for failure in &failures.commands {
            collector.skip(failure.offset);
        }
        let left = !failures.commands.is_empty();
        self.notes.set_failures(left.then_some(&failures))
    }
}

/// Whether an answer says that the server has no such command.
fn is_unknown(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.starts_with("err unknown command") || text.starts_with("err unknown subcommand")
}
