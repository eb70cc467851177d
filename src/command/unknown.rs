//! Commands that are not in the table: those of modules, and of servers newer than it.
//!
//! The server that has to run them is asked with `COMMAND INFO`, once per name. What it answers becomes a
//! [`Spec`] for as long as the process lives; that it does not know the name is remembered too. The number
//! of names is bounded, since clients choose them.

use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use parking_lot::Mutex;

use super::keys::{Begin, Find, KeySpec, Movable, access, spec as key_spec};
use super::{Effect, Kind, Lane, Pin, Spec, Switch, attributes, flags};
use crate::resp::value::Value;

/// Names longer than this are nobody's command.
const LONGEST_NAME: usize = 64;
/// Names that are remembered at most.
const MOST_NAMES: usize = 4096;

/// What the servers said about commands that the table does not have.
#[derive(Debug, Default)]
pub struct Unknown {
    known: DashMap<Box<[u8]>, Option<&'static Spec>>,
    count: AtomicUsize,
}

impl Unknown {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was learned of `name`: outer `None` when nobody asked yet, inner `None` when no server knows it.
    pub fn get(&self, name: &[u8]) -> Option<Option<&'static Spec>> {
        if name.len() > LONGEST_NAME {
            return Some(None);
        }
        let learned = self.known.get(name.to_ascii_lowercase().as_slice()).map(|found| *found);
        if learned.is_none() && self.count.load(Ordering::Relaxed) >= MOST_NAMES {
            return Some(None);
        }
        learned
    }

    /// Remembers the reply to `COMMAND INFO name`, and answers what [`Self::get`] will.
    pub fn learn(&self, name: &[u8], reply: &Value) -> Option<&'static Spec> {
        if let Some(known) = self.get(name) {
            return known;
        }
        let name = name.to_ascii_lowercase();
        let row = match reply {
            Value::Array(rows) => rows.first(),
            _ => return None,
        };
        let spec = row.and_then(|row| from_info(&name, row)).map(|spec| &*Box::leak(Box::new(spec)));
        self.known.insert(name.into_boxed_slice(), spec);
        self.count.fetch_add(1, Ordering::Relaxed);
        spec
    }

    /// Forgets the names that no server knew: another server may.
    pub fn forget_missing(&self) {
        self.known.retain(|_, spec| spec.is_some());
        self.count.store(self.known.len(), Ordering::Relaxed);
    }
}

/// The names of all that was learned, in the order of their numbers.
static LEARNED: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

/// A number for a command that is not in the table; 0 if there are too many.
fn number(name: &'static str) -> u16 {
    let mut learned = LEARNED.lock();
    let Ok(number) = u16::try_from(super::table::ROWS.len() + learned.len() + 1) else { return 0 };
    learned.push(name);
    number
}

/// The name with this place among the learned ones.
pub(super) fn name_at(at: usize) -> Option<&'static str> {
    LEARNED.lock().get(at).copied()
}

/// A row of COMMAND INFO: name, arity, flags, first key, last key, step, and more from 6.0 on.
fn from_info(name: &[u8], row: &Value) -> Option<Spec> {
    let row = row.as_array()?;
    let name: &'static str = Box::leak(std::str::from_utf8(name).ok()?.to_owned().into_boxed_str());
    let arity = i16::try_from(row.get(1)?.as_i64()?).ok()?;
    let mut bits = 0;
    for flag in row.get(2)?.as_array()? {
        bits |= match flag.as_str().unwrap_or_default() {
            "write" => flags::WRITE,
            "readonly" => flags::READONLY,
            "denyoom" => flags::DENYOOM,
            "admin" => flags::ADMIN,
            "pubsub" => flags::PUBSUB,
            "noscript" => flags::NOSCRIPT,
            "blocking" => flags::BLOCKING,
            "loading" => flags::LOADING,
            "stale" => flags::STALE,
            "fast" => flags::FAST,
            "no_auth" => flags::NO_AUTH,
            "allow_busy" => flags::ALLOW_BUSY,
            "movablekeys" => flags::MOVABLE,
            "no_multi" => flags::NO_MULTI,
            "module" => flags::MODULE,
            _ => 0,
        };
    }
    // Redis says with a flag what may wait since 7.0, with a category since 6.0. Before, what no script may run is taken for it:
    // BLPOP and its kin are among that, and whoever sends one has a connection of its own, that is all.
    let may_wait = match row.get(6).and_then(Value::as_array) {
        Some(categories) => categories.iter().any(|category| category.as_str() == Some("@blocking")),
        None => bits & flags::NOSCRIPT != 0,
    };
    if may_wait {
        bits |= flags::BLOCKING;
    }
    let position = |at: usize| row.get(at).and_then(Value::as_i64).and_then(|n| i16::try_from(n).ok());
    let (first, last, step) = (position(3)?, position(4)?, position(5)?);
    let mut keys: Vec<KeySpec> = Vec::new();
    if first > 0 {
        let last = if last >= 0 { last - first } else { last };
        let used = if bits & flags::READONLY != 0 { access::RO } else { access::RW };
        keys.push(key_spec(Begin::Index(first), Find::Range(last, step, 0), used));
    }
    // A server names its subcommands from 7.0 on; an unknown container may keep state on the connection.
    let container = row.get(9).and_then(Value::as_array).is_some_and(|subs| !subs.is_empty());
    let lane = if bits & flags::BLOCKING != 0 {
        Lane::Pinned(Pin::Blocking)
    } else if bits & flags::PUBSUB != 0 || (container && bits & flags::MODULE == 0) {
        Lane::Pinned(Pin::Other)
    } else {
        Lane::Shared
    };
    let kind = attributes::kind(name, bits);
    let effect = match kind {
        Kind::Write => Effect::Expiry,
        Kind::Admin if bits & flags::ADMIN != 0 => Effect::Node,
        _ => Effect::None,
    };
    Some(Spec {
        id: number(name),
        name,
        arity,
        flags: bits,
        kind,
        lane,
        effect,
        switch: if matches!(lane, Lane::Pinned(_)) { Switch::Carried } else { Switch::Finish },
        blocks: None,
        key_specs: Vec::leak(keys),
        movable: Movable::BySpec,
        subs: &[],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::value::decode;

    fn value(text: &str) -> Value {
        decode(text.as_bytes()).unwrap().unwrap().0
    }

    #[test]
    fn a_module_command_is_learned_once() {
        let cache = Unknown::new();
        assert_eq!(cache.get(b"JSON.SET").map(|s| s.is_some()), None);
        let reply =
            value("*1\r\n*6\r\n$8\r\njson.set\r\n:-4\r\n*2\r\n+write\r\n+module\r\n:1\r\n:1\r\n:1\r\n");
        let spec = cache.learn(b"JSON.SET", &reply).unwrap();
        assert_eq!(
            (spec.name, spec.arity, spec.kind, spec.lane),
            ("json.set", -4, Kind::Write, Lane::Shared)
        );
        assert_eq!(super::super::name_of(spec.id), Some("json.set"));
        assert_eq!(&*super::super::keys(spec, &["json.set", "k", "$", "1"]).unwrap(), &[1]);
        assert!(std::ptr::eq(cache.get(b"json.SET").unwrap().unwrap(), spec));
        assert!(cache.learn(b"nope", &value("*1\r\n*-1\r\n")).is_none());
        assert!(cache.get(b"nope").unwrap().is_none());
        cache.forget_missing();
        assert!(cache.get(b"nope").is_none());
        assert!(cache.get(b"json.set").unwrap().is_some());
    }

    #[test]
    fn what_may_wait_is_known_from_servers_of_all_ages() {
        let lane = |row: &str| Unknown::new().learn(b"take", &value(row)).unwrap().lane;
        let head = "$4\r\ntake\r\n:-3\r\n";
        for (flags, categories) in [
            ("*2\r\n+write\r\n+noscript\r\n", ""),
            ("*2\r\n+write\r\n+noscript\r\n", "*2\r\n+@list\r\n+@blocking\r\n"),
            ("*2\r\n+write\r\n+blocking\r\n", "*0\r\n"),
        ] {
            let fields = if categories.is_empty() { 6 } else { 7 };
            let row = format!("*1\r\n*{fields}\r\n{head}{flags}:1\r\n:-2\r\n:1\r\n{categories}");
            assert_eq!(lane(&row), Lane::Pinned(Pin::Blocking), "{row:?}");
        }
        let harmless = format!("*1\r\n*7\r\n{head}*1\r\n+noscript\r\n:0\r\n:0\r\n:0\r\n*1\r\n+@slow\r\n");
        assert_eq!(lane(&harmless), Lane::Shared);
    }

    #[test]
    fn names_are_bounded() {
        let cache = Unknown::new();
        let missing = value("*1\r\n*-1\r\n");
        for n in 0..MOST_NAMES + 10 {
            assert!(cache.learn(format!("x{n}").as_bytes(), &missing).is_none());
        }
        assert_eq!(cache.known.len(), MOST_NAMES);
        assert!(matches!(cache.get(b"another"), Some(None)));
        assert!(matches!(cache.get(&[b'x'; 65]), Some(None)));
    }
}
