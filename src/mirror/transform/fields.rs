//! Commands that set the expiries of a hash's fields.
//!
//! They are stored [padded](super::super::expiry) as those of keys are, and settled with them. GT and LT, which decide field by field,
//! compare what is stored: that is right as long as all of it is padded. While a sweep is under way, and after one that made expiries
//! exact, a script compares what the stored times mean.

use std::collections::HashSet;

use super::{Mode, Options, Place, Transform, Unit, swapped};
use crate::mirror::expiry::field_padded;
use crate::resp::write;

/// ARGV: GT or LT, the time, what to store, XX or nothing, the fields. The numbers are those of [`super::super::expiry`]: from where to where
/// the expiry of a field is a padded one, and the pad.
pub const COMPARED: &str = "local new=tonumber(ARGV[2]) \
    for i=5,#ARGV do \
    local at=(redis.call('HPEXPIRETIME',KEYS[1],'FIELDS',1,ARGV[i]) or {})[1] or -2 \
    if at>=36884372088832 and at<52776558133248 then at=at-35184372088832 end \
    local set=at>=0 and new>at \
    if ARGV[1]=='LT' then set=(at==-1 and ARGV[4]~='XX') or (at>=0 and new<at) end \
    if set then redis.call('HPEXPIREAT',KEYS[1],ARGV[3],'FIELDS',1,ARGV[i]) end end";

/// A field of a hash, or (`name` is `None`) every field of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Field {
    /// The hash.
    pub hash: Place,
    /// The field's name.
    pub name: Option<Box<[u8]>>,
}

impl Transform {
    /// What to store for fields that expire at `at_ms`.
    fn store_fields(&mut self, db: u32, key: &[u8], names: &[&[u8]], at_ms: u64) -> u64 {
        self.expects_field_expiries();
        let window_ms = match self.mode {
            Mode::Settling { window_ms } if self.dialect.hash_field_expiry => window_ms,
            _ => return field_padded(at_ms),
        };
        let fields =
            || names.iter().map(|name| Field { hash: (db, key.into()), name: Some(Box::from(*name)) });
        if self.comes_within(at_ms, window_ms) {
            self.near_fields.extend(fields());
            return field_padded(at_ms);
        }
        if self.is_soon(at_ms) {
            self.soon_fields.extend(fields());
        }
        at_ms
    }

    /// HEXPIRE and its family: `rest` are flags, then FIELDS, the count, and the fields. The flags stay: of several fields
    /// the source may have changed only some.
    pub(super) fn expire_fields(
        &mut self,
        db: u32,
        key: &[u8],
        at_ms: u64,
        rest: &[&[u8]],
        out: &mut Vec<u8>,
    ) -> Option<u32> {
        let fields = rest.iter().position(|word| word.eq_ignore_ascii_case(b"FIELDS"))?;
        let names = rest.get(fields + 2..)?;
        // Valkey takes XX beside GT or LT.
        let has = |flag: &str| rest[..fields].iter().any(|word| word.eq_ignore_ascii_case(flag.as_bytes()));
        let compares = ["GT", "LT"].into_iter().find(|flag| has(flag));
        let only: &[u8] = if has("XX") { b"XX" } else { b"" };
        let stored = self.store_fields(db, key, names, at_ms);
        let mut number = itoa::Buffer::new();
        let stored = number.format(stored).as_bytes();
        match compares {
            Some(flag) if self.mixed => {
                let at = at_ms.to_string();
                let mut words: Vec<&[u8]> = vec![b"EVAL", COMPARED.as_bytes(), b"1", key];
                words.extend([flag.as_bytes(), at.as_bytes(), stored, only]);
                words.extend_from_slice(names);
                write::command(out, &words);
            }
            _ => {
                let mut words = vec![&b"HPEXPIREAT"[..], key, stored];
                words.extend_from_slice(rest);
                write::command(out, &words);
            }
        }
        Some(1)
    }

    /// HEXPIRE, HPEXPIRE, HEXPIREAT, HPEXPIREAT.
    pub(super) fn field_expire(
        &mut self,
        db: u32,
        args: &[&[u8]],
        unit: Unit,
        base_ms: u64,
        out: &mut Vec<u8>,
    ) -> Option<u32> {
        let at_ms = unit.behind(base_ms, args.get(2)?)?;
        self.expire_fields(db, args[1], at_ms, &args[3..], out)
    }

    /// HSETEX. Without an expiry it goes as it is, or, where that is not known, as HSET.
    pub(super) fn field_set_ex(
        &mut self,
        db: u32,
        args: &[&[u8]],
        arrived_ms: u64,
        out: &mut Vec<u8>,
    ) -> Option<u32> {
        let [name, key, rest @ ..] = args else { return None };
        let fields = rest.iter().position(|word| word.eq_ignore_ascii_case(b"FIELDS"))?;
        let pairs = rest.get(fields + 2..)?;
        let Some(at_ms) = Options::read(&rest[..fields], arrived_ms).and_then(|options| options.at) else {
            if self.dialect.hash_set_ex {
                return None;
            }
            let mut words = vec![&b"HSET"[..], *key];
            words.extend_from_slice(pairs);
            write::command(out, &words);
            return Some(1);
        };
        let names: Vec<&[u8]> = pairs.iter().step_by(2).copied().collect();
        let at = self.store_fields(db, key, &names, at_ms).to_string();
        let mut words = vec![*name, *key, b"PXAT", at.as_bytes()];
        words.extend_from_slice(&rest[fields..]);
        write::command(out, &words);
        Some(1)
    }

    /// HGETEX, which changes expiries only.
    pub(super) fn field_get_ex(
        &mut self,
        db: u32,
        args: &[&[u8]],
        arrived_ms: u64,
        out: &mut Vec<u8>,
    ) -> Option<u32> {
        let [_, key, rest @ ..] = args else { return None };
        let fields = rest.iter().position(|word| word.eq_ignore_ascii_case(b"FIELDS"))?;
        let options = Options::read(&rest[..fields], arrived_ms)?;
        if let Some(at) = options.at {
            return self.expire_fields(db, key, at, &rest[fields..], out);
        }
        if !options.persist {
            return None;
        }
        let mut words = vec![&b"HPERSIST"[..], *key];
        words.extend_from_slice(&rest[fields..]);
        write::command(out, &words);
        Some(1)
    }

    /// A hash has come to this key whose fields may have expiries: a sweep has to look at them once more.
    pub(super) fn hash_arrived(&mut self, db: u32, key: &[u8]) {
        if self.mixed && self.dialect.hash_field_expiry {
            self.near_fields.insert(Field { hash: (db, key.into()), name: None });
        }
    }

    /// The same of a value with its expiry, where nobody knows whether it is a hash.
    pub(super) fn value_arrived(&mut self, db: u32, key: &[u8]) {
        self.near.insert((db, key.into()));
        if self.field_expiries {
            self.hash_arrived(db, key);
        }
    }

    /// Fields whose padded expiry is near; the caller takes care of them.
    pub fn near_fields(&mut self) -> &mut HashSet<Field> {
        &mut self.near_fields
    }

    /// Fields whose exact expiry comes soon, see [`Transform::set_soon`].
    pub fn soon_fields(&mut self) -> &mut HashSet<Field> {
        &mut self.soon_fields
    }

    /// The server that is written to has hashes whose fields expire.
    pub fn expects_field_expiries(&mut self) {
        self.field_expiries = self.dialect.hash_field_expiry;
    }

    /// Whether some of the stored expiries are exact and some padded, or may be.
    pub fn set_mixed(&mut self, mixed: bool) {
        self.mixed = mixed;
    }

    /// Databases have changed places.
    pub(super) fn swap_fields(&mut self, one: u32, two: u32) {
        for fields in [&mut self.near_fields, &mut self.soon_fields] {
            let swapped = std::mem::take(fields).into_iter().map(|mut field| {
                field.hash.0 = swapped(field.hash.0, one, two);
                field
            });
            *fields = swapped.collect();
        }
    }
}
