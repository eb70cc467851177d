//! Commands that a lane cannot carry as they are: those that change or need the connection's state.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;

use super::Active;
use super::cursors;
use super::handle::side_of;
use super::local;
use super::pinned::Pinned;
use super::session::{Closing, Core, ReplyMode, Session};
use super::upstream::{
    Credentials, DialError, Identity, Key, Upstream, dial_patiently, read_reply, stayed_away,
};
use super::worker::Worker;
use crate::command::{self, Kind, Lane as Route, Pin, Spec, Switch};
use crate::error::Error;
use crate::resp::scan::{Frame, ProtocolError, split_inline};
use crate::resp::value;
use crate::resp::write::{self, Proto};

pub(super) const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

/// What became of the command in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It is done with, or handed out.
    Done,
    /// It stays in front until something else has happened.
    Wait,
}

/// What a session had to wait for.
pub(super) enum Outcome {
    /// A connection of its own.
    Pinned(Result<Upstream, DialError>),
    /// As that, since another client has redirected its invalidations here.
    Awaited(Result<Upstream, DialError>),
    /// The client that the command in front names has had the time to get a connection.
    Named,
    /// The server's word on AUTH, SELECT or HELLO.
    Identity { identity: Identity, answer: Answer, dialled: Result<Upstream, DialError>, discard: bool },
    /// The reply to a command that went on a connection of its own.
    Answered { reply: Result<Bytes, DialError>, discard: bool },
    /// The server's word on a command that the gateway answers, in a form that does nothing.
    Leave { args: Vec<Vec<u8>>, reply: Result<Bytes, DialError>, discard: bool },
    /// The server's word on a client that has given no password.
    Admission(Result<Bytes, DialError>),
    /// An unknown command has been looked up; or the server did not say what it is.
    LookedUp(Result<bool, DialError>),
    /// A client that has not authenticated has asked for more than a stranger may; a connection of such a client.
    Stranger { error: ProtocolError, dialled: Result<Upstream, DialError> },
}

/// How a change of identity is answered.
pub(super) enum Answer {
    Ok,
    /// With the name that the client gives itself, if it does.
    Hello(Option<Bytes>),
}

impl Session {
    pub(super) fn proto(core: &Core) -> Proto {
        if core.identity.resp3 { Proto::Resp3 } else { Proto::Resp2 }
    }

    /// Deals with one command. `raw` is the whole command as it came.
    pub(super) fn special(self: &Rc<Self>, core: &mut Core, frame: &Frame, raw: &[u8]) -> Step {
        let rewritten;
        let words;
        let (raw, args): (&[u8], Vec<&[u8]>) = if frame.inline {
            // The only bytes that are not forwarded as they came: servers answer both forms alike.
            words = split_inline(raw.trim_ascii_end()).unwrap_or_default();
            let mut bytes = Vec::new();
            write::command(&mut bytes, &words);
            rewritten = bytes;
            (&rewritten, words.iter().map(Vec::as_slice).collect())
        } else {
            (raw, frame.args(raw).collect())
        };
        let Some(&name) = args.first() else { return Step::Done };
        let step = self.route(core, name, raw, &args);
        if step == Step::Done && core.reply_mode == ReplyMode::Skip && !is_reply_skip(&args) {
            core.reply_mode = ReplyMode::On;
        }
        step
    }

    fn route(self: &Rc<Self>, core: &mut Core, name: &[u8], raw: &[u8], args: &[&[u8]]) -> Step {
        let spec = match command::lookup(name) {
            Some(spec) => Some(spec),
            None => match self.worker.shared.unknown.get(name) {
                Some(learned) => learned,
                None if std::mem::take(&mut core.unnamed) => None,
                None => return self.look_up(core, name),
            },
        };
        self.last.set(spec);
        // Servers show no container: one without a subcommand that they know is no command.
        let meant = spec.map(|spec| command::route(spec, args).0);
        self.note_command(meant.filter(|meant| !meant.is_container() || args.len() == 1));
        if let Some(spec) = spec.filter(|spec| spec.kind == Kind::Script) {
            self.worker.shared.scripts.learn(spec.name, args);
        }
        if core.pinned.is_some() {
            return self.pinned_command(core, raw, args, spec);
        }
        // What no server knows has one reply: that it is unknown.
        let Some(spec) = spec else { return self.share(core, raw) };
        match self.lane_of(spec, args) {
            Route::Shared => match spec.switch {
                Switch::Cursor(at) if self.worker.epoch.get() > 0 => self.scan(core, args, usize::from(at)),
                _ => self.share(core, raw),
            },
            Route::Refused => {
                if self.inflight.get() > 0 {
                    return Step::Wait;
                }
                self.refuse(core, spec);
                Step::Done
            }
            Route::Local | Route::Pinned(Pin::ReplyMode) => {
                if self.inflight.get() > 0 {
                    return Step::Wait;
                }
                local::answer(self, core, spec.name, raw, args)
            }
            // One that the table does not have may wait in any form.
            Route::Pinned(Pin::Blocking)
                if spec.may_block() && command::blocking_form(spec, args).is_none() =>
            {
                self.share(core, raw)
            }
            Route::Pinned(Pin::Transaction) if !matches!(spec.name, "multi" | "watch") => {
                // EXEC, DISCARD and UNWATCH without a transaction: an ordinary reply or error.
                core.watch_lost = false;
                self.share(core, raw)
            }
            Route::Pinned(_) => {
                if self.inflight.get() > 0 {
                    return Step::Wait;
                }
                let key = Key::new(self.worker.active.get(), core.identity.clone());
                if let Some(upstream) = self.worker.take_pooled(&key) {
                    self.pin(core, upstream);
                    return self.pinned_command(core, raw, args, Some(spec));
                }
                let worker = Rc::clone(&self.worker);
                core.pending = Some(Box::pin(async move {
                    let wait = worker.options().reconnect_wait;
                    Outcome::Pinned(dial_patiently(&worker, &key, false, wait).await)
                }));
                Step::Wait
            }
        }
    }

    /// How a command of this client goes.
    pub(super) fn lane_of(&self, spec: &'static Spec, args: &[&[u8]]) -> Route {
        match command::route(spec, args).1 {
            Route::Refused if is_replication(spec) && self.worker.options().listen.allow_replicas => {
                Route::Pinned(Pin::Other)
            }
            lane => lane,
        }
    }

    /// Says that a command does not go through the gateway.
    pub(super) fn refuse(&self, core: &Core, spec: &Spec) {
        let name = spec.name.to_ascii_uppercase();
        let or = if is_replication(spec) { ", or set listen.allow_replicas" } else { "" };
        if self.wants_replies(core) {
            self.reply(|out| {
                write::error(
                    out,
                    format!(
                        "ERR {name} is not available through the gateway; connect to the server itself{or}"
                    ),
                );
            });
        }
    }

    fn share(self: &Rc<Self>, core: &mut Core, raw: &[u8]) -> Step {
        let discard = core.reply_mode != ReplyMode::On;
        self.push(core, raw, 1, discard);
        Step::Done
    }

    pub(super) fn pin(&self, core: &mut Core, upstream: Upstream) {
        self.entry.connection.set(upstream.key.side, upstream.client_id);
        self.entry.connected.notify_waiters();
        self.worker.count_pinned(1);
        core.pinned = Some(Box::new(Pinned::new(upstream)));
    }

    /// A command that the table does not have, a module's perhaps: the server says what it is.
    fn look_up(self: &Rc<Self>, core: &mut Core, name: &[u8]) -> Step {
        let key = Key::new(self.worker.active.get(), core.identity.clone());
        let worker = Rc::clone(&self.worker);
        let name = name.to_vec();
        core.pending = Some(Box::pin(async move { Outcome::LookedUp(look_up(&worker, &key, name).await) }));
        Step::Wait
    }

    /// Asks the server whether it wants a password from a client that sent `error` without one: what is known may be old.
    pub(super) fn ask_whether_locked(self: &Rc<Self>, core: &mut Core, error: ProtocolError) {
        let key = Key::new(self.worker.active.get(), Identity::default());
        let worker = Rc::clone(&self.worker);
        core.pending = Some(Box::pin(async move {
            let wait = worker.options().reconnect_wait;
            let dialled = dial_patiently(&worker, &key, false, wait).await;
            Outcome::Stranger { error, dialled }
        }));
    }

    /// A step of a scan, on a connection of its own for as long as it takes: its reply is changed.
    fn scan(self: &Rc<Self>, core: &mut Core, args: &[&[u8]], at: usize) -> Step {
        if self.inflight.get() > 0 {
            return Step::Wait;
        }
        let epoch = self.worker.epoch.get();
        let command = cursors::command_for_server(args, at, epoch);
        let key = Key::new(self.worker.active.get(), core.identity.clone());
        let worker = Rc::clone(&self.worker);
        let discard = core.reply_mode != ReplyMode::On;
        core.pending = Some(Box::pin(async move {
            let reply = ask_aside(&worker, &key, &command).await;
            let reply = reply.map(|reply| cursors::for_client(&reply, epoch).map_or(reply, Bytes::from));
            Outcome::Answered { reply, discard }
        }));
        Step::Done
    }

    /// Asks the server whether it accepts this identity; its answer is the client's.
    pub(super) fn ask_identity(self: &Rc<Self>, core: &mut Core, identity: Identity, answer: Answer) -> Step {
        let key = Key::new(self.worker.active.get(), identity.clone());
        let worker = Rc::clone(&self.worker);
        let hello = matches!(answer, Answer::Hello(_));
        let discard = core.reply_mode != ReplyMode::On;
        core.pending = Some(Box::pin(async move {
            let wait = worker.options().reconnect_wait;
            let dialled = dial_patiently(&worker, &key, hello, wait).await;
            Outcome::Identity { identity, answer, dialled, discard }
        }));
        Step::Done
    }

    /// The server agreed to HELLO: the client has its name, and this is its reply.
    pub(super) fn greet(&self, raw: &[u8], name: Option<Bytes>) -> Option<Vec<u8>> {
        if let Some(name) = name {
            *self.entry.name.lock() = name;
        }
        hello_reply(raw, self.entry.id)
    }

    /// Asks the server whether this user may send `probe`, and answers `args` if so.
    pub(super) fn ask_leave(self: &Rc<Self>, core: &mut Core, args: &[&[u8]], probe: &[&[u8]]) -> Step {
        let mut command = BytesMut::new();
        write::command(&mut command, probe);
        let key = Key::new(self.worker.active.get(), core.identity.clone());
        let worker = Rc::clone(&self.worker);
        let discard = core.reply_mode != ReplyMode::On;
        let args = args.iter().map(|arg| arg.to_vec()).collect();
        core.pending = Some(Box::pin(async move {
            let reply = ask_aside(&worker, &key, &command).await;
            Outcome::Leave { args, reply, discard }
        }));
        Step::Done
    }

    /// Asks the server whether it serves clients that have given no password.
    pub(super) fn ask_admission(self: &Rc<Self>, core: &mut Core) -> Step {
        let key = Key::new(self.worker.active.get(), core.identity.clone());
        let worker = Rc::clone(&self.worker);
        core.pending =
            Some(Box::pin(async move { Outcome::Admission(ask_aside(&worker, &key, PING).await) }));
        Step::Wait
    }

    /// Has a command answered on a connection that nobody uses afterwards.
    pub(super) fn ask_apart(self: &Rc<Self>, core: &mut Core, raw: &[u8]) -> Step {
        let key = Key::new(self.worker.active.get(), core.identity.clone());
        let worker = Rc::clone(&self.worker);
        let command = Bytes::copy_from_slice(raw);
        let discard = core.reply_mode != ReplyMode::On;
        core.pending = Some(Box::pin(async move {
            let reply = match dial_patiently(&worker, &key, false, worker.options().reconnect_wait).await {
                Ok(mut upstream) => {
                    ask_on(&mut upstream, &command).await.map_err(|cause| lost(key.side, cause))
                }
                Err(error) => Err(error),
            };
            Outcome::Answered { reply, discard }
        }));
        Step::Done
    }

    /// Goes on after something was waited for.
    pub(super) fn settle(self: &Rc<Self>, core: &mut Core, outcome: Outcome) {
        match outcome {
            Outcome::Admission(Ok(line)) if !line.starts_with(b"-NOAUTH") => self.worker.anonymous.set(true),
            Outcome::Admission(Ok(line) | Err(DialError::Refused(line))) => core.denied = Some(line),
            Outcome::LookedUp(Ok(is_known)) => core.unnamed = !is_known,
            // Its own connection answers for the server, and a transaction must hear of the command.
            Outcome::LookedUp(Err(_)) if core.pinned.is_some() => core.unnamed = true,
            Outcome::Stranger { dialled: Ok(upstream), .. } if !upstream.locked => {
                self.worker.note_anonymous(&upstream);
                self.worker.give_pooled(upstream);
            }
            Outcome::Stranger { dialled: Err(DialError::Lost(error)), .. } => {
                self.give_up(&error, false);
                self.closing.set(Closing::AfterReplies);
            }
            Outcome::Stranger { error, .. } => {
                self.reply(|out| write::error(out, format!("ERR {error}")));
                self.closing.set(Closing::AfterReplies);
            }
            Outcome::Answered { reply: Ok(reply), discard } => {
                if reply.starts_with(b"-") {
                    self.worker.count_errors(1);
                }
                if !discard {
                    self.send(&reply);
                }
            }
            Outcome::Leave { args, reply: Ok(reply), discard } => {
                let refusals = [b"-NOPERM".as_slice(), b"-NOAUTH", b"-ERR No such user"];
                if refusals.iter().any(|refusal| reply.starts_with(refusal)) {
                    self.worker.count_errors(1);
                    if !discard {
                        self.send(&reply);
                    }
                } else {
                    let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
                    let answer = local::about_others(self, &args, Self::proto(core));
                    if !discard {
                        self.send(&answer);
                    }
                }
            }
            Outcome::Named => core.target_asked = true,
            Outcome::Awaited(Err(error)) => {
                tracing::info!(client = %self.entry.addr, "the invalidations of another client cannot go to this one: {error}");
                self.entry.redirected_to.store(false, Ordering::SeqCst);
                self.entry.connected.notify_waiters();
            }
            Outcome::Pinned(Ok(upstream)) | Outcome::Awaited(Ok(upstream)) => {
                if upstream.key.side == self.worker.active.get() {
                    self.pin(core, upstream);
                }
            }
            Outcome::Identity { identity, answer, dialled: Ok(upstream), discard } => {
                match answer {
                    Answer::Ok if discard => {}
                    Answer::Ok => self.reply(write::ok),
                    Answer::Hello(name) => {
                        let raw = upstream.hello.as_deref().unwrap_or_default();
                        match self.greet(raw, name) {
                            Some(_) if discard => {}
                            Some(reply) => self.send(&reply),
                            None => self.closing.set(Closing::Now),
                        }
                    }
                }
                self.change_identity(core, identity);
                self.worker.give_pooled(upstream);
            }
            Outcome::Pinned(Err(DialError::Refused(line)))
            | Outcome::LookedUp(Err(DialError::Refused(line))) => {
                if self.wants_replies(core) {
                    self.send(&line);
                }
                self.worker.count_errors(1);
                self.pass_front(core);
            }
            Outcome::Answered { reply: Err(DialError::Refused(line)), discard }
            | Outcome::Leave { reply: Err(DialError::Refused(line)), discard, .. }
            | Outcome::Identity { dialled: Err(DialError::Refused(line)), discard, .. } => {
                if !discard {
                    self.send(&line);
                }
                self.worker.count_errors(1);
            }
            Outcome::Pinned(Err(DialError::Lost(error)))
            | Outcome::Admission(Err(DialError::Lost(error)))
            | Outcome::LookedUp(Err(DialError::Lost(error))) => {
                self.give_up(&error, !self.wants_replies(core));
                self.pass_front(core);
            }
            Outcome::Answered { reply: Err(DialError::Lost(error)), discard }
            | Outcome::Leave { reply: Err(DialError::Lost(error)), discard, .. }
            | Outcome::Identity { dialled: Err(DialError::Lost(error)), discard, .. } => {
                self.give_up(&error, discard);
            }
        }
        if self.worker.gate_closed() {
            self.worker.progress.notify_one();
        }
    }

    /// The server stayed away for longer than a command waits.
    fn give_up(&self, error: &Error, discard: bool) {
        tracing::warn!(client = %self.entry.addr, "a command was not run, since its server stayed away: {error}");
        self.worker.count_errors(1);
        if !discard {
            self.send(&stayed_away(error.side, self.worker.options().reconnect_wait));
        }
    }
}

/// What a replica says.
fn is_replication(spec: &Spec) -> bool {
    matches!(spec.name, "psync" | "sync" | "replconf")
}

fn is_reply_skip(args: &[&[u8]]) -> bool {
    args.len() == 3 && args[1].eq_ignore_ascii_case(b"reply") && args[2].eq_ignore_ascii_case(b"skip")
}

/// The server's HELLO reply with the client's id at the gateway in place of the connection's id. Whatever else it holds is passed
/// on as it came: newer servers name their modules, and more.
fn hello_reply(raw: &[u8], id: u64) -> Option<Vec<u8>> {
    const FIELD: &[u8] = b"$2\r\nid\r\n:";
    let number = memchr::memmem::find(raw, FIELD)? + FIELD.len();
    let end = number + memchr::memchr(b'\r', raw.get(number..)?)?;
    Some([&raw[..number], id.to_string().as_bytes(), &raw[end..]].concat())
}

/// COMMAND INFO; whether the server answered it. Without an answer the command stays unknown for this time: a user may not
/// be allowed to ask.
async fn look_up(worker: &Worker, key: &Key, name: Vec<u8>) -> Result<bool, DialError> {
    let mut command = BytesMut::new();
    write::command(&mut command, &[b"COMMAND".as_slice(), b"INFO", &name]);
    let answer = ask_aside(worker, key, &command).await?;
    if let Ok(Some((reply, _))) = value::decode(&answer) {
        worker.shared.unknown.learn(&name, &reply);
    }
    Ok(worker.shared.unknown.get(&name).is_some())
}

/// One command that changes nothing, and its reply, on a connection of the pool; once more on a new one if that broke.
pub(super) async fn ask_aside(worker: &Worker, key: &Key, command: &[u8]) -> Result<Bytes, DialError> {
    let wait = worker.options().reconnect_wait;
    let pooled = worker.take_pooled(key);
    let mut again = pooled.is_some();
    let mut upstream = match pooled {
        Some(upstream) => upstream,
        None => dial_patiently(worker, key, false, wait).await?,
    };
    loop {
        match ask_on(&mut upstream, command).await {
            Ok(answer) => {
                worker.give_pooled(upstream);
                return Ok(answer);
            }
            Err(_) if again => {
                again = false;
                upstream = dial_patiently(worker, key, false, wait).await?;
            }
            Err(cause) => {
                return Err(lost(key.side, cause));
            }
        }
    }
}

fn lost(side: Active, cause: std::io::Error) -> DialError {
    DialError::Lost(Error::passing(side_of(side), "the connection was lost").because(cause))
}

/// One command and its reply on a connection that nobody else uses.
pub(super) async fn ask_on(upstream: &mut Upstream, command: &[u8]) -> std::io::Result<Bytes> {
    let mut buf = BytesMut::new();
    upstream.stream.write_all(command).await?;
    upstream.stream.flush().await?;
    read_reply(&mut upstream.stream, &mut buf).await
}

/// The credentials of `AUTH password` or `AUTH user password`.
pub(super) fn credentials(args: &[&[u8]]) -> Option<Rc<Credentials>> {
    let (user, password) = match args {
        [password] => (None, *password),
        [user, password] => (Some(Bytes::copy_from_slice(user)), *password),
        _ => return None,
    };
    Some(Rc::new(Credentials { user, password: Bytes::copy_from_slice(password) }))
}
