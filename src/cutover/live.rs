//! The real world: two servers, the data path, the mirror, the commit cell.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::fence::{self, Fence};
use super::own;
use super::switch::{Held, Parts, Uncommitted};
use super::verdict::{Facts, MirrorFacts, ServerFacts, Verification};
use crate::error::{Error, Result, Side};
use crate::migration::cell::{Line, StartPosition};
use crate::migration::record::{self, Store};
use crate::migration::status::{ActiveSide, SwitchKind};
use crate::mirror::{Mirror, MirrorOptions, MirrorState, Stage};
use crate::proxy::{Active, Busy, Proxy};
use crate::resp::write;
use crate::server::{Client, Endpoint, Events, Info, paused};

/// Where the gateway notes the newest epoch on the server that is active.
pub const EPOCH_KEY: &str = "crossfade:epoch";

/// How near the mirror must be before the gate is closed: the rest is drained inside the pause.
const NEAR: Duration = Duration::from_millis(25);

/// The fence ends by itself this much after the longest pause, should nobody be left to take it down.
const FENCE_MARGIN: Duration = Duration::from_secs(10);

/// A new side that has answered so lately is there: the commit line itself takes as long to write.
const RECENT: Duration = Duration::from_millis(2);

impl From<ActiveSide> for Active {
    fn from(side: ActiveSide) -> Self {
        match side {
            ActiveSide::Source => Active::Source,
            ActiveSide::Destination => Active::Destination,
        }
    }
}

/// What a switch acts upon.
#[derive(Debug)]
pub struct Live {
    /// Which way.
    pub kind: SwitchKind,
    /// The active server.
    pub from: Endpoint,
    /// The other one.
    pub to: Endpoint,
    /// The data path.
    pub proxy: Proxy,
    /// The mirror that runs, from `from` to `to`.
    pub mirror: Mirror,
    /// The mirror that would run after the switch.
    pub back: MirrorOptions,
    /// Ends it.
    pub cancel: CancellationToken,
    /// The record and the cell.
    pub store: Store,
    /// The longest pause.
    pub max_pause: Duration,
    /// For one connection.
    pub connect_timeout: Duration,
    /// See [`Open`].
    pub open: Open,
}

/// What was opened on the way.
#[derive(Debug, Default)]
pub struct Open {
    from: Option<Client>,
    to: Option<Client>,
    fence: Option<Fence>,
    standby: Option<Mirror>,
    settled: bool,
    /// The fence may be up.
    fenced: bool,
    committed: bool,
}

/// What is left when a switch has ended.
#[derive(Debug)]
pub struct Left {
    /// The record and the cell.
    pub store: Store,
    /// The mirror that runs now.
    pub mirror: Mirror,
}

impl Live {
    /// Everything that the verdict rests on. Changes nothing but the gateway's own key on `to`.
    ///
    /// # Errors
    /// When a server cannot be reached.
    pub async fn facts(&mut self, verification: Verification) -> Result<Facts> {
        self.proxy.reaches_active().await?;
        let epoch = self.store.line().epoch.to_string();
        if let Err(error) = self.connect().await {
            return Err(if error.side == self.from.side {
                unanswered(error, &self.proxy).await
            } else {
                error
            });
        }
        let fence = self.open.fence.as_ref().and_then(Fence::name);
        let (Some(from_client), Some(to_client)) = (&mut self.open.from, &mut self.open.to) else {
            return Err(Error::new(Side::Gateway, "no connection"));
        };
        let info = match everything(from_client).await {
            Ok(info) => info,
            Err(error) => return Err(unanswered(error, &self.proxy).await),
        };
        let mut from = ServerFacts::read(&info);
        from.fence = fence;
        from.events = Events::ask(from_client).await?;
        let mut to = ServerFacts::read(&everything(to_client).await?);
        to.events = Events::ask(to_client).await?;
        let recent = since_switch(self.store.line().at_ms);
        to.foreign_writers = foreign_writers(to_client, recent).await;
        let written = to_client.call(&["SET", EPOCH_KEY, &epoch]).await?;
        if written.is_error() {
            to.write_refused = Some(written.as_str().unwrap_or("an error").to_owned());
        }
        let mirror = mirror_facts(&self.mirror.state().borrow());
        Ok(Facts { kind: self.kind, mirror, verification, to, from })
    }

    /// What goes on after the switch.
    #[must_use]
    pub fn finish(self) -> Left {
        let mirror = match (self.open.committed, self.open.standby) {
            (true, Some(standby)) => standby,
            _ => self.mirror,
        };
        Left { store: self.store, mirror }
    }

    /// Connections to both servers; the pause has no time for them.
    async fn connect(&mut self) -> Result<()> {
        for (client, endpoint) in [(&mut self.open.from, &self.from), (&mut self.open.to, &self.to)] {
            let alive = match client {
                Some(client) => client.call(&["PING"]).await.is_ok(),
                None => false,
            };
            if !alive {
                *client = Some(connect(endpoint, self.connect_timeout).await?);
            }
        }
        if let (None, Some(client)) = (&self.open.fence, &mut self.open.from) {
            self.open.fence = Some(Fence::probe(client).await?);
        }
        Ok(())
    }

    async fn standby(&mut self, deadline: Instant) -> Result<()> {
        if let Some(standby) = &self.open.standby {
            if standby.state().borrow().stage == Stage::Standby {
                return Ok(());
            }
        }
        if let Some(dead) = self.open.standby.take() {
            dead.stop().await;
        }
        // What an aborted switch of the same epoch left behind is of no use.
        match std::fs::remove_dir_all(&self.back.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::new(Side::Gateway, format!("cannot remove {}", self.back.dir.display()))
                    .because(e));
            }
            _ => {}
        }
        let standby = Mirror::spawn(self.back.clone(), self.cancel.clone());
        let (mut state, last) = (standby.state(), standby.state());
        self.open.standby = Some(standby);
        let waited = tokio::time::timeout_at(
            deadline,
            state.wait_for(|s| matches!(s.stage, Stage::Standby | Stage::Failed | Stage::Stopped)),
        )
        .await;
        let trouble = match waited {
            Ok(Ok(state)) if state.stage == Stage::Standby => return Ok(()),
            Ok(Ok(state)) => state.error.clone(),
            Ok(Err(_)) => None,
            Err(_) => last.borrow().error.clone(),
        };
        let why = trouble
            .map_or_else(|| "it was not ready in time".to_owned(), |t| format!("{}: {}", t.side, t.message));
        Err(Error::passing(
            Side::from(self.kind.target()),
            format!("the mirror back could not be attached: {why}"),
        ))
    }

    /// Waits until the mirror back has received a write that was made after it was attached: a server that has sent
    /// its snapshot may hold the stream back until it hears from its replica, and the pause has no time for that.
    async fn stream_flows(&mut self, deadline: Instant) -> Result<()> {
        let epoch = self.store.line().epoch.to_string();
        let (Some(client), Some(standby)) = (&mut self.open.to, &self.open.standby) else {
            return Err(Error::new(Side::Gateway, "no connection"));
        };
        client.command(&["SET", EPOCH_KEY, &epoch]).await?;
        let offset = stream_end(client).await?;
        standby.wait_applied(offset, deadline).await?;
        Ok(())
    }

    /// Waits for the end of a CLIENT PAUSE that somebody has ordered. Writes that it holds would never drain, and the fence, which
    /// is one too, would end it.
    async fn outlast_pause(&mut self, deadline: Instant) -> Result<()> {
        if !matches!(self.open.fence, Some(Fence::Pause)) {
            return Ok(());
        }
        let mut client = connect(&self.from, self.connect_timeout).await?;
        client.set_timeout(deadline.saturating_duration_since(Instant::now()));
        match paused::guard(&mut client).await {
            Err(error) if error.retry => {
                Err(error
                    .remedy("if somebody has paused it (CLIENT PAUSE), wait for the end, or CLIENT UNPAUSE"))
            }
            // Where the gateway may ask for nothing of the kind, this is not known.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Waits until little is left to drain inside the pause.
    async fn near(&self, deadline: Instant) -> Result<()> {
        let near = NEAR.min(self.max_pause / 4).as_secs_f64() * 1e3;
        let mut state = self.mirror.state();
        loop {
            {
                let now = state.borrow_and_update();
                let facts = mirror_facts(&now);
                if let Some(error) = facts.error {
                    return Err(Error::passing(
                        Side::from(self.kind.target()),
                        format!("the mirror is in trouble: {error}"),
                    ));
                }
                if facts.live && now.lag_ms <= near {
                    return Ok(());
                }
            }
            let lag = state.borrow().lag_ms;
            match tokio::time::timeout_at(deadline, state.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Error::new(Side::Gateway, "the mirror has stopped")),
                Err(_) => {
                    return Err(Error::passing(
                        Side::from(self.kind.target()),
                        format!(
                            "the mirror stays {lag:.0} ms behind; the gate is closed only below {near:.0} ms"
                        ),
                    )
                    .remedy("lower the write load, or allow a longer pause (--max-pause)"));
                }
            }
        }
    }
}

impl Live {
    /// Not inside the pause: it is a write to the disk. While the fence may still be up, the record keeps it, and the
    /// controller goes on trying.
    fn forget_fence(&mut self) {
        if self.open.fenced || self.store.record().fence.is_none() {
            return;
        }
        if let Err(error) = self.store.update(|record| record.fence = None) {
            tracing::warn!(%error, "the record still speaks of a fence");
        }
    }
}

impl Parts for Live {
    async fn prepare(&mut self, deadline: Instant) -> Result<()> {
        self.connect().await?;
        self.standby(deadline).await?;
        self.stream_flows(deadline).await?;
        let side = self.kind.origin();
        if let Some(left) =
            self.store.record().fence.clone().filter(|left| left.side == side && !self.open.settled)
        {
            // By an earlier switch. Nobody else takes it down meanwhile.
            take_down(&self.from, &left, false).await?;
        }
        self.outlast_pause(deadline).await?;
        let setting = match &self.open.fence {
            Some(Fence::Setting { name, former }) => Some((name.clone(), former.clone())),
            _ => None,
        };
        // Durable before it goes up: a crash must not leave the server closed.
        self.store.update(|record| record.fence = Some(record::Fence { side, setting }))?;
        let prepared = self.proxy.prepare(self.kind.target().into(), deadline.into_std());
        self.open.settled = true;
        let (prepared, settled) = tokio::join!(prepared, self.mirror.settle(deadline));
        let (prepared, settled) = (prepared?, settled?);
        tracing::debug!(?prepared, ?settled, "ready for the gate");
        self.near(deadline.min(Instant::now() + Duration::from_secs(5))).await
    }

    async fn last_look(&mut self) -> Result<()> {
        self.proxy.reaches_active().await
    }

    async fn close_gate(&mut self) -> Result<()> {
        self.proxy.close_gate().await
    }

    async fn drain_clients(&mut self, deadline: Instant) -> Result<()> {
        let report = self.proxy.drain(deadline.into_std()).await?;
        tracing::debug!(?report, "no command is in flight");
        Ok(())
    }

    async fn fence(&mut self) -> Result<u64> {
        let (Some(client), Some(fence)) = (&mut self.open.from, &self.open.fence) else {
            return Err(Error::new(Side::Gateway, "no connection"));
        };
        self.open.fenced = true;
        let mut commands = Vec::new();
        let up = fence.up(self.max_pause + FENCE_MARGIN);
        if let Some(up) = &up {
            write::command(&mut commands, up);
        }
        write::command(&mut commands, &["INFO", "replication"]);
        let replies = client.pipeline(&commands, 1 + usize::from(up.is_some())).await?;
        if let (Some(_), Some(first)) = (&up, replies.first()) {
            if first.is_error() {
                let text = first.as_str().unwrap_or_default();
                return Err(Error::new(client.side(), format!("the fence was refused: {text}")));
            }
        }
        let text = replies.last().and_then(|reply| reply.as_str()).unwrap_or_default();
        still_leads(text, client.side())?;
        offset(text).ok_or_else(|| no_offset(client.side()))
    }

    async fn drain_mirror(&mut self, offset: u64, deadline: Instant) -> Result<StartPosition> {
        let (Some(client), Some(standby)) = (&mut self.open.to, &self.open.standby) else {
            return Err(Error::new(Side::Gateway, "no connection"));
        };
        // Equality, not silence: the new side has applied the last byte that the old side's stream has.
        let begun = Instant::now();
        let side = client.side();
        self.mirror.wait_applied(offset, deadline).await.map_err(|error| {
            Error::passing(side, format!("the {side} does not hold everything yet")).because(error)
        })?;
        let applied = begun.elapsed();
        answer(side, "its last expiries", deadline, self.mirror.settle_last()).await?;
        let settled = begun.elapsed();
        let offset = answer(side, "the end of its stream", deadline, stream_end(client)).await?;
        let position = standby.engage(offset, deadline).await?;
        tracing::debug!(?applied, ?settled, engaged = ?begun.elapsed(), "the mirror is drained");
        Ok(StartPosition { replid: position.replid, offset: position.offset, db: position.db })
    }

    async fn last_sign(&mut self, deadline: Instant) -> Result<()> {
        let Some(client) = &mut self.open.to else {
            return Err(Error::new(Side::Gateway, "no connection"));
        };
        answer(client.side(), "a last sign of life", deadline, client.hears(RECENT)).await
    }

    async fn commit(&mut self, epoch: u64, start: StartPosition, pause: Duration) -> Result<(), Uncommitted> {
        let line = Line {
            epoch,
            active: self.kind.target(),
            start: Some(start),
            at_ms: record::now_ms(),
            pause_ms: pause.as_secs_f64() * 1e3,
        };
        let failed = |message: &str| Error::new(Side::Gateway, message).remedy("check the disk of state_dir");
        let Some(mut cell) = self.store.take_cell() else {
            return Err(Uncommitted::Revoked(failed("the commit cell is not open")));
        };
        let written = tokio::task::spawn_blocking(move || {
            let outcome = cell.commit(line).map_err(|error| (error, cell.revoke(epoch, record::now_ms())));
            (cell, outcome)
        });
        let Ok((cell, outcome)) = written.await else {
            return Err(Uncommitted::Unknown(failed("the commit line was not written")));
        };
        self.store.put_back(cell);
        match outcome {
            Ok(()) => {
                self.open.committed = true;
                Ok(())
            }
            Err((error, Ok(()))) => {
                Err(Uncommitted::Revoked(failed("the commit line could not be written").because(error)))
            }
            Err((error, Err(_))) => Err(Uncommitted::Unknown(
                failed("the commit line could not be written, nor revoked").because(error),
            )),
        }
    }

    async fn open_gate(&mut self, side: ActiveSide, epoch: u64) -> Held {
        let note = async {
            if let (true, Some(client)) = (self.open.committed, &mut self.open.to) {
                // For people and for the next gateway; which side is active is decided by the cell.
                let noted =
                    timeout(Duration::from_secs(1), client.command(&["SET", EPOCH_KEY, &epoch.to_string()]))
                        .await;
                if !matches!(noted, Ok(Ok(_))) {
                    tracing::debug!("the epoch could not be noted on the new side");
                }
            }
        };
        let (report, ()) = tokio::join!(self.proxy.open_gate(side.into(), epoch), note);
        Held { commands: report.held_commands, longest: report.max_hold }
    }

    async fn release(&mut self, _epoch: u64) {
        // First the old mirror: it must not carry back what the mirror back will write to its source.
        self.mirror.stop().await;
        if let (Some(Fence::Pause), Some(client)) = (&self.open.fence, &mut self.open.from) {
            match timeout(Duration::from_secs(2), fence::close_held_writers(client)).await {
                Ok(Ok(0)) => {}
                Ok(Ok(closed)) => warn_of_strays(closed, self.kind.origin()),
                Ok(Err(error)) => tracing::debug!(%error, "writers held by the fence could not be listed"),
                Err(_) => tracing::debug!("writers held by the fence could not be listed in time"),
            }
        }
        self.unfence().await;
        if let Some(standby) = &self.open.standby {
            standby.go();
        }
        self.forget_fence();
    }

    async fn unfence(&mut self) {
        let Some(down) = self.open.fence.as_ref().and_then(Fence::down) else { return };
        for attempt in 0..2 {
            let client = match &mut self.open.from {
                Some(client) if attempt == 0 => client,
                // The call that was cut short may have left the connection in the middle of a reply.
                slot => match connect(&self.from, Duration::from_secs(2)).await {
                    Ok(client) => slot.insert(client),
                    Err(error) => {
                        tracing::warn!(%error, "the fence on the {} is still up; trying again", self.kind.origin());
                        return;
                    }
                },
            };
            match timeout(Duration::from_secs(2), client.command(&down)).await {
                Ok(Ok(_)) => {
                    self.open.fenced = false;
                    return;
                }
                Ok(Err(error)) => tracing::debug!(%error, attempt, "the fence did not come down"),
                Err(_) => tracing::debug!(attempt, "the fence did not come down in time"),
            }
        }
        tracing::warn!("the fence on the {} is still up; trying again", self.kind.origin());
    }

    async fn undo(&mut self, until: Instant) {
        if self.open.settled {
            if let Err(error) = self.mirror.pad(until).await {
                tracing::debug!(%error, "expiries stay exact for now");
            }
        }
        if let Some(standby) = self.open.standby.take() {
            standby.stop().await;
        }
        self.forget_fence();
    }
}

/// A server's answer inside the pause; an error says for what it was asked.
async fn answer<T>(
    side: Side,
    what: &str,
    deadline: Instant,
    asked: impl Future<Output = Result<T>>,
) -> Result<T> {
    let failed = |how: &str| Error::passing(side, format!("the {side} {how} when it was asked for {what}"));
    match timeout_at(deadline, asked).await {
        Ok(answered) => answered.map_err(|error| failed("failed").because(error)),
        Err(_) => Err(failed("did not answer in time")),
    }
}

/// The active server does not answer: what it may be busy with.
async fn unanswered(error: Error, proxy: &Proxy) -> Error {
    let mut busy = proxy.busy().await;
    busy.retain(|busy| busy.age >= Duration::from_millis(500));
    let message = match Busy::name(&busy) {
        Some(named) => format!("the active server does not answer; waiting for it: {named}"),
        None => "the active server does not answer".to_owned(),
    };
    Error::passing(error.side, message).because(error).remedy(
        "it may be busy with a long command (SLOWLOG names it afterwards, SCRIPT KILL ends a script); try again then",
    )
}

/// What the mirror's state means for a switch.
fn mirror_facts(state: &MirrorState) -> MirrorFacts {
    MirrorFacts {
        live: state.stage == Stage::Live,
        stage: format!("{:?}", state.stage).to_lowercase(),
        linked: state.error.is_none(),
        lag: Duration::from_secs_f64((state.lag_ms / 1e3).max(0.0)),
        lag_bytes: state.received.saturating_sub(state.applied),
        error: state.error.as_ref().map(|t| format!("{}: {}", t.side, t.message)),
    }
}

/// A connection for the control side, in db 0, that can be told from others in `CLIENT LIST`.
///
/// # Errors
/// When the server cannot be reached or refuses the credentials.
pub async fn connect(endpoint: &Endpoint, within: Duration) -> Result<Client> {
    let endpoint = Endpoint { db: 0, ..endpoint.clone() };
    let mut client = Client::open(&endpoint, within).await?;
    // Old servers and narrow ACLs may refuse; nothing depends on it.
    client.call(&["CLIENT", "SETNAME", "crossfade-control"]).await?;
    Ok(client)
}

/// Takes down a fence that a crash or a lost connection left behind. Where the switch was committed, `abandoned` is true:
/// the writes that the fence still holds would land on the old side only.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub async fn take_down(endpoint: &Endpoint, fence: &record::Fence, abandoned: bool) -> Result<()> {
    let mut client = connect(endpoint, Duration::from_secs(2)).await?;
    match &fence.setting {
        Some((name, former)) => client.command(&["CONFIG", "SET", name, former]).await.map(|_| ()),
        None => {
            if abandoned {
                match fence::close_held_writers(&mut client).await {
                    Ok(0) => {}
                    Ok(closed) => warn_of_strays(closed, fence.side),
                    Err(error) => tracing::debug!(%error, "writers held by the fence could not be listed"),
                }
            }
            // Before 6.2 there is no UNPAUSE, and then there was no fence of this kind.
            client.call(&["CLIENT", "UNPAUSE"]).await.map(|_| ())
        }
    }
}

fn warn_of_strays(closed: usize, side: ActiveSide) {
    tracing::warn!(
        closed,
        "connections that write to the {side} without the gateway were closed at the switch; they must use the gateway"
    );
}

/// For how long a writer is remembered: not beyond the last switch, when other writers were the rightful ones.
fn since_switch(at_ms: u64) -> Duration {
    Duration::from_millis(record::now_ms().saturating_sub(at_ms)).min(Duration::from_secs(60))
}

/// Who else writes to a server. A server or a system that does not tell gives no cause for alarm.
async fn foreign_writers(client: &mut Client, recent: Duration) -> Vec<String> {
    match tokio::task::spawn_blocking(own::addresses).await {
        Ok(Some(own)) => fence::foreign_writers(client, &own, recent).await.unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Who else writes to the server that only the mirror may write to; `at_ms` is the time of the last switch.
///
/// # Errors
/// When the server cannot be reached.
pub async fn strays(endpoint: &Endpoint, at_ms: u64) -> Result<Vec<String>> {
    let mut client = connect(endpoint, Duration::from_secs(2)).await?;
    Ok(foreign_writers(&mut client, since_switch(at_ms)).await)
}

/// The sections that a verdict needs.
async fn everything(client: &mut Client) -> Result<Info> {
    client.info("").await
}

fn offset(info: &str) -> Option<u64> {
    Info::parse(info).u64("master_repl_offset")
}

/// A server that has become a replica since the verdict, or is about to (FAILOVER), is not switched away from: what its primary is
/// told comes through no gate.
fn still_leads(info: &str, side: Side) -> Result<()> {
    let info = Info::parse(info);
    let role = info.get("role").unwrap_or("master");
    // Since 6.2.
    let failover = info.get("master_failover_state").unwrap_or("no-failover");
    if role == "master" && failover == "no-failover" {
        return Ok(());
    }
    Err(Error::new(
        side,
        format!("the {side} is handing over to a replica (role {role}, failover {failover})"),
    )
    .remedy("let the failover end, or end it (FAILOVER ABORT), and look at the plan again"))
}

/// Where the stream of a server ends.
async fn stream_end(client: &mut Client) -> Result<u64> {
    let reply = client.command(&["INFO", "replication"]).await?;
    reply.as_str().and_then(offset).ok_or_else(|| no_offset(client.side()))
}

fn no_offset(side: Side) -> Error {
    Error::new(side, "INFO replication names no master_repl_offset")
        .remedy("is the server a primary, and is INFO allowed?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_hands_over_is_not_switched_away_from() {
        let leads = |info: &str| still_leads(info, Side::Source);
        assert!(leads("# Replication\r\nrole:master\r\nconnected_slaves:0\r\n").is_ok());
        assert!(leads("role:master\r\nmaster_failover_state:no-failover\r\n").is_ok());
        let error = leads("role:master\r\nmaster_failover_state:waiting-for-sync\r\n").unwrap_err();
        assert!(error.to_string().contains("handing over"), "{error}");
        assert!(leads("role:slave\r\nmaster_failover_state:no-failover\r\n").is_err());
    }
}
