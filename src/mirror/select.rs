//! `[filter]`: which keys and databases are copied and mirrored.
//!
//! What is outside belongs to each server by itself: it is neither written nor removed on the other side, in either direction.
//!
//! A command of the stream whose keys are all inside goes on as it is; one that changes none of them is left out. DEL, UNLINK,
//! MSET and MSETEX lose the keys that are outside. Any other that has keys on both sides (RENAME, SUNIONSTORE, a MOVE between
//! databases) cannot be run there, since what it reads is missing: the keys inside that it changes are copied anew at that place
//! in the order ([`super::copying`]), which gives what the source made of them. Where nobody can tell what a command changes (a script that an old
//! source sends as text), or where it would change what is outside (FLUSHALL on a destination that had keys of its own), the mirror stops
//! and names it.
//!
//! With types, the command tells by itself which type it works on ([`super::kinds`]): one of a type that is not copied is left out, or, where it
//! overwrites, removes what the destination has of that key. What depends on the values (RENAME, RESTORE, a SORT that stores) has its keys
//! copied anew too, and a value of a type that is not copied counts as none. So does a SET that keeps the expiry of what was there
//! (KEEPTTL), which the other side may not have had. INCRBYFLOAT is sent in the same words, and far too often for that: a SET of a number with
//! KEEPTTL goes on as it is. Where a client says so of a key that was of a type that is left out, the expiry is missing, and the comparison
//! names the key.
//! Types do not keep names apart: where the other side has values of its own, a guard (`guard.rs`) looks at what it overwrites.
//!
//! Patterns go by the names of the source. On the way back, what has no name there ([`super::map`]) is outside too, where the destination
//! has keys of its own; where it has not, the mirror stops at such a key.

use super::copying::places;
use super::guard::Guard;
use super::kinds::{Before, Works, before, of_number, works};
use super::map::Mapping;
use super::transform::{Place, is_own};
use crate::config::{Filter, OnExistingKey, ValueType};
use crate::resp::write;

/// What is copied.
#[derive(Debug)]
pub struct Selection {
    filter: Filter,
    /// The destination holds nothing but what is copied, so that a whole database may be emptied.
    alone: bool,
    /// What names of the stream are at the source, when the stream is the destination's and names differ.
    names: Option<Mapping>,
    /// Keys have other names on the other side.
    renames: bool,
    /// Names that have none at the source are not ours. Otherwise they are kept, and the mapping stops at them.
    shared: bool,
    /// The other side has values of its own that stay, whatever the stream has under their names.
    guarded: bool,
}

/// What becomes of a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on as it is.
    Pass,
    /// It changes nothing that is copied.
    Drop,
    /// This goes on instead.
    Instead(Vec<u8>),
    /// These keys are to be copied anew.
    Copy(Vec<Place>),
    /// Nothing of that is right, for this reason.
    Stop(String),
}

impl Selection {
    /// A selection, when the filter leaves anything out or the destination may hold keys of its own (`existing` says what becomes of
    /// them) beside those that `map` leads there.
    pub fn new(filter: &Filter, map: Option<&Mapping>, existing: OnExistingKey) -> Option<Self> {
        let renames = map.is_some_and(Mapping::has_keys);
        let (alone, guarded) = (existing == OnExistingKey::Fail, existing == OnExistingKey::Keep);
        let own = Self { filter: filter.clone(), alone, names: None, renames, shared: false, guarded };
        (filter.is_set() || (map.is_some() && !alone)).then_some(own)
    }

    /// A selection for the way back, when the filter leaves anything out or the destination may hold keys of its own (`shared`).
    /// `names` leads from the destination to the source.
    pub fn on_the_way_back(filter: &Filter, names: Option<&Mapping>, shared: bool) -> Option<Self> {
        // The source holds nothing of its own but what the filter leaves there.
        let (alone, names) = (!filter.is_set(), names.cloned());
        let set = filter.is_set() || (names.is_some() && shared);
        let renames = names.as_ref().is_some_and(Mapping::has_keys);
        set.then(|| Self { filter: filter.clone(), alone, names, renames, shared, guarded: true })
    }

    /// Whether a database is copied.
    pub fn keeps_db(&self, db: u32) -> bool {
        match self.names.as_ref().map(|names| names.db(db)) {
            None => self.filter.keeps_db(db),
            Some(Ok(db)) => self.filter.keeps_db(db),
            Some(Err(_)) => !self.shared,
        }
    }

    /// Whether a key is copied.
    pub fn keeps(&self, db: u32, key: &[u8]) -> bool {
        match self.names.as_ref().map(|names| names.place(db, key)) {
            None => self.filter.keeps(db, key),
            Some(Ok((db, key))) => self.filter.keeps(db, &key),
            Some(Err(_)) => !self.shared,
        }
    }

    /// Whether a key of the snapshot is copied, by its name and by the number of its type.
    pub fn keeps_value(&self, db: u32, key: &[u8], type_id: u8) -> bool {
        self.keeps(db, key) && self.keeps_type(of_number(type_id))
    }

    /// What becomes of a command that is run in `db`.
    pub fn judge(&self, args: &[&[u8]], db: u32) -> Verdict {
        let name = args.first().copied().unwrap_or_default();
        let is = |word: &str| name.eq_ignore_ascii_case(word.as_bytes());
        if self.filter.exclude_commands.iter().any(|excluded| is(excluded)) {
            return Verdict::Drop;
        }
        if is("FLUSHALL") {
            return if self.alone { Verdict::Pass } else { self.not_alone(name) };
        }
        if is("FLUSHDB") {
            return match (self.keeps_db(db), self.alone || !self.parts_dbs()) {
                (false, _) => Verdict::Drop,
                (true, true) => Verdict::Pass,
                (true, false) => self.not_alone(name),
            };
        }
        if is("SWAPDB") {
            let number =
                |at: usize| args.get(at).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
            return match (number(1).map(|db| self.keeps_db(db)), number(2).map(|db| self.keeps_db(db))) {
                (Some(true), Some(true)) if self.alone || !self.parts_dbs() => Verdict::Pass,
                (Some(true), Some(true)) => self.not_alone(name),
                (Some(false), Some(false)) => Verdict::Drop,
                _ => Verdict::Stop("it swaps a database that is copied with one that is not".into()),
            };
        }
        let places = match places(args, db) {
            Ok(places) => places,
            Err(_) if !self.keeps_db(db) => return Verdict::Drop,
            Err(_) if !self.filter.has_keys() => return Verdict::Pass,
            Err(why) => return Verdict::Stop(why),
        };
        let inside = |place: &Place| self.keeps(place.0, &place.1) || is_own(&place.1);
        if let Some(verdict) = self.by_type(args, &places) {
            return verdict;
        }
        if places.iter().all(|(place, _)| inside(place)) {
            return Verdict::Pass;
        }
        let changed: Vec<Place> = places
            .into_iter()
            .filter(|(place, written)| *written && inside(place))
            .map(|(place, _)| place)
            .collect();
        if changed.is_empty() {
            return Verdict::Drop;
        }
        let step = match () {
            () if is("DEL") || is("UNLINK") => 1,
            () if is("MSET") => 2,
            () => return Verdict::Copy(changed),
        };
        let mut kept = vec![name];
        for pair in args[1..].chunks(step) {
            if pair.first().is_some_and(|key| self.keeps(db, key)) {
                kept.extend_from_slice(pair);
            }
        }
        let mut out = Vec::new();
        write::command(&mut out, &kept);
        Verdict::Instead(out)
    }

    /// Whether values of a type are copied.
    pub fn keeps_type(&self, kind: ValueType) -> bool {
        self.filter.keeps_type(kind)
    }

    /// Whether it chooses by the types of values.
    pub fn has_types(&self) -> bool {
        !self.filter.types.is_empty()
    }

    /// What stands before the writes of this selection, where types do not keep names apart.
    pub fn guard(&self) -> Option<Guard> {
        Guard::new(&self.filter).filter(|_| self.guarded)
    }

    /// What becomes of a command on account of the types that it works on, when that is not what its keys say.
    fn by_type(&self, args: &[&[u8]], places: &[(Place, bool)]) -> Option<Verdict> {
        let ours = |(place, written): &&(Place, bool)| {
            *written && self.keeps(place.0, &place.1) && !is_own(&place.1)
        };
        let changed: Vec<Place> = places.iter().filter(ours).map(|(place, _)| place.clone()).collect();
        if !self.has_types() || changed.is_empty() {
            return None;
        }
        match works(args.first().copied().unwrap_or_default()) {
            Some(Works::OnAny) => None,
            // A value of a type that is left out may have been there, which the other side does not have.
            Some(Works::Becomes(kind)) if self.keeps_type(kind) => match before(args) {
                Before::Nothing => None,
                Before::Key(_) if !places.iter().all(|place| ours(&place)) => Some(Verdict::Copy(changed)),
                Before::Key(without) => {
                    let mut out = Vec::new();
                    write::command(&mut out, &without);
                    Some(Verdict::Instead(out))
                }
                Before::Expiry => Some(Verdict::Copy(changed)),
            },
            Some(Works::On(kind)) if self.keeps_type(kind) => None,
            Some(Works::On(_)) => Some(Verdict::Drop),
            // Of what was there before, the destination may have something.
            Some(Works::Becomes(_)) => {
                let mut words: Vec<&[u8]> = vec![b"DEL"];
                words.extend(changed.iter().map(|(_, key)| &**key));
                let mut out = Vec::new();
                write::command(&mut out, &words);
                Some(Verdict::Instead(out))
            }
            None => Some(Verdict::Copy(changed)),
        }
    }

    /// Whether a database of the other side may hold keys that are ours and keys that are not.
    fn parts_dbs(&self) -> bool {
        self.filter.has_keys() || self.renames
    }

    fn not_alone(&self, name: &[u8]) -> Verdict {
        Verdict::Stop(format!(
            "{} would also concern what the destination holds of its own",
            String::from_utf8_lossy(name).to_uppercase()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Pattern;

    fn selection(include: &[&str], exclude: &[&str], databases: &[u32], alone: bool) -> Selection {
        let patterns = |texts: &[&str]| texts.iter().map(|text| Pattern::parse(text).unwrap()).collect();
        let filter = Filter {
            include_keys: patterns(include),
            exclude_keys: patterns(exclude),
            databases: databases.to_vec(),
            types: Vec::new(),
            exclude_commands: vec!["publish".into()],
        };
        let existing = if alone { OnExistingKey::Fail } else { OnExistingKey::Keep };
        Selection::new(&filter, None, existing).unwrap()
    }

    fn judged(selection: &Selection, line: &str, db: u32) -> Verdict {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        selection.judge(&args, db)
    }

    fn copies(keys: &[&str]) -> Verdict {
        Verdict::Copy(keys.iter().map(|key| (0, key.as_bytes().into())).collect())
    }

    fn instead(line: &str) -> Verdict {
        let mut out = Vec::new();
        write::command(&mut out, &line.split(' ').collect::<Vec<_>>());
        Verdict::Instead(out)
    }

    #[test]
    fn keys_inside_and_outside() {
        let users = selection(&["user:*"], &["user:tmp:*"], &[], true);
        for (line, verdict) in [
            ("SET user:1 v", Verdict::Pass),
            ("SET other v", Verdict::Drop),
            ("SET user:tmp:1 v", Verdict::Drop),
            ("SET crossfade:heartbeat:1 v", Verdict::Pass),
            ("DEL user:1 user:2", Verdict::Pass),
            ("DEL user:1 other user:2", instead("DEL user:1 user:2")),
            ("unlink other user:2", instead("unlink user:2")),
            ("MSET other 1 user:1 2", instead("MSET user:1 2")),
            ("RENAME user:1 other", copies(&["user:1"])),
            ("RENAME other user:1", copies(&["user:1"])),
            ("RENAME other another", Verdict::Drop),
            ("SUNIONSTORE user:s other user:t", copies(&["user:s"])),
            ("SUNIONSTORE other user:s", Verdict::Drop),
            ("LMOVE other user:l LEFT RIGHT", copies(&["user:l"])),
            ("PUBLISH user:1 x", Verdict::Drop),
            ("FLUSHALL", Verdict::Pass),
            ("FLUSHDB ASYNC", Verdict::Pass),
            ("SWAPDB 0 1", Verdict::Pass),
            ("FUNCTION LOAD x", Verdict::Pass),
        ] {
            assert_eq!(judged(&users, line, 0), verdict, "{line}");
        }
        assert!(matches!(judged(&users, "EVAL return 1 other", 0), Verdict::Stop(_)));
        let beside = selection(&["user:*"], &[], &[], false);
        assert!(matches!(judged(&beside, "FLUSHALL", 0), Verdict::Stop(_)));
        assert!(matches!(judged(&beside, "FLUSHDB", 0), Verdict::Stop(_)));
        assert!(matches!(judged(&beside, "SWAPDB 0 1", 0), Verdict::Stop(_)));
    }

    #[test]
    fn types_inside_and_outside() {
        let mut two = selection(&[], &["tmp:*"], &[], true);
        two.filter.types = vec![ValueType::List, ValueType::Zset];
        for (line, verdict) in [
            ("RPUSH a 1", Verdict::Pass),
            ("LMOVE a b LEFT RIGHT", Verdict::Pass),
            ("ZADD z 1 m", Verdict::Pass),
            ("ZRANGESTORE d z 0 1", Verdict::Pass),
            ("DEL a b", Verdict::Pass),
            ("PEXPIREAT a 5", Verdict::Pass),
            ("SET crossfade:x v", Verdict::Pass),
            ("SET a v", instead("DEL a")),
            ("MSET a v tmp:b v c v", instead("DEL a c")),
            ("SUNIONSTORE d s t", instead("DEL d")),
            ("BITOP NOT d a", instead("DEL d")),
            ("INCR a", Verdict::Drop),
            ("HSET h f v", Verdict::Drop),
            ("XADD x 1-1 f v", Verdict::Drop),
            ("SADD tmp:s m", Verdict::Drop),
            ("RENAME a b", copies(&["a", "b"])),
            ("COPY a b", copies(&["b"])),
            ("RESTORE a 0 x", copies(&["a"])),
            ("SORT a STORE d", copies(&["d"])),
            ("ZUNIONSTORE d 2 s z", copies(&["d"])),
            ("ZUNIONSTORE tmp:d 2 s z", Verdict::Drop),
            ("FLUSHALL", Verdict::Pass),
        ] {
            assert_eq!(judged(&two, line, 0), verdict, "{line}");
        }
        assert!(matches!(judged(&two, "EVAL return 1 a", 0), Verdict::Stop(_)));
        assert!(matches!(judged(&two, "NOBODYKNOWS a", 0), Verdict::Stop(_)));
        assert_eq!(judged(&two, "SET a v XX KEEPTTL", 0), instead("DEL a"));
    }

    #[test]
    fn a_string_may_have_come_in_the_place_of_another_type() {
        let mut strings = selection(&[], &["tmp:*"], &[], true);
        strings.filter.types = vec![ValueType::String];
        for (line, verdict) in [
            ("SET a v", Verdict::Pass),
            ("SET a v NX", Verdict::Pass),
            ("SET a v XX", instead("SET a v")),
            ("SET a v KEEPTTL", copies(&["a"])),
            ("SET a 1.5 KEEPTTL", Verdict::Pass),
            ("SET a v XX GET", Verdict::Pass),
            ("SET tmp:a v KEEPTTL", Verdict::Drop),
            ("SET crossfade:x v XX", Verdict::Pass),
            ("MSETEX 2 a 1 tmp:b 2 KEEPTTL", copies(&["a"])),
            ("MSETEX 2 a 1 tmp:b 2 XX", copies(&["a"])),
            ("MSETEX 2 a 1 b 2 XX", instead("MSETEX 2 a 1 b 2")),
            ("LPUSH a 1", Verdict::Drop),
            ("SUNIONSTORE a s t", instead("DEL a")),
        ] {
            assert_eq!(judged(&strings, line, 0), verdict, "{line}");
        }
        let all = selection(&[], &["tmp:*"], &[], true);
        assert_eq!(judged(&all, "SET a v KEEPTTL", 0), Verdict::Pass, "without types all is known");
    }

    #[test]
    fn databases_inside_and_outside() {
        let two = selection(&[], &[], &[0, 3], false);
        for (line, db, verdict) in [
            ("SET k v", 3, Verdict::Pass),
            ("SET k v", 1, Verdict::Drop),
            ("FLUSHDB", 3, Verdict::Pass),
            ("FLUSHDB", 1, Verdict::Drop),
            ("SWAPDB 0 3", 0, Verdict::Pass),
            ("SWAPDB 1 2", 0, Verdict::Drop),
            ("MOVE k 3", 0, Verdict::Pass),
            ("MOVE k 1", 0, copies(&["k"])),
            ("COPY a b DB 1", 0, Verdict::Drop),
            ("EVAL return 1 k", 1, Verdict::Drop),
            ("EVAL return 1 k", 0, Verdict::Pass),
        ] {
            assert_eq!(judged(&two, line, db), verdict, "{line} in {db}");
        }
        assert_eq!(judged(&two, "MOVE k 0", 1), copies(&["k"]));
        assert!(matches!(judged(&two, "SWAPDB 0 1", 0), Verdict::Stop(_)));
        assert!(matches!(judged(&two, "FLUSHALL", 0), Verdict::Stop(_)));
    }
}
