//! Keys that are copied anew, at one place in the order of the stream: how a conflict, or a command that the destination
//! refuses, is resolved without leaving anything out.
//!
//! ```text
//! stream  ──────┬────────────────────────────┬──────────────▶
//!            position                     `until`
//!            of the destination           the offset at which the values were taken
//!                commands on held keys       here the values     from here on everything
//!                are passed over             are written         is applied
//! ```
//! The values, their expiries and the offset are taken in one MULTI, so a value is what the stream up to that offset has made
//! of the key: nothing is lost, and nothing is there twice. A command on a held key that also writes other keys cannot be applied
//! (what it reads is wrong here) and not be passed over (the others would lack it): those keys are held too, and all is taken
//! again, at a later offset.
//!
//! Which keys are to be copied is on disk before anything else happens, and stays there until the destination has confirmed the
//! values. After a crash in between, the values are taken again, at a later offset, and the commands up to there are passed
//! over: whatever the destination has of them is replaced as a whole.
//!
//! Where nobody can tell which keys a command changes (a script that a server before 5.0 sends as text, a command that is not in
//! the table), the mirror stops and says so.

use std::collections::HashSet;
use std::time::Duration;

use super::kinds::of_name;
use super::older::is_ours;
use super::select::Selection;
use super::transform::{Place, is_own};
use crate::command::{Access, Effect, each_key, lookup_call, other_db};
use crate::error::{Error, Result, Side};
use crate::resp::value::Value;
use crate::resp::write;
use crate::server::{Capabilities, Client, Clock, Endpoint, Info, passes};

/// Keys that are copied at once, at most: they are in memory until they are written.
const KEYS: usize = 1000;
/// Bytes of the largest of them, as the server counts them.
pub const LARGEST: i64 = 128 << 20;
/// For the answer with the values.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A value as DUMP gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dumped {
    /// For RESTORE.
    pub payload: Vec<u8>,
    /// Unix time in milliseconds.
    pub expires_at: Option<u64>,
}

/// What a key held when the values were taken; `None`: there was no such key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The key and its db.
    pub place: Place,
    /// Its value.
    pub value: Option<Dumped>,
}

/// Why the copy cannot go on as it was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stuck {
    /// These keys have to be held too.
    Missing(Vec<Place>),
    /// Nobody can tell what a command changes.
    Obstacle(String),
}

/// Keys that are held, and their values at one offset.
#[derive(Debug)]
pub struct Copying {
    /// The offset at which the values were taken.
    pub until: u64,
    /// The values.
    pub taken: Vec<Taken>,
    /// Set when a command came that the held keys do not allow.
    pub stuck: Option<Stuck>,
    held: HashSet<Place>,
}

impl Copying {
    /// Values that were taken at offset `until`.
    pub fn new(until: u64, taken: Vec<Taken>) -> Self {
        let held = taken.iter().map(|taken| taken.place.clone()).collect();
        Self { until, taken, stuck: None, held }
    }

    /// Whether a command that stands before the values is passed over. Look at [`Copying::stuck`] then.
    pub fn passes_over(&mut self, args: &[&[u8]], db: u32) -> bool {
        if args.first().is_some_and(|name| name.eq_ignore_ascii_case(b"SWAPDB")) {
            self.swapped(args);
            return false;
        }
        let places = match places(args, db) {
            Ok(places) => places,
            Err(why) => {
                self.stuck = Some(Stuck::Obstacle(why));
                return true;
            }
        };
        if !places.iter().any(|(place, _)| self.held.contains(place)) {
            return false;
        }
        self.needs(places.into_iter().filter(|(_, written)| *written).map(|(place, _)| place).collect());
        true
    }

    /// Databases change places: what is held on one side is wrong on the other afterwards.
    fn swapped(&mut self, args: &[&[u8]]) {
        let number = |at: usize| args.get(at).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        let (Some(one), Some(two)) = (number(1), number(2)) else { return };
        let other = |(db, key): &Place| match *db {
            db if db == one => Some((two, key.clone())),
            db if db == two => Some((one, key.clone())),
            _ => None,
        };
        self.needs(self.held.iter().filter_map(other).collect());
    }

    /// Whether all of these are held.
    pub fn holds(&self, places: &[Place]) -> bool {
        places.iter().all(|place| self.held.contains(place))
    }

    fn needs(&mut self, places: Vec<Place>) {
        let missing: Vec<Place> =
            places.into_iter().filter(|place| !is_own(&place.1) && !self.held.contains(place)).collect();
        if !missing.is_empty() {
            self.stuck = Some(Stuck::Missing(missing));
        }
    }
}

/// The keys of a command that changes something, and whether it may change each.
///
/// # Errors
/// It may change others too.
pub fn places(args: &[&[u8]], db: u32) -> Result<Vec<(Place, bool)>, String> {
    let name = args.first().copied().unwrap_or_default();
    let unknown = || format!("nobody can tell which keys {} changes", name.escape_ascii());
    let spec = lookup_call(args).ok_or_else(unknown)?;
    match spec.effect {
        Effect::None | Effect::Node | Effect::Publish | Effect::Scripts | Effect::Keyspace => {
            return Ok(Vec::new());
        }
        Effect::Any => {
            let ours = args.get(1).is_some_and(|text| is_ours(text));
            let key = args.get(3).filter(|_| ours);
            return key.map(|key| vec![((db, (*key).into()), true)]).ok_or_else(unknown);
        }
        Effect::Keys | Effect::Expiry => {}
    }
    if reads_by_pattern(args) {
        return Err(unknown());
    }
    let mut found: Vec<(Place, bool)> = Vec::new();
    each_key(spec, args, |at, access| {
        if let (Some(key), true) = (args.get(at), access != Access::Channel) {
            found.push(((db, Box::from(*key)), access == Access::Write));
        }
    })
    .map_err(|_| unknown())?;
    if let Some(at) = other_db(args) {
        let number = args.get(at).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        let there = number.ok_or_else(unknown)?;
        // The first key stays; the second has the name of the first (MOVE), or its own (COPY).
        let last = found.last().map(|((_, key), _)| key.clone()).ok_or_else(unknown)?;
        found.truncate(1);
        found.push(((there, last), true));
    }
    Ok(found)
}

/// Whether a command reads keys that are named by a pattern only: BY and GET of SORT.
pub fn reads_by_pattern(args: &[&[u8]]) -> bool {
    let sorts = args
        .first()
        .is_some_and(|name| name.eq_ignore_ascii_case(b"SORT") || name.eq_ignore_ascii_case(b"SORT_RO"));
    sorts && args.iter().skip(2).any(|word| word.contains(&b'*'))
}

/// Those of the keys that are small enough to be copied anew.
///
/// # Errors
/// The server cannot be reached.
pub async fn small(from: &Endpoint, keys: &[Place]) -> Result<Vec<Place>> {
    let mut client = Client::open(&Endpoint { db: 0, ..from.clone() }, Duration::from_secs(5)).await?;
    let sizes = sizes(&mut client, keys).await?;
    Ok(keys.iter().zip(sizes).filter(|(_, size)| *size <= LARGEST).map(|(key, _)| key.clone()).collect())
}

/// What keys take in memory, as far as the server tells: not before 4.0; then the timeout is the limit.
async fn sizes(client: &mut Client, keys: &[Place]) -> Result<Vec<i64>> {
    let (mut sizes, mut selected) = (Vec::with_capacity(keys.len()), 0);
    for (db, key) in keys {
        if *db != selected {
            client.command(&["SELECT", &db.to_string()]).await?;
            selected = *db;
        }
        sizes.push(client.call(&[&b"MEMORY"[..], b"USAGE", key]).await?.as_i64().unwrap_or(0));
    }
    Ok(sizes)
}

/// Which of the keys are of a type that is left out.
async fn left_out(client: &mut Client, keys: &[Place], select: Option<&Selection>) -> Result<Vec<bool>> {
    let Some(select) = select.filter(|select| select.has_types()) else { return Ok(vec![false; keys.len()]) };
    let mut out = Vec::new();
    for (db, key) in keys {
        write::command(&mut out, &["SELECT", &db.to_string()]);
        write::command(&mut out, &[&b"TYPE"[..], key]);
    }
    write::command(&mut out, &["SELECT", "0"]);
    let replies = client.pipeline(&out, 2 * keys.len() + 1).await?;
    if let Some(text) = replies.iter().find_map(Value::error) {
        let error = if passes(&text) { Error::passing } else { Error::new };
        return Err(error(client.side(), format!("the types of keys cannot be asked for: {text}"))
            .remedy("the gateway's user needs SELECT and TYPE there"));
    }
    let names = replies.iter().skip(1).step_by(2).map(|name| name.as_str().unwrap_or_default());
    Ok(names.map(|name| name != "none" && !select.keeps_type(of_name(name))).collect())
}

/// Takes the values of keys from the server whose stream is read, and the offset at which they are what they are. `replid`
/// names that stream. What is large and of a type that `select` leaves out is not read, and counts as none.
///
/// # Errors
/// Passing: it cannot be reached, or its stream is another by now. Lasting: it refuses, or they are too large.
pub async fn take(
    from: &Endpoint,
    keys: &[Place],
    select: Option<&Selection>,
    replid: Option<&str>,
) -> Result<Copying> {
    let side = from.side;
    let remedy =
        "leave it out with `crossfade resume --skip-failed`; the key differs until it is replaced as a whole";
    if keys.len() > KEYS {
        return Err(Error::new(side, format!("{} keys would have to be copied anew together", keys.len()))
            .remedy(remedy));
    }
    let mut client = Client::open(&Endpoint { db: 0, ..from.clone() }, Duration::from_secs(5)).await?;
    client.set_timeout(TIMEOUT);
    let exact = Capabilities::probe(&mut client).await?.pexpiretime;
    let mut outside = left_out(&mut client, keys, select).await?;
    for (((_, key), size), outside) in keys.iter().zip(sizes(&mut client, keys).await?).zip(&mut outside) {
        // The small ones are read all the same: their type is seen then, and may be another by that time.
        *outside &= size > LARGEST;
        if size > LARGEST && !*outside {
            let message = format!("key {:?} is too large to be copied anew", String::from_utf8_lossy(key));
            return Err(Error::new(side, message).remedy(remedy));
        }
    }
    let mut out = Vec::new();
    write::command(&mut out, &["MULTI"]);
    write::command(&mut out, &["INFO"]);
    write::command(&mut out, &["TIME"]);
    for ((db, key), outside) in keys.iter().zip(&outside) {
        write::command(&mut out, &["SELECT", &db.to_string()]);
        write::command(&mut out, &[if *outside { &b"TYPE"[..] } else { b"DUMP" }, key]);
        write::command(&mut out, &[if exact { &b"PEXPIRETIME"[..] } else { b"PTTL" }, key]);
    }
    write::command(&mut out, &["EXEC"]);
    let mut replies = client.pipeline(&out, 4 + 3 * keys.len()).await?;
    if let Some(text) = replies.iter().find_map(Value::error) {
        let error = if passes(&text) { Error::passing } else { Error::new };
        return Err(error(side, format!("its keys cannot be read to be copied anew: {text}"))
            .remedy("the gateway's user needs MULTI, INFO, TIME, SELECT, DUMP, PTTL and PEXPIRETIME there"));
    }
    let odd = || Error::passing(side, "MULTI with DUMP was answered with something else");
    let mut answers = replies.pop().and_then(Value::into_array).ok_or_else(odd)?;
    // Behind INFO and TIME there are three answers to a key.
    for at in (0..keys.len()).filter(|at| outside[*at]).map(|nth| 2 + 3 * nth + 1) {
        let answer = answers.get_mut(at).ok_or_else(odd)?;
        let Some(name) = answer.as_str().filter(|_| answer.error().is_none()) else { continue };
        if name != "none" && select.is_some_and(|select| select.keeps_type(of_name(name))) {
            return Err(Error::passing(side, "a key has changed its type while it was read"));
        }
        *answer = Value::Nil;
    }
    read(keys, replid, exact, answers, side)?.ok_or_else(odd)
}

/// `exact`: expiries are points in time. Otherwise what is left, which is off by a millisecond when TIME was answered in the one
/// before (from 7.0 on every command looks at the clock by itself, and earlier streams hold what is left too).
fn read(
    keys: &[Place],
    replid: Option<&str>,
    exact: bool,
    answers: Vec<Value>,
    side: Side,
) -> Result<Option<Copying>> {
    if let Some(text) = answers.iter().find_map(Value::error) {
        return Err(Error::new(side, format!("a key cannot be read to be copied anew: {text}")));
    }
    let mut answers = answers.into_iter();
    let (Some(info), Some(time)) = (answers.next(), answers.next()) else { return Ok(None) };
    let info = Info::parse(info.as_str().unwrap_or_default());
    // Before 4.0 the replication id is the run id.
    let theirs = info.get("master_replid").or_else(|| info.get("run_id"));
    if let (Some(ours), Some(theirs)) = (replid, theirs)
        && ours != theirs
    {
        return Err(Error::passing(side, "its replication stream is not the one that is read"));
    }
    let (Some(until), Some(time_ms)) = (info.u64("master_repl_offset"), Clock::read(&time)) else {
        return Ok(None);
    };
    // By the server's own clock, as the expiries in its stream are.
    let now_ms = if exact { 0 } else { time_ms };
    let mut taken = Vec::with_capacity(keys.len());
    for place in keys {
        let (Some(_), Some(dump), Some(left)) = (answers.next(), answers.next(), answers.next()) else {
            return Ok(None);
        };
        let left = left.as_i64().and_then(|ms| u64::try_from(ms).ok());
        let value = dump.as_bytes().map(|payload| Dumped {
            payload: payload.to_vec(),
            expires_at: left.map(|ms| now_ms.saturating_add(ms)),
        });
        taken.push(Taken { place: place.clone(), value });
    }
    Ok(Some(Copying::new(until, taken)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::batch::{BatchLimits, Collector};
    use crate::mirror::transform::{Dialect, Transform};

    fn place(db: u32, key: &str) -> Place {
        (db, key.as_bytes().into())
    }

    fn words(line: &str) -> Vec<&[u8]> {
        line.split(' ').map(str::as_bytes).collect()
    }

    fn stream(lines: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        for line in lines {
            write::command(&mut out, &words(line));
        }
        out
    }

    #[test]
    fn which_keys_a_command_touches() {
        let told = |line: &str| -> Vec<(u32, String, bool)> {
            let found = places(&words(line), 1).unwrap().into_iter();
            found.map(|((db, key), w)| (db, String::from_utf8_lossy(&key).into_owned(), w)).collect()
        };
        let key = |db: u32, key: &str, written: bool| (db, key.to_owned(), written);
        assert_eq!(told("SET a 1"), [key(1, "a", true)]);
        assert_eq!(told("RENAME a b"), [key(1, "a", true), key(1, "b", true)]);
        assert_eq!(told("SUNIONSTORE d a"), [key(1, "d", true), key(1, "a", false)]);
        assert_eq!(told("MOVE a 3"), [key(1, "a", true), key(3, "a", true)]);
        assert_eq!(told("COPY a b DB 4").last(), Some(&key(4, "b", true)));
        assert_eq!(told("XGROUP CREATE x g $"), [key(1, "x", true)]);
        for nothing in ["PUBLISH a b", "FLUSHALL", "SCRIPT LOAD x", "PING"] {
            assert_eq!(told(nothing), [], "{nothing}");
        }
        for open in ["EVAL x 1 a", "NOBODYKNOWS a", "SORT a BY w_* STORE b"] {
            assert!(places(&words(open), 0).is_err(), "{open}");
        }
    }

    #[test]
    fn held_keys_are_passed_over_and_what_they_write_is_held_too() {
        let taken = Taken { place: place(0, "k"), value: None };
        let mut copying = Copying::new(100, vec![taken.clone()]);
        assert!(copying.passes_over(&words("INCR k"), 0) && copying.stuck.is_none());
        assert!(!copying.passes_over(&words("INCR k"), 1), "another db");
        assert!(!copying.passes_over(&words("RENAME a b"), 0));
        assert!(copying.passes_over(&words("SUNIONSTORE k a b"), 0) && copying.stuck.is_none());
        assert!(copying.passes_over(&words("RENAME k b"), 0));
        assert_eq!(copying.stuck.take(), Some(Stuck::Missing(vec![place(0, "b")])));
        assert!(copying.passes_over(&words("SUNIONSTORE d k"), 0));
        assert_eq!(copying.stuck.take(), Some(Stuck::Missing(vec![place(0, "d")])));
        assert!(!copying.passes_over(&words("SWAPDB 0 2"), 0), "others need it");
        assert_eq!(copying.stuck.take(), Some(Stuck::Missing(vec![place(2, "k")])));
        copying.passes_over(&words("EVAL x 0"), 0);
        assert!(matches!(copying.stuck, Some(Stuck::Obstacle(_))));
    }

    /// What a collector makes of the first `come` of `lines`, with `k` taken behind `before` of them, in pieces of `cut` bytes.
    fn copied(lines: &[&str], come: usize, before: usize, cut: usize) -> (Vec<String>, bool) {
        let until = stream(&lines[..before]).len() as u64;
        let lines = &lines[..come];
        let transform = Transform::new(Dialect::of_version(7, 0), Vec::new());
        let mut collector = Collector::new(0, 0, transform, BatchLimits::default());
        let value = Some(Dumped { payload: b"payload".to_vec(), expires_at: None });
        collector.copy(Copying::new(until, vec![Taken { place: place(2, "k"), value }]));
        let (mut names, mut done) = (Vec::new(), false);
        for piece in stream(lines).chunks(cut) {
            collector.push(piece, 1);
            collector.collect().unwrap();
            let Some(batch) = collector.take(false, |_, _| "mark".into()) else { continue };
            done |= batch.copies;
            for index in 0..batch.len() {
                let named = batch.name(index);
                let key = named.key.map(|key| String::from_utf8_lossy(&key).into_owned());
                if !["SELECT", "crossfade:position"]
                    .iter()
                    .any(|own| named.name == *own || key.as_deref() == Some(own))
                {
                    names.push(format!("{} {} {}", named.db, named.name, key.unwrap_or_default()));
                }
            }
        }
        (names, done)
    }

    #[test]
    fn the_values_are_written_at_their_place() {
        let lines = [
            "SET a 1", "SELECT 2", "INCR k", "SET b 1", "INCR k", "SELECT 0", "INCR k", "SELECT 2", "INCR k",
            "SET c 1",
        ];
        for cut in [1, 7, 1000] {
            let (names, done) = copied(&lines, 10, 5, cut);
            let wanted = ["0 SET a", "2 SET b", "2 DEL k", "2 RESTORE k", "0 INCR k", "2 INCR k", "2 SET c"];
            assert_eq!((&names[..], done), (&wanted.map(str::to_owned)[..], true), "{cut}");
            // Nothing comes behind it, and nothing in front.
            assert_eq!(copied(&lines, 5, 5, cut).0, ["0 SET a", "2 SET b", "2 DEL k", "2 RESTORE k"]);
            assert_eq!(copied(&lines, 2, 0, cut).0, ["2 DEL k", "2 RESTORE k", "0 SET a"]);
            assert_eq!(copied(&lines, 4, 5, cut), (vec!["0 SET a".into(), "2 SET b".into()], false));
        }
    }

    #[test]
    fn an_answer_is_read_with_the_offset_and_the_clock_of_the_server() {
        let bulk = |text: &str| Value::Bulk(text.as_bytes().to_vec().into());
        let answers = |replid: &str| {
            vec![
                bulk(&format!("master_replid:{replid}\r\nmaster_repl_offset:77\r\n")),
                Value::Array(vec![bulk("100"), bulk("5000")]),
                bulk("OK"),
                bulk("payload"),
                Value::Integer(20),
                bulk("OK"),
                Value::Nil,
                Value::Integer(-2),
            ]
        };
        let keys = [place(0, "a"), place(3, "b")];
        let copying = read(&keys, Some("x"), false, answers("x"), Side::Source).unwrap().unwrap();
        assert_eq!(copying.until, 77);
        let expected = Dumped { payload: b"payload".to_vec(), expires_at: Some(100_025) };
        assert_eq!(copying.taken[0].value.as_ref(), Some(&expected));
        assert_eq!(copying.taken[1].value, None);
        let copying = read(&keys, Some("x"), true, answers("x"), Side::Source).unwrap().unwrap();
        assert_eq!(copying.taken[0].value.as_ref().unwrap().expires_at, Some(20));
        assert!(read(&keys, Some("x"), true, answers("y"), Side::Source).unwrap_err().retry);
    }
}
