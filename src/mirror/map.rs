//! `[map]`: keys and databases that have another name on the other side.
//!
//! Names are led there and back: a key whose new name does not lead back to it would fall together with another one, and is
//! refused. So no key can overwrite another, whatever is renamed, and the mirror back after a cutover is the same
//! mapping turned round. Only the policy on letters has no way back.
//!
//! Commands are rewritten where their keys stand by the command table. One of which nobody can tell its keys (a
//! script that an old source sends as text, SORT with patterns, a module's command) is refused by name.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::copying::reads_by_pattern;
use super::older::is_ours;
use super::transform::{Place, is_own};
use crate::command::{Access, Effect, each_key, lookup_call, other_db};
use crate::config::{KeyCase, Map};
use crate::resp::write;

/// What a name begins with on one side, and on the other.
type Prefix = (Box<[u8]>, Box<[u8]>);

/// The names on one side, and what they are on the other.
#[derive(Debug, Clone, Default)]
struct Names {
    databases: BTreeMap<u32, u32>,
    /// The longest first.
    prefixes: Vec<Prefix>,
}

impl Names {
    fn new(databases: impl Iterator<Item = (u32, u32)>, prefixes: impl Iterator<Item = Prefix>) -> Self {
        let mut prefixes: Vec<_> = prefixes.collect();
        prefixes.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
        Self { databases: databases.collect(), prefixes }
    }

    fn db(&self, db: u32) -> u32 {
        self.databases.get(&db).copied().unwrap_or(db)
    }

    fn key<'a>(&self, key: &'a [u8]) -> Cow<'a, [u8]> {
        let fits = |(from, to): &Prefix| Some((to.clone(), key.strip_prefix(&**from)?));
        match self.prefixes.iter().find_map(fits) {
            Some((to, rest)) => Cow::Owned([&to, rest].concat()),
            None => Cow::Borrowed(key),
        }
    }
}

/// What names on the side that is read are on the side that is written to.
#[derive(Debug, Clone)]
pub struct Mapping {
    there: Names,
    back: Names,
    case: KeyCase,
}

impl Mapping {
    /// From the source to the destination, when anything has another name there.
    pub fn new(map: &Map) -> Option<Self> {
        if !map.is_set() {
            return None;
        }
        let databases = || map.databases.iter().map(|(from, to)| (*from, *to));
        let prefixes = || {
            let bytes = |text: &String| Box::from(text.as_bytes());
            map.prefixes.iter().map(move |(from, to)| (bytes(from), bytes(to)))
        };
        Some(Self {
            there: Names::new(databases(), prefixes()),
            back: Names::new(databases().map(|(a, b)| (b, a)), prefixes().map(|(a, b)| (b, a))),
            case: map.key_case,
        })
    }

    /// From the other side to this one; `None`: the policy on letters leaves no way back.
    pub fn turned_round(&self) -> Option<Self> {
        let Self { there, back, case } = self.clone();
        (case == KeyCase::AsIs).then_some(Self { there: back, back: there, case })
    }

    /// Whether keys that differ may become one.
    pub fn merges(&self) -> bool {
        self.case != KeyCase::AsIs
    }

    /// Whether a command is run in the database that is selected. Others go on wherever that is.
    pub fn needs_db(&self, args: &[&[u8]]) -> bool {
        let name = args.first().copied().unwrap_or_default();
        if name.eq_ignore_ascii_case(b"FLUSHDB") {
            return true;
        }
        let apart = [Effect::Publish, Effect::Scripts, Effect::Node, Effect::Keyspace];
        lookup_call(args).is_none_or(|spec| !apart.contains(&spec.effect))
    }

    /// Whether keys have other names.
    pub fn has_keys(&self) -> bool {
        !self.there.prefixes.is_empty() || self.case != KeyCase::AsIs
    }

    /// The number of a database on the other side.
    ///
    /// # Errors
    /// Another one goes there.
    pub fn db(&self, db: u32) -> Result<u32, String> {
        let other = self.there.db(db);
        match self.back.db(other) {
            same if same == db => Ok(other),
            taken => Err(format!("[map] sends db {db} to {other}, and db {taken} too")),
        }
    }

    /// The name of a key on the other side. The gateway's own keys have no other.
    ///
    /// # Errors
    /// Another key has that name there.
    pub fn key<'a>(&self, key: &'a [u8]) -> Result<Cow<'a, [u8]>, String> {
        if is_own(key) {
            return Ok(Cow::Borrowed(key));
        }
        let mut other = self.there.key(key);
        let led_back = self.back.key(&other);
        let show = |key: &[u8]| key.escape_ascii().to_string();
        if *led_back != *key {
            let (key, name, taken) = (show(key), show(&other), show(&led_back));
            return Err(format!("[map] gives key {key:?} the name {name:?}, which is that of {taken:?} too"));
        }
        match self.case {
            KeyCase::AsIs => {}
            KeyCase::Upper if !other.iter().any(u8::is_ascii_lowercase) => {}
            KeyCase::Lower if !other.iter().any(u8::is_ascii_uppercase) => {}
            KeyCase::Upper => other.to_mut().make_ascii_uppercase(),
            KeyCase::Lower => other.to_mut().make_ascii_lowercase(),
        }
        if is_own(&other) {
            let (key, name) = (show(key), show(&other));
            return Err(format!("[map] gives key {key:?} the name {name:?}, which belongs to the gateway"));
        }
        Ok(other)
    }

    /// A key and its database on the other side.
    ///
    /// # Errors
    /// As [`Mapping::key`] and [`Mapping::db`].
    pub fn place<'a>(&self, db: u32, key: &'a [u8]) -> Result<(u32, Cow<'a, [u8]>), String> {
        Ok((self.db(db)?, self.key(key)?))
    }

    /// What a place on the other side is on this one; `None`: nobody can tell, or it is none that leads there.
    pub fn origin(&self, (db, key): &Place) -> Option<Place> {
        let (from, name) = (self.back.db(*db), self.back.key(key));
        let leads_there = self.there.db(from) == *db && *self.there.key(&name) == **key && !is_own(&name);
        (leads_there && !self.merges()).then(|| (from, name.into()))
    }

    /// The command with the names of the other side; `None`: they are the same.
    ///
    /// # Errors
    /// A name cannot be given, or nobody can tell what the command's keys are.
    pub fn command(&self, args: &[&[u8]]) -> Result<Option<Vec<u8>>, String> {
        let name = args.first().copied().unwrap_or_default();
        let mut renamed = Renamed { mapping: self, args, words: Vec::new() };
        if name.eq_ignore_ascii_case(b"SWAPDB") {
            renamed.db(1)?;
            renamed.db(2)?;
            return Ok(renamed.command());
        }
        if let Some(at) = other_db(args) {
            renamed.db(at)?;
        }
        if !self.has_keys() {
            // A script that chooses databases by itself, as old sources send it.
            let script = match args {
                [name, text, ..] if name.eq_ignore_ascii_case(b"EVAL") => Some(*text),
                [name, sub, text, ..]
                    if name.eq_ignore_ascii_case(b"SCRIPT") && sub.eq_ignore_ascii_case(b"LOAD") =>
                {
                    Some(*text)
                }
                _ => None,
            };
            let text = script.unwrap_or_default().to_ascii_lowercase();
            if ["select", "move", "swapdb"]
                .iter()
                .any(|word| memchr::memmem::find(&text, word.as_bytes()).is_some())
            {
                return Err("a script chooses databases, which [map] gives other numbers".into());
            }
            return Ok(renamed.command());
        }
        let unknown = || {
            let name = name.escape_ascii().to_string().to_uppercase();
            format!("nobody can tell the keys of {name}, which [map] renames")
        };
        let spec = lookup_call(args).ok_or_else(unknown)?;
        match spec.effect {
            Effect::Node | Effect::Publish | Effect::Scripts | Effect::Keyspace => {
                return Ok(renamed.command());
            }
            Effect::Any if args.get(1).is_some_and(|text| is_ours(text)) => {
                renamed.key(3)?;
                return Ok(renamed.command());
            }
            Effect::Any => return Err(unknown()),
            Effect::None | Effect::Keys | Effect::Expiry => {}
        }
        if reads_by_pattern(args) {
            return Err(unknown());
        }
        let mut keys = Vec::new();
        each_key(spec, args, |at, access| {
            if access != Access::Channel {
                keys.push(at);
            }
        })
        .map_err(|_| unknown())?;
        for at in keys {
            renamed.key(at)?;
        }
        Ok(renamed.command())
    }
}

/// A command whose words are being replaced; none are kept as long as nothing changes.
struct Renamed<'a> {
    mapping: &'a Mapping,
    args: &'a [&'a [u8]],
    words: Vec<Cow<'a, [u8]>>,
}

impl<'a> Renamed<'a> {
    fn replace(&mut self, at: usize, word: Cow<'a, [u8]>) {
        if *word == *self.args[at] {
            return;
        }
        if self.words.is_empty() {
            self.words = self.args.iter().map(|word| Cow::Borrowed(*word)).collect();
        }
        self.words[at] = word;
    }

    fn key(&mut self, at: usize) -> Result<(), String> {
        let Some(&key) = self.args.get(at) else { return Ok(()) };
        let word = self.mapping.key(key)?;
        self.replace(at, word);
        Ok(())
    }

    /// What is no number is the server's to judge.
    fn db(&mut self, at: usize) -> Result<(), String> {
        let number = |word: &&[u8]| std::str::from_utf8(word).ok()?.parse().ok();
        let Some(db) = self.args.get(at).and_then(number) else { return Ok(()) };
        let other = self.mapping.db(db)?;
        if other != db {
            self.replace(at, other.to_string().into_bytes().into());
        }
        Ok(())
    }

    fn command(self) -> Option<Vec<u8>> {
        if self.words.is_empty() {
            return None;
        }
        let mut out = Vec::new();
        write::command(&mut out, &self.words);
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(databases: &[(u32, u32)], prefixes: &[(&str, &str)], key_case: KeyCase) -> Mapping {
        let prefixes = prefixes.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect();
        Mapping::new(&Map { databases: databases.iter().copied().collect(), prefixes, key_case }).unwrap()
    }

    fn key(mapping: &Mapping, key: &str) -> Result<String, String> {
        mapping.key(key.as_bytes()).map(|key| String::from_utf8(key.into_owned()).unwrap())
    }

    fn command(mapping: &Mapping, line: &str) -> Result<String, String> {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let mut same = Vec::new();
        write::command(&mut same, &args);
        let bytes = mapping.command(&args)?.unwrap_or(same);
        let words = String::from_utf8(bytes).unwrap();
        Ok(words.split("\r\n").skip(2).step_by(2).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn keys_there_and_back() {
        let mapping = map(&[], &[("user:", "people:"), ("user:tmp:", "t:")], KeyCase::AsIs);
        let back = mapping.turned_round().unwrap();
        for (one, other) in
            [("user:1", "people:1"), ("user:tmp:1", "t:1"), ("else", "else"), ("user", "user")]
        {
            assert_eq!(key(&mapping, one).unwrap(), other);
            assert_eq!(key(&back, other).unwrap(), one);
        }
        for taken in ["people:1", "t:"] {
            assert!(key(&mapping, taken).is_err(), "{taken}");
        }
        // `people:tmp:1` would lead to `user:tmp:1`, which has another name.
        assert!(key(&back, "user:1").is_err() && key(&back, "people:tmp:1").is_err());
        assert_eq!(key(&mapping, "crossfade:position").unwrap(), "crossfade:position");
        let swapped = map(&[], &[("a:", "b:"), ("b:", "a:")], KeyCase::AsIs);
        assert_eq!(
            (key(&swapped, "a:1").unwrap(), key(&swapped, "b:1").unwrap()),
            ("b:1".into(), "a:1".into())
        );
    }

    #[test]
    fn a_prefix_for_all_and_for_none() {
        let all = map(&[], &[("", "shop:")], KeyCase::AsIs);
        assert_eq!(key(&all, "shop:x").unwrap(), "shop:shop:x");
        let back = all.turned_round().unwrap();
        assert_eq!(key(&back, "shop:x").unwrap(), "x");
        assert!(key(&back, "other:x").is_err());
        assert!(key(&back, "shop:crossfade:x").unwrap_err().contains("belongs to the gateway"));
    }

    #[test]
    fn letters() {
        let upper = map(&[], &[], KeyCase::Upper);
        assert_eq!(key(&upper, "user:é1").unwrap(), "USER:é1");
        assert!(upper.turned_round().is_none());
        let lower = map(&[], &[], KeyCase::Lower);
        assert_eq!(key(&lower, "User").unwrap(), "user");
        assert!(key(&lower, "CROSSFADE:x").is_err());
    }

    #[test]
    fn databases_there_and_back() {
        let mapping = map(&[(0, 3), (1, 0)], &[], KeyCase::AsIs);
        assert_eq!((mapping.db(0), mapping.db(1), mapping.db(2)), (Ok(3), Ok(0), Ok(2)));
        assert!(mapping.db(3).unwrap_err().contains("db 0 too"));
        let back = mapping.turned_round().unwrap();
        assert_eq!((back.db(3), back.db(0)), (Ok(0), Ok(1)));
        assert!(back.db(1).is_err());
        let place = (3, Box::from(&b"k"[..]));
        assert_eq!(mapping.origin(&place), Some((0, Box::from(&b"k"[..]))));
    }

    #[test]
    fn commands_have_their_names_where_the_table_says() {
        let mapping = map(&[(1, 5)], &[("a:", "b:")], KeyCase::AsIs);
        for (line, expected) in [
            ("SET a:1 a:1", "SET b:1 a:1"),
            ("set other v", "set other v"),
            ("MSET a:1 x c a:2 a:3 y", "MSET b:1 x c a:2 b:3 y"),
            ("DEL a:1 crossfade:x", "DEL b:1 crossfade:x"),
            ("MOVE a:1 1", "MOVE b:1 5"),
            ("COPY a:1 a:2 DB 1 REPLACE", "COPY b:1 b:2 DB 5 REPLACE"),
            ("SWAPDB 0 1", "SWAPDB 0 5"),
            ("ZUNIONSTORE a:d 2 a:1 c WEIGHTS 1 2", "ZUNIONSTORE b:d 2 b:1 c WEIGHTS 1 2"),
            ("XGROUP CREATE a:s g $", "XGROUP CREATE b:s g $"),
            ("SORT a:l STORE a:d", "SORT b:l STORE b:d"),
            ("PUBLISH a:1 x", "PUBLISH a:1 x"),
            ("FUNCTION LOAD a:1", "FUNCTION LOAD a:1"),
            ("FLUSHDB", "FLUSHDB"),
            ("MEMORY USAGE a:1", "MEMORY USAGE b:1"),
            ("LRANGE a:1 0 -1", "LRANGE b:1 0 -1"),
            ("MSETEX 2 a:1 x a:2 y PX 5", "MSETEX 2 b:1 x b:2 y PX 5"),
        ] {
            assert_eq!(command(&mapping, line).unwrap(), expected);
        }
        for refused in ["EVAL return 1 a:1", "NOBODYKNOWS a:1", "SORT a:l BY w_*", "SET b:1 v"] {
            assert!(command(&mapping, refused).is_err(), "{refused}");
        }
        for (line, needs) in [
            ("PUBLISH a x", false),
            ("FUNCTION LOAD x", false),
            ("FLUSHALL", false),
            ("SWAPDB 0 1", false),
            ("FLUSHDB", true),
            ("SET a x", true),
            ("XGROUP CREATE a g $", true),
            ("NOBODYKNOWS", true),
        ] {
            assert_eq!(
                mapping.needs_db(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>()),
                needs,
                "{line}"
            );
        }
        let databases = map(&[(1, 5)], &[], KeyCase::AsIs);
        assert!(command(&databases, "EVAL redis.call('SELECT',1) 0").is_err());
        for line in ["EVAL return 1 a:1", "NOBODYKNOWS a:1", "SORT a:l BY w_*"] {
            assert_eq!(command(&databases, line).unwrap(), line);
        }
    }
}
