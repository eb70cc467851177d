//! The load of a snapshot by making the destination a replica for that long: see [`crate::backfill::primary`].
//!
//! How to undo it is noted on disk before anything is changed on the destination. Whoever finds that note first of all
//! undoes it: the destination then holds the whole snapshot with the mark `loading`, or nothing, and gets that mark again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::notes::{Dropped, Notes};
use super::run::{End, Step, TICK, TIMEOUT, Task, refuse};
use super::{POSITION_KEY, Reach, SnapshotProgress, Travels};
use crate::backfill::primary::{self, Broken, Undo};
use crate::backfill::{LoadOptions, Progress};
use crate::config::SnapshotMethod;
use crate::error::Result;
use crate::replication::SnapshotInfo;
use crate::resp::write;
use crate::server::{Capabilities, Client};

/// For what has to be undone on the destination when the mirror is stopped.
const FAREWELL: Duration = Duration::from_secs(5);

/// What has to happen to the destination of a mirror that lives in `dir` before anybody can write there: an earlier process
/// may have left it as a replica. The note stays; the mirror does the rest.
///
/// # Errors
/// The destination cannot be reached, or refuses; or the disk fails.
pub(crate) async fn make_writable(dir: &Path, client: &mut Client) -> Result<()> {
    match Notes::open(dir)?.serving()? {
        Some(undo) => undo.run(client).await,
        None => Ok(()),
    }
}

impl Task {
    /// Lets the destination load the snapshot as a replica, where it can. False: nothing of it is there, it is to be loaded
    /// by commands.
    pub(super) async fn load_as_replica(
        &mut self,
        client: &mut Client,
        info: &SnapshotInfo,
        options: &LoadOptions,
        progress: &Arc<Progress>,
        begun: Instant,
    ) -> Step<bool> {
        let paced = self.options.limits.paces_the_snapshot();
        if self.options.method == SnapshotMethod::Commands || self.by_commands || paced {
            return Ok(false);
        }
        // A server that finds a key twice in what it loads ends itself.
        if self.options.map.as_ref().is_some_and(|map| map.merges()) {
            return Ok(false);
        }
        let capabilities = Capabilities::probe(client).await?;
        let own = self.own_keys(info.generation);
        let prepared = match primary::prepare(client, &self.options.to, &capabilities, info.generation).await
        {
            Ok(prepared) if prepared.knows(&own) => prepared,
            Ok(_) => {
                tracing::info!(
                    "the snapshot is loaded by commands: the destination holds keys of another gateway"
                );
                return Ok(false);
            }
            Err(unfit) => {
                tracing::info!(%unfit, "the snapshot is loaded by commands");
                return Ok(false);
            }
        };
        self.notes.set_serving(Some(prepared.undo()))?;
        self.state.snapshot.method = Travels::Replication;
        let reader = self.journal.snapshot_reader()?;
        let cancel = self.cancel.child_token();
        let serving = prepared.serve(client, reader, own, options, Arc::clone(progress), cancel);
        match self.while_loading(serving, progress, begun).await {
            Ok(served) => {
                self.notes.set_serving(None)?;
                self.notes.set_dropped(&Dropped::default())?;
                self.state.dropped = Dropped::default();
                tracing::debug!(?served, "the destination has loaded the snapshot as a replica");
                Ok(true)
            }
            Err(_) if self.cancel.is_cancelled() => {
                // If this does not come to its end, the note is still there.
                if let Ok(Some(undo)) = self.notes.serving()
                    && let Ok(Ok(())) = tokio::time::timeout(FAREWELL, self.undo(&undo)).await
                {
                    let _ = self.notes.set_serving(None);
                }
                Err(End::Stopped)
            }
            Err(Broken::Unfit(unfit)) => {
                tracing::info!(%unfit, "the destination cannot load the snapshot as a replica: it is loaded by commands");
                self.by_commands = true;
                self.state.snapshot.method = Travels::Commands;
                self.end_serving().await?;
                // Another one only if it is needed: it ends the connections that are there.
                if client.call(&["PING"]).await.is_err() {
                    *client = self.open().await?.client;
                }
                Ok(false)
            }
            Err(Broken::Snapshot(error)) => {
                self.end_serving().await?;
                Err(error.into())
            }
        }
    }

    /// Makes the destination a primary again, if it may still be our replica.
    pub(super) async fn end_serving(&mut self) -> Step<()> {
        let Some(undo) = self.notes.serving()? else { return Ok(()) };
        loop {
            match self.undo(&undo).await {
                Ok(()) => break,
                Err(error) => self.wait_out(error, self.options.retry.connection).await?,
            }
        }
        self.notes.set_serving(None)?;
        Ok(())
    }

    async fn undo(&self, undo: &Undo) -> Result<()> {
        let mut client = Client::open(&self.options.to, TIMEOUT).await?;
        undo.run(&mut client).await?;
        let held = primary::own_keys(&mut client).await;
        if held.is_ok_and(|keys| !keys.iter().any(|key| key == POSITION_KEY.as_bytes())) {
            let mut out = Vec::new();
            let own = self.own_keys(undo.generation);
            for (key, value) in &own {
                write::command(&mut out, &[b"SET", &key[..], value]);
            }
            client.pipeline(&out, own.len()).await?;
        }
        Ok(())
    }

    /// Our own keys, while the snapshot of that generation is loaded.
    fn own_keys(&self, generation: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
        let loading = self.mark_text(Reach::Loading { generation });
        let others =
            self.options.own_keys.iter().map(|(key, value)| (key.clone().into_bytes(), value.clone()));
        std::iter::once((POSITION_KEY.as_bytes().to_vec(), loading.into_bytes())).chain(others).collect()
    }

    /// Waits for the end of a load, and shows how far it is.
    pub(super) async fn while_loading<T>(
        &mut self,
        load: impl Future<Output = T>,
        progress: &Progress,
        begun: Instant,
    ) -> T {
        tokio::pin!(load);
        loop {
            let outcome = tokio::select! {
                outcome = &mut load => Some(outcome),
                Some(request) = self.requests.recv() => {
                    refuse(request, "the mirror is loading the snapshot");
                    continue;
                }
                () = tokio::time::sleep(TICK) => None,
            };
            let view = progress.view();
            self.state.snapshot = SnapshotProgress {
                keys_loaded: view.keys_loaded,
                keys_expected: view.keys_expected,
                bytes_read: view.bytes_read,
                bytes_expected: view.bytes_expected,
                seconds: begun.elapsed().as_secs_f64(),
                method: self.state.snapshot.method,
            };
            self.publish();
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }
}
