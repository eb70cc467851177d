//! Commands that the gateway itself answers: they speak of the client's connection, which ends here.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::cluster;
use super::registry::{ClientEntry, ClientType};
use super::session::{Closing, Core, ReplyMode, Session};
use super::special::{Answer, Step, credentials};
use super::upstream::{Credentials, Identity};
use crate::resp::write::{self, Proto};

/// Answers `args`. Everything that was asked before has been answered.
pub(super) fn answer(session: &Rc<Session>, core: &mut Core, name: &str, raw: &[u8], args: &[&[u8]]) -> Step {
    let is_for_anybody = matches!(name, "quit" | "reset" | "auth" | "hello");
    if !is_for_anybody && core.identity.credentials.is_none() && !session.worker.anonymous.get() {
        let Some(line) = core.denied.take() else { return session.ask_admission(core) };
        session.worker.count_errors(1);
        return say(session, core, |out| out.extend_from_slice(&line));
    }
    match name {
        "quit" => {
            session.closing.set(Closing::AfterReplies);
            say(session, core, write::ok)
        }
        "reset" => {
            reset(session, core);
            Step::Done
        }
        "select" => select(session, core, raw, args),
        "auth" => auth(session, core, args),
        "hello" => hello(session, core, args),
        "client" => client(session, core, raw, args),
        "cluster" => cluster::answer(session, core, raw, args),
        // Cluster modes of a connection: the gateway is one node and follows no redirections.
        "readonly" | "readwrite" | "asking" => say(session, core, write::ok),
        _ => say(session, core, |out| write::error(out, format!("ERR unknown command '{name}'"))),
    }
}

/// Replies, unless the client asked not to be answered.
pub(super) fn say(session: &Session, core: &Core, write: impl FnOnce(&mut Vec<u8>)) -> Step {
    if core.reply_mode == ReplyMode::On {
        session.reply(write);
    }
    Step::Done
}

fn wrong_arguments(session: &Session, core: &Core, name: &str) -> Step {
    say(session, core, |out| write::error(out, format!("ERR wrong number of arguments for '{name}' command")))
}

/// RESET: the connection as if it were new.
pub(super) fn reset(session: &Rc<Session>, core: &mut Core) {
    core.reply_mode = ReplyMode::On;
    core.watch_lost = false;
    *session.entry.name.lock() = Bytes::new();
    session.change_identity(core, Identity::default());
    session.reply(|out| write::simple(out, "RESET"));
}

fn select(session: &Rc<Session>, core: &mut Core, raw: &[u8], args: &[&[u8]]) -> Step {
    let [_, index] = args else { return wrong_arguments(session, core, "select") };
    let Some(index) = std::str::from_utf8(index).ok().and_then(|text| text.parse::<i64>().ok()) else {
        return say(session, core, |out| write::error(out, "ERR value is not an integer or out of range"));
    };
    let Ok(db) = u32::try_from(index) else {
        return say(session, core, |out| write::error(out, "ERR DB index is out of range"));
    };
    let identity = Identity { db, ..core.identity.clone() };
    if db == core.identity.db {
        // Nothing changes on the lane, and the server says what it says to this user.
        session.push(core, raw, 1, core.reply_mode != ReplyMode::On);
        return Step::Done;
    }
    if session.worker.has_lane(&identity) {
        session.change_identity(core, identity);
        return say(session, core, write::ok);
    }
    session.ask_identity(core, identity, Answer::Ok)
}

fn auth(session: &Rc<Session>, core: &mut Core, args: &[&[u8]]) -> Step {
    match credentials(&args[1..]) {
        Some(credentials) => {
            let identity = Identity { credentials: Some(credentials), ..core.identity.clone() };
            session.ask_identity(core, identity, Answer::Ok)
        }
        None if args.len() < 2 => wrong_arguments(session, core, "auth"),
        None => say(session, core, |out| write::error(out, "ERR syntax error")),
    }
}

fn hello(session: &Rc<Session>, core: &mut Core, args: &[&[u8]]) -> Step {
    match hello_options(&core.identity, args) {
        Ok((identity, name)) => session.ask_identity(core, identity, Answer::Hello(name)),
        Err(text) => say(session, core, |out| write::error(out, text.as_bytes())),
    }
}

/// Who a client will be, and its name if it sets one, when the server agrees to this HELLO; or the error that Redis gives.
pub(super) fn hello_options(
    now: &Identity,
    args: &[&[u8]],
) -> Result<(Identity, Option<Bytes>), Cow<'static, str>> {
    let mut identity = now.clone();
    let mut rest = &args[1..];
    if let Some((version, options)) = rest.split_first() {
        match *version {
            b"2" => identity.resp3 = false,
            b"3" => identity.resp3 = true,
            other => {
                let number = std::str::from_utf8(other).ok().and_then(|text| text.parse::<i64>().ok());
                return Err(match number {
                    Some(_) => "NOPROTO unsupported protocol version".into(),
                    None => "ERR Protocol version is not an integer or out of range".into(),
                });
            }
        }
        rest = options;
    }
    let mut name = None;
    while let Some((option, values)) = rest.split_first() {
        match values {
            [user, password, more @ ..] if option.eq_ignore_ascii_case(b"auth") => {
                identity.credentials = Some(Rc::new(Credentials {
                    user: Some(Bytes::copy_from_slice(user)),
                    password: Bytes::copy_from_slice(password),
                }));
                rest = more;
            }
            [value, more @ ..] if option.eq_ignore_ascii_case(b"setname") => {
                if !is_name(value) {
                    return Err(BAD_NAME.into());
                }
                name = Some(Bytes::copy_from_slice(value));
                rest = more;
            }
            _ => {
                let option = String::from_utf8_lossy(option).into_owned();
                return Err(format!("ERR Syntax error in HELLO option '{option}'").into());
            }
        }
    }
    Ok((identity, name))
}

const BAD_NAME: &str = "ERR Client names cannot contain spaces, newlines or special characters.";

fn is_name(name: &[u8]) -> bool {
    name.iter().all(|byte| (b'!'..=b'~').contains(byte))
}

fn client(session: &Rc<Session>, core: &mut Core, raw: &[u8], args: &[&[u8]]) -> Step {
    let Some(sub) = args.get(1) else { return wrong_arguments(session, core, "client") };
    let sub = sub.to_ascii_lowercase();
    let entry = &session.entry;
    match (sub.as_slice(), &args[2..]) {
        (b"id", []) => say(session, core, |out| write::integer(out, entry.id as i64)),
        (b"getname", []) => {
            let name = entry.name.lock().clone();
            let proto = Session::proto(core);
            say(session, core, |out| {
                if name.is_empty() { write::null(out, proto) } else { write::bulk(out, &name) }
            })
        }
        (b"setname", [name]) => {
            if !is_name(name) {
                return say(session, core, |out| write::error(out, BAD_NAME));
            }
            *entry.name.lock() = Bytes::copy_from_slice(name);
            say(session, core, write::ok)
        }
        (b"setinfo", [attribute, value]) => {
            if !is_name(value) {
                return say(session, core, |out| {
                    write::error(
                        out,
                        "ERR lib-name and lib-ver cannot contain spaces, newlines or special characters.",
                    );
                });
            }
            let value = Bytes::copy_from_slice(value);
            if attribute.eq_ignore_ascii_case(b"lib-name") {
                *entry.lib_name.lock() = value;
            } else if attribute.eq_ignore_ascii_case(b"lib-ver") {
                *entry.lib_ver.lock() = value;
            } else {
                let attribute = String::from_utf8_lossy(attribute).into_owned();
                return say(session, core, |out| {
                    write::error(out, format!("ERR Unrecognized option '{attribute}'"))
                });
            }
            say(session, core, write::ok)
        }
        (b"info", []) => {
            let line = entry.line(Instant::now());
            let proto = Session::proto(core);
            say(session, core, |out| write::verbatim(out, proto, line.as_bytes()))
        }
        // They reach other clients: only a user whom the server would let do so may.
        (b"list", _) => session.ask_leave(core, args, &[b"CLIENT", b"LIST", b"ID", NOBODY]),
        (b"kill", filters @ [_, ..]) => session.ask_leave(core, args, &kill_probe(filters)),
        // It marks the connection, which would be everybody's lane.
        (b"capa", _) => session.ask_apart(core, raw),
        (b"reply", [mode]) => reply_mode(session, core, mode),
        (b"unblock", [id, mode @ ..]) if mode.len() <= 1 => unblock(session, core, id, mode),
        // What is left speaks of the server: PAUSE, HELP, wrong arguments.
        _ => {
            session.push(core, raw, 1, core.reply_mode != ReplyMode::On);
            Step::Done
        }
    }
}

fn reply_mode(session: &Session, core: &mut Core, mode: &[u8]) -> Step {
    match mode.to_ascii_lowercase().as_slice() {
        b"on" => {
            core.reply_mode = ReplyMode::On;
            session.reply(write::ok);
        }
        b"off" => core.reply_mode = ReplyMode::Off,
        b"skip" if core.reply_mode == ReplyMode::On => core.reply_mode = ReplyMode::Skip,
        b"skip" => {}
        _ => return say(session, core, |out| write::error(out, "ERR syntax error")),
    }
    Step::Done
}

pub(super) fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn unknown_type(value: &[u8]) -> Cow<'static, str> {
    format!("ERR Unknown client type '{}'", String::from_utf8_lossy(value)).into()
}

/// An id that no client has.
const NOBODY: &[u8] = b"9223372036854775807";

/// A CLIENT KILL with these conditions that ends nobody: the server says whether this user may ask.
pub(super) fn kill_probe<'a>(filters: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let mut probe = vec![b"CLIENT".as_slice(), b"KILL", b"ID", NOBODY];
    // Which users there are, only the server knows.
    let named = filters.chunks_exact(2).find(|pair| pair[0].eq_ignore_ascii_case(b"user"));
    probe.extend(named.into_iter().flatten());
    probe
}

/// The gateway's answer within that of EXEC. The server has queued the command, or what stood in for it, and run it.
pub(super) fn answer_within(session: &Rc<Session>, core: &mut Core, words: &[Bytes], shown: bool) {
    let args: Vec<&[u8]> = words.iter().map(|word| word.as_ref()).collect();
    let mode = std::mem::replace(&mut core.reply_mode, if shown { ReplyMode::On } else { ReplyMode::Off });
    let is = |at: usize, word: &[u8]| args.get(at).is_some_and(|arg| arg.eq_ignore_ascii_case(word));
    if is(0, b"cluster") {
        cluster::answer(session, core, b"", &args);
    } else if is(1, b"list") || is(1, b"kill") {
        let answer = about_others(session, &args, Session::proto(core));
        say(session, core, |out| out.extend_from_slice(&answer));
    } else {
        client(session, core, b"", &args);
    }
    core.reply_mode = mode;
}

/// The answer to CLIENT LIST or CLIENT KILL from a user who may ask.
pub(super) fn about_others(session: &Session, args: &[&[u8]], proto: Proto) -> Vec<u8> {
    let mut out = Vec::new();
    let (sub, filters) = (args[1], &args[2..]);
    if sub.eq_ignore_ascii_case(b"list") {
        match list(session, filters, proto) {
            Ok(text) => out = text,
            Err(text) => write::error(&mut out, text.as_bytes()),
        }
    } else {
        match kill(session, filters) {
            Ok(Some(killed)) => write::integer(&mut out, killed),
            Ok(None) => write::ok(&mut out),
            Err(text) => write::error(&mut out, text.as_bytes()),
        }
    }
    out
}

fn list(session: &Session, filters: &[&[u8]], proto: Proto) -> Result<Vec<u8>, Cow<'static, str>> {
    let keep: Box<dyn Fn(&ClientEntry) -> bool> = match filters {
        [] => Box::new(|_| true),
        [kind, value] if kind.eq_ignore_ascii_case(b"type") => {
            let wanted = ClientType::parse(value).ok_or_else(|| unknown_type(value))?;
            Box::new(move |entry| entry.kind() == wanted)
        }
        [kind, ids @ ..] if kind.eq_ignore_ascii_case(b"id") && !ids.is_empty() => {
            let mut wanted = Vec::new();
            for id in ids {
                match number(id) {
                    Some(id) => wanted.push(id),
                    None => return Err("ERR Invalid client ID".into()),
                }
            }
            Box::new(move |entry| wanted.contains(&entry.id))
        }
        _ => return Err("ERR syntax error".into()),
    };
    let now = Instant::now();
    let text: String = session
        .worker
        .shared
        .registry
        .all()
        .iter()
        .filter(|entry| keep(entry))
        .map(|entry| entry.line(now))
        .collect();
    let mut out = Vec::new();
    write::verbatim(&mut out, proto, text.as_bytes());
    Ok(out)
}

/// The conditions of CLIENT KILL. Of each kind the last counts.
#[derive(Default)]
struct Filter<'a> {
    id: Option<u64>,
    addr: Option<&'a [u8]>,
    laddr: Option<&'a [u8]>,
    user: Option<&'a [u8]>,
    kind: Option<ClientType>,
    /// In seconds; so old, or older.
    max_age: Option<u64>,
    /// Whoever asks is meant as well.
    and_me: bool,
}

impl<'a> Filter<'a> {
    fn parse(words: &[&'a [u8]]) -> Result<Self, Cow<'static, str>> {
        let mut filter = Self::default();
        let pairs = words.chunks_exact(2);
        if !pairs.remainder().is_empty() || words.is_empty() {
            return Err("ERR syntax error".into());
        }
        for pair in pairs {
            let value = pair[1];
            match pair[0].to_ascii_lowercase().as_slice() {
                b"id" => match number(value) {
                    Some(id) if id > 0 => filter.id = Some(id),
                    _ => return Err("ERR client-id should be greater than 0".into()),
                },
                b"addr" => filter.addr = Some(value),
                b"laddr" => filter.laddr = Some(value),
                b"user" => filter.user = Some(value),
                b"type" => filter.kind = Some(ClientType::parse(value).ok_or_else(|| unknown_type(value))?),
                b"skipme" if value.eq_ignore_ascii_case(b"yes") => filter.and_me = false,
                b"skipme" if value.eq_ignore_ascii_case(b"no") => filter.and_me = true,
                b"maxage" => match std::str::from_utf8(value).ok().and_then(|age| age.parse::<i64>().ok()) {
                    Some(age) if age > 0 => filter.max_age = Some(age.unsigned_abs()),
                    Some(_) => return Err("ERR maxage should be greater than 0".into()),
                    None => return Err("ERR maxage is not an integer or out of range".into()),
                },
                _ => return Err("ERR syntax error".into()),
            }
        }
        Ok(filter)
    }

    fn means(&self, entry: &ClientEntry) -> bool {
        self.id.is_none_or(|id| entry.id == id)
            && self.addr.is_none_or(|addr| entry.addr.as_bytes() == addr)
            && self.laddr.is_none_or(|laddr| entry.laddr.as_bytes() == laddr)
            && self.user.is_none_or(|user| entry.user.lock().as_ref() == user)
            && self.kind.is_none_or(|kind| entry.kind() == kind)
            && self.max_age.is_none_or(|age| entry.since.elapsed().as_secs() >= age)
    }
}

/// How many clients it ends; `None` for the old form, which says OK.
fn kill(session: &Session, words: &[&[u8]]) -> Result<Option<i64>, Cow<'static, str>> {
    let all = session.worker.shared.registry.all();
    let end = |entry: &ClientEntry| {
        if entry.id == session.entry.id {
            session.closing.set(Closing::AfterReplies);
        } else {
            entry.kill();
        }
    };
    if let [address] = words {
        // The old form kills exactly one client, by its address.
        let found = all.iter().find(|entry| entry.addr.as_bytes() == *address);
        end(found.ok_or("ERR No such client")?);
        return Ok(None);
    }
    let filter = Filter::parse(words)?;
    let is_meant =
        |entry: &&Arc<ClientEntry>| filter.means(entry) && (filter.and_me || entry.id != session.entry.id);
    let killed = all.iter().filter(is_meant).inspect(|entry| end(entry)).count();
    Ok(Some(killed as i64))
}

/// CLIENT UNBLOCK names a client of the gateway; the server knows the connection that blocks for it.
fn unblock(session: &Rc<Session>, core: &mut Core, id: &[u8], mode: &[&[u8]]) -> Step {
    let Some(id) = number(id) else {
        return say(session, core, |out| write::error(out, "ERR value is not an integer or out of range"));
    };
    let server_id = session.worker.shared.registry.connection_of(id, session.worker.active.get());
    if server_id == 0 {
        return say(session, core, |out| write::integer(out, 0));
    }
    let server_id = server_id.to_string();
    let mut command = vec![b"CLIENT".as_slice(), b"UNBLOCK", server_id.as_bytes()];
    command.extend(mode);
    let mut bytes = Vec::new();
    write::command(&mut bytes, &command);
    session.push(core, &bytes, 1, core.reply_mode != ReplyMode::On);
    Step::Done
}
