//! A worker's part in a switch: what it makes ready, holds, and lets go on.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::recall::{open_recaller, recall};
use super::{POOL, Worker};
use crate::proxy::Active;
use crate::proxy::gate::{Away, Busy, DrainReport, OpenReport, PrepareReport, Undrained};
use crate::proxy::session::{Closing, Session};
use crate::proxy::upstream::{Identity, Key, dial};

/// Connections opened at once while a switch is prepared.
const DIALS: usize = 32;

pub(super) async fn prepare(
    worker: &Rc<Worker>,
    to: Active,
    deadline: Instant,
) -> std::result::Result<PrepareReport, String> {
    let deadline = tokio::time::Instant::from_std(deadline);
    let here = worker.active.get();
    // Those of clients that are here: of a user who has gone the other side need not know.
    let here_now: HashSet<Identity> = worker
        .all_sessions()
        .iter()
        .filter_map(|session| Some(session.core.try_borrow().ok()?.identity.clone()))
        .collect();
    let keys: Vec<Key> = worker
        .lanes
        .borrow()
        .values()
        .filter(|lane| lane.key.side == here && here_now.contains(&lane.key.identity))
        .map(|lane| Key { side: to, ..lane.key.clone() })
        .collect();
    let lanes: Vec<_> = keys.iter().map(|key| worker.lane(key)).collect();
    for lane in &lanes {
        lane.ready(deadline).await.map_err(|why| match &lane.key.identity.credentials {
            Some(credentials) => {
                let user = credentials.user.as_deref().unwrap_or(b"default");
                format!("the {to} does not take user {} as it is now: {why}", String::from_utf8_lossy(user))
            }
            None => why,
        })?;
    }
    // As many connections as sessions hold on the other side now.
    let mut wanted: HashMap<Key, usize> = HashMap::new();
    for session in worker.all_sessions() {
        if let Ok(core) = session.core.try_borrow() {
            if let Some(pinned) = core.pinned.as_deref() {
                let key = Key::new(to, pinned.upstream.key.identity.clone());
                *wanted.entry(key).or_default() += 1;
            }
        }
    }
    let mut missing = Vec::new();
    let mut pinned = 0;
    for (key, count) in wanted {
        pinned += count;
        let have = worker.pool.borrow().get(&key).map_or(0, Vec::len);
        missing.extend(std::iter::repeat_n(key, count.saturating_sub(have)));
    }
    for some in missing.chunks(DIALS) {
        let dials = some.iter().map(|key| dial(worker, key, false));
        let all = tokio::time::timeout_at(deadline, futures_util::future::join_all(dials))
            .await
            .map_err(|_| format!("connections to the {to} did not open in time"))?;
        for upstream in all {
            worker.stock(upstream.map_err(|error| error.to_string())?);
        }
    }
    open_recaller(worker, here).await?;
    Ok(PrepareReport { lanes: lanes.len(), pinned })
}

/// Clients whose commands wait for the active side while that is away. What a server that is there has yet to answer is not
/// meant.
pub(super) fn away(worker: &Worker) -> Option<Away> {
    let side = worker.active.get();
    if !worker.is_away() {
        return None;
    }
    let mut clients = worker.all_sessions().iter().filter(|session| session.is_dialling()).count();
    for lane in worker.lanes.borrow().values() {
        if lane.key.side == side && !lane.is_up() {
            clients += lane.busy_with().0.len();
        }
    }
    (clients > 0).then_some(Away { side, clients })
}

/// `patient`: what can be answered is waited for though the server is away from others.
pub(super) async fn drain(
    worker: &Rc<Worker>,
    deadline: Instant,
    patient: bool,
) -> std::result::Result<DrainReport, Undrained> {
    let deadline = tokio::time::Instant::from_std(deadline);
    let mut report = DrainReport::default();
    let mut blocked = Vec::new();
    for session in worker.all_sessions() {
        let drained = session.begin_drain();
        report.transactions += usize::from(drained.transaction);
        blocked.extend(drained.recall.map(|recall| (session, recall)));
    }
    report.recalled = blocked.len();
    loop {
        if !blocked.is_empty() {
            recall(worker, blocked, deadline).await;
        }
        let round = tokio::time::Instant::now() + Duration::from_millis(2);
        loop {
            if is_drained(worker) {
                return Ok(report);
            }
            if let Some(away) = away(worker).filter(|_| !patient) {
                return Err(Undrained::Away(away));
            }
            if tokio::time::timeout_at(round.min(deadline), worker.progress.notified()).await.is_err() {
                break;
            }
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(Undrained::Late("commands did not finish in time"));
        }
        // A blocking command may have reached the server after its recall did: asked again.
        let again = |session: Rc<Session>| session.still_blocked().map(|recall| (session, recall));
        blocked = worker.all_sessions().into_iter().filter_map(again).collect();
    }
}

/// Every message that was published has come to its subscribers here.
pub(super) async fn hear(worker: &Rc<Worker>, deadline: Instant) -> std::result::Result<(), Undrained> {
    for session in worker.all_sessions() {
        session.hear_out();
    }
    let deadline = tokio::time::Instant::from_std(deadline);
    while !is_drained(worker) {
        if tokio::time::timeout_at(deadline, worker.progress.notified()).await.is_err() {
            return Err(Undrained::Late("messages did not come to their subscribers in time"));
        }
    }
    Ok(())
}

fn is_drained(worker: &Worker) -> bool {
    worker.lanes.borrow().values().all(|lane| lane.is_idle())
        && worker
            .sessions
            .borrow()
            .values()
            .all(|session| session.closing.get() == Closing::Now || session.is_quiet())
}

/// Commands in flight. Blocked ones are not meant: they wait for others, not others for them.
pub(super) fn busy(worker: &Worker) -> Vec<Busy> {
    let named = |session: &Session, age_ms: u64| Busy {
        command: session.last.get().map_or("(unknown command)", |spec| spec.name),
        client: format!("{} (id {})", session.entry.addr, session.entry.id),
        age: Duration::from_millis(age_ms),
    };
    let mut all = Vec::new();
    for lane in worker.lanes.borrow().values() {
        let (sessions, since) = lane.busy_with();
        let age = worker.clock().saturating_sub(since);
        all.extend(sessions.iter().map(|session| named(session, age)));
    }
    for session in worker.all_sessions() {
        if session.has_pinned() && !session.is_quiet() {
            all.push(named(&session, worker.idle_ms(&session.entry)));
        }
    }
    all
}

/// What went wrong with any of them in this time.
async fn failures(
    steps: impl Iterator<Item = impl Future<Output = std::result::Result<(), String>>>,
    deadline: tokio::time::Instant,
) -> Vec<String> {
    match tokio::time::timeout_at(deadline, futures_util::future::join_all(steps)).await {
        Ok(all) => all.into_iter().filter_map(std::result::Result::err).collect(),
        Err(_) => vec!["connections did not open in time".into()],
    }
}

pub(super) async fn connect(
    worker: &Rc<Worker>,
    active: Active,
    deadline: Instant,
) -> std::result::Result<(), String> {
    let deadline = tokio::time::Instant::from_std(deadline);
    let sessions = worker.all_sessions().into_iter().filter(|session| session.has_pinned());
    let failed = failures(sessions.map(|session| session.connect(active)), deadline).await;
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

pub(super) async fn arm(
    worker: &Rc<Worker>,
    active: Active,
    deadline: Instant,
) -> std::result::Result<(), String> {
    let deadline = tokio::time::Instant::from_std(deadline);
    let sessions: Vec<_> = worker.all_sessions().into_iter().filter(|session| session.has_pinned()).collect();
    if sessions.is_empty() {
        return Ok(());
    }
    let armed = sessions.iter().map(|session| Rc::clone(session).arm(active));
    let mut failed = failures(armed, deadline).await;
    resume(worker, active);
    let done = |session: &Rc<Session>| session.closing.get() == Closing::Now || session.is_armed(active);
    while !sessions.iter().all(done) {
        if tokio::time::timeout_at(deadline, worker.progress.notified()).await.is_err()
            && tokio::time::Instant::now() >= deadline
        {
            for session in sessions.iter().filter(|session| !done(session)) {
                session.close_now();
            }
            failed.push("state was not taken over in time".into());
            break;
        }
    }
    sessions.iter().for_each(|session| session.settle_in());
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

/// Issues recalled commands again, those first who have waited longest: a server serves them in the order in which they come.
pub(super) fn resume(worker: &Worker, active: Active) {
    let mut held: Vec<_> = worker
        .all_sessions()
        .into_iter()
        .filter_map(|session| Some((session.held_since()?, session)))
        .collect();
    held.sort_by_key(|(since, session)| (*since, session.entry.id));
    held.iter().for_each(|(_, session)| session.resume(active));
}

pub(super) fn open(worker: &Rc<Worker>, active: Active, epoch: u64) -> OpenReport {
    let now = Instant::now();
    let mut report = OpenReport::default();
    if worker.active.get() != active {
        worker.active.set(active);
        worker.epoch.set(epoch);
        worker.shared.unknown.forget_missing();
        worker.anonymous.set(false);
        worker.unreached.set(None);
    } else if worker.recalling.get() == 0 {
        // What came back since the sessions were armed; while a recall is not answered, its task does this.
        resume(worker, active);
    }
    worker.gate_closed.set(false);
    let stale: Vec<_> =
        worker.lanes.borrow().values().filter(|lane| lane.key.side != active).cloned().collect();
    for lane in stale {
        lane.retire();
        // Nobody is to get it any more while it comes to its end.
        worker.forget_lane(&lane);
    }
    worker.pool.borrow_mut().retain(|key, idle| {
        idle.truncate(POOL);
        key.side == active
    });
    worker.recaller.borrow_mut().take();
    for session in worker.all_sessions() {
        if let Some((held, commands)) = session.take_hold(now) {
            report.max_hold = report.max_hold.max(held);
            report.held_commands += commands;
        }
        if !session.is_armed(active) {
            // It got a connection to the old side too late to be brought over.
            session.close_now();
        }
        session.wake();
    }
    report
}
