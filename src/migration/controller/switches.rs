//! Switches under the controller: the record and the mirror go with the switch's task, and come back with its end.

use tokio::sync::oneshot;

use super::{Controller, Running, Switching};
use crate::cutover::live::Left;
use crate::cutover::verdict::{Limits, Verification};
use crate::error::{Error, Side};
use crate::migration::handle::{Answer, SwitchReply};
use crate::migration::machine::{Input, Output};
use crate::migration::status::{SwitchEntry, SwitchKind, SwitchOutcome, SwitchRequest};
use crate::migration::switching;
use crate::mirror::{Mapping, Start};

impl Controller {
    pub(super) async fn switch(
        &mut self,
        kind: SwitchKind,
        request: SwitchRequest,
        answer: Answer<SwitchReply>,
    ) {
        if self.config.destination.is_none() {
            let _ = answer.send(Err(Error::new(Side::Gateway, "no destination is configured")
                .remedy("name one in [destination] or with --destination")));
            return;
        }
        let outputs = match self.machine.handle(Input::Switch(kind, request.clone())) {
            Ok(outputs) => outputs,
            Err(error) => {
                let _ = answer.send(Err(error));
                return;
            }
        };
        if outputs.contains(&Output::LetThrough) {
            if let Some(switching) = &mut self.switching {
                switching.answer = Some(answer);
                if let Some(through) = switching.through.take() {
                    let _ = through.send(());
                }
            }
            return;
        }
        let back = self.mirror_options(self.epoch + 1, kind.target(), Start::Standby);
        let (from, to) = (self.endpoint(kind.origin()).cloned(), self.endpoint(kind.target()).cloned());
        match (self.running.take(), self.store.take(), back, from, to) {
            (Some(running), Some(store), Some(back), Some(from), Some(to)) => {
                let (ready_sender, ready) = oneshot::channel();
                let (through, let_through) = oneshot::channel();
                let limits = Limits {
                    max_lag: self.config.cutover.max_lag,
                    force_unverified: request.force_unverified,
                    left_out: self.config.filter.is_set() && !request.clients_know_the_map,
                    renamed: self.config.map.is_set() && !request.clients_know_the_map,
                    one_way: Mapping::new(&self.config.map).is_some_and(|map| map.turned_round().is_none()),
                };
                let postpone = request.postpone;
                let job = switching::Job {
                    kind,
                    max_pause: request.max_pause.unwrap_or(self.config.cutover.max_pause),
                    request,
                    limits,
                    verification: self.verification,
                    from,
                    to,
                    proxy: self.proxy.clone(),
                    mirror: running.mirror,
                    back,
                    cancel: self.cancel.clone(),
                    store,
                    connect_timeout: self.config.server.connect_timeout,
                    unfencing: self.unfencing.take(),
                    ready: ready_sender,
                    let_through,
                };
                tracing::info!("{} to the {} ({})", kind.name(), kind.target(), self.address(kind.target()));
                self.switching = Some(Switching {
                    kind,
                    task: tokio::spawn(job.run()),
                    answer: Some(answer),
                    ready: postpone.then_some(ready),
                    plan: None,
                    through: Some(through),
                    state: running.state,
                });
            }
            (running, store, ..) => {
                self.running = running;
                self.store = store;
                let _ = self.machine.handle(Input::SwitchEnded(None));
                let _ = answer.send(Err(Error::passing(Side::Gateway, "the mirror is not running yet")
                    .remedy("wait a moment, then try again")));
            }
        }
    }

    pub(super) async fn switch_ready(&mut self) {
        if let Some(switching) = &mut self.switching {
            switching.ready = None;
            tracing::info!("the {} is ready and waits at the gate", switching.kind.name());
            if let (Some(plan), Some(answer)) = (switching.plan.take(), switching.answer.take()) {
                let _ = answer.send(Ok(SwitchReply::Plan(plan)));
            }
        }
        let _ = self.feed(Input::SwitchReady).await;
    }

    pub(super) async fn switched(&mut self, done: switching::Done) {
        let Some(switching) = self.switching.take() else { return };
        let switching::Done { left: Left { store, mirror }, entry, reply } = done;
        self.store = Some(store);
        let mut state = mirror.state();
        state.mark_changed();
        self.running = Some(Running { mirror, state });
        let outcome = entry.as_ref().map(|entry| entry.outcome);
        if let Some(entry) = entry {
            log(&entry);
            if let Err(error) = self.with_store(|store| store.update(|record| record.switches.push(entry))) {
                tracing::error!(%error, "the switch cannot be added to the history");
            }
        } else {
            let _ = self.with_store(|_| Ok(()));
        }
        if outcome == Some(SwitchOutcome::Committed) {
            // What was compared before the switch says nothing about the other direction.
            self.verification = Verification::Never;
        }
        if let Err(error) = self.feed(Input::SwitchEnded(outcome)).await {
            tracing::error!(%error, "the phases are confused");
        }
        // The new phase is visible before the answer is.
        self.publish();
        match switching.answer {
            Some(answer) => {
                let _ = answer.send(reply);
            }
            None => {
                if let Err(error) = reply {
                    tracing::warn!(%error, "the switch did not begin");
                }
            }
        }
    }
}

fn log(entry: &SwitchEntry) {
    let steps = entry.steps_ms;
    let kind = entry.kind.name();
    match (entry.outcome, &entry.reason) {
        (SwitchOutcome::Aborted, reason) => {
            tracing::warn!(
                pause_ms = entry.pause_ms,
                reason = reason.as_deref().unwrap_or("unknown"),
                "{kind} aborted; nothing changed"
            );
        }
        (outcome, _) => tracing::info!(
            epoch = entry.epoch,
            pause_ms = entry.pause_ms,
            held_commands = entry.held_commands,
            max_hold_ms = entry.max_hold_ms,
            close_gate = steps.close_gate,
            drain_clients = steps.drain_clients,
            fence = steps.fence,
            drain_mirror = steps.drain_mirror,
            commit = steps.commit,
            open_gate = steps.open_gate,
            "{kind} {}",
            outcome.name()
        ),
    }
}
