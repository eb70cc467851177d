//! What a mirror does for expiries while it applies: sweeps between batches, what a switch asks of them, and the clocks by which they count.

use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};

use super::{Flow, SettleReply};
use crate::error::{Error, Result, Side};
use crate::mirror::Stage;
use crate::mirror::run::{End, Step, Task};
use crate::mirror::settle::{self, Ours, Sweep};
use crate::mirror::transform::Mode;
use crate::server::{Client, Clock, Endpoint};

/// For both servers to say what time it is.
const CLOCKS: Duration = Duration::from_secs(1);

impl Task {
    /// Whether a slice comes before the next batch, or in its place. Limits hold the stream back, not what keeps keys from expiring.
    pub(super) fn is_sweeps_turn(&self, flow: &Flow) -> bool {
        flow.sweep_turn || !flow.collector.has_effects() || self.held_until(flow).is_some()
    }

    /// Asks both servers what time it is. One that does not answer keeps the clock that it had.
    pub(super) async fn compare_clocks(&mut self, flow: &mut Flow) {
        let ask = async |server: &Endpoint| {
            let mut client = Client::open(server, CLOCKS).await?;
            Clock::ahead_ms(&mut client).await
        };
        let asked = async { tokio::join!(ask(&self.options.from), ask(&self.options.to)) };
        if let Ok((source, destination)) = tokio::time::timeout(CLOCKS, asked).await {
            self.clocks.source_ms = source.unwrap_or(self.clocks.source_ms);
            self.clocks.destination_ms = destination.unwrap_or(self.clocks.destination_ms);
            tracing::debug!(clocks = ?self.clocks, "the clocks of the servers against this one");
        }
        flow.collector.transform().set_clocks(self.clocks);
    }

    /// A slice of the sweep. The link is idle.
    pub(super) async fn slice(&mut self, flow: &mut Flow) -> Step<Result<()>> {
        if *self.paused.borrow() {
            return Ok(Ok(()));
        }
        let exact_time = flow.dialect.pexpiretime;
        let ours = Ours { select: self.options.select.as_deref(), map: self.options.map.as_deref() };
        let applied = flow.applied();
        let Flow { sweep: Some(sweep), collector, client, .. } = flow else { return Ok(Ok(())) };
        let slice = sweep.slice(client, collector, applied, &ours, exact_time);
        let done = self.cancel.run_until_cancelled(slice).await.ok_or(End::Stopped)?;
        let report = match done {
            Ok(None) => return Ok(Ok(())),
            Ok(Some(report)) => report,
            Err(error) => return Ok(Err(error)),
        };
        let (settled, holds_until) = (sweep.is_settling(), sweep.holds_until());
        flow.sweep = None;
        tracing::debug!(?report, settled, "a sweep over the expiries is done");
        if settled {
            flow.settled_until = Some(holds_until);
            self.state.settled = true;
            self.publish();
            if let Some((_, reply)) = flow.settling.take() {
                let _ = reply.send(Ok(report));
            }
        } else {
            self.notes.set_padded(true)?;
        }
        Ok(Ok(()))
    }

    /// Begins to pad.
    async fn pad_again(&mut self, flow: &mut Flow) -> Result<()> {
        self.state.settled = false;
        self.hurry(false);
        flow.settled_until = None;
        if let Some((_, reply)) = flow.settling.take() {
            let _ =
                reply.send(Err(Error::passing(Side::Gateway, "the expiries could not be settled in time")));
        }
        flow.sweep = Some(Sweep::pad(&mut flow.client, &mut flow.collector).await?);
        Ok(())
    }

    /// Pads again when settling took too long, or what it made exact could come due.
    pub(super) async fn watch_settled(&mut self, flow: &mut Flow) -> Result<()> {
        let now = Instant::now();
        let late = flow.settling.as_ref().is_some_and(|(deadline, _)| *deadline <= now)
            || flow.sweep.as_ref().is_some_and(Sweep::is_late);
        let lapsed = flow.settled_until.is_some_and(|until| until <= now);
        if (late || lapsed) && !flow.link.is_busy() {
            tracing::debug!(late, "expiries are padded again");
            self.pad_again(flow).await?;
        }
        Ok(())
    }

    /// Begins to make expiries exact, for a switch. The inner error: the connection to the destination failed.
    pub(super) async fn settle(
        &mut self,
        flow: &mut Flow,
        deadline: Instant,
        reply: SettleReply,
    ) -> Step<Result<()>> {
        if self.state.stage != Stage::Live {
            let error = Error::passing(Side::Gateway, "the mirror is not in step with the source");
            let _ = reply.send(Err(error));
            return Ok(Ok(()));
        }
        if let Some((_, before)) = flow.settling.take() {
            let _ = before.send(Err(Error::passing(Side::Gateway, "asked for again")));
        }
        self.compare_clocks(flow).await;
        self.notes.set_padded(false)?;
        self.hurry(true);
        flow.settled_until = None;
        flow.settling = Some((deadline, reply));
        match Sweep::settle(&mut flow.client, &mut flow.collector).await {
            Ok(sweep) => flow.sweep = Some(sweep),
            Err(error) => return Ok(Err(error)),
        }
        Ok(Ok(()))
    }

    /// Makes exact what comes due soon, with the gate closed.
    ///
    /// # Errors
    /// The connection to the destination failed; who asked is told too.
    pub(super) async fn settle_last(flow: &mut Flow, reply: oneshot::Sender<Result<()>>) -> Result<()> {
        let settled = flow.settled_until.is_some()
            && matches!(flow.collector.transform().mode(), Mode::Settling { .. });
        if !settled {
            let error = Error::passing(Side::Gateway, "the expiries are not settled, or not any more");
            let _ = reply.send(Err(error));
            return Ok(());
        }
        let exact_time = flow.dialect.pexpiretime;
        let transform = flow.collector.transform();
        let done = settle::settle_last(&mut flow.client, transform, exact_time).await;
        if done.is_ok() {
            flow.settled_until = Some(Instant::now() + settle::HOLDS_LAST);
        }
        told(done, reply)
    }

    /// Pads again when that is asked for.
    ///
    /// # Errors
    /// As [`Task::settle_last`].
    pub(super) async fn pad_on_request(
        &mut self,
        flow: &mut Flow,
        reply: oneshot::Sender<Result<()>>,
    ) -> Result<()> {
        let padded = flow.collector.transform().mode() == Mode::Padded;
        let done = if padded { Ok(()) } else { self.pad_again(flow).await };
        told(done, reply)
    }
}

/// Tells who asked how it went, as well as the mirror itself.
fn told(done: Result<()>, reply: oneshot::Sender<Result<()>>) -> Result<()> {
    let _ = reply.send(match &done {
        Ok(()) => Ok(()),
        Err(error) => Err(Error::passing(error.side, error.message.clone())),
    });
    done
}
