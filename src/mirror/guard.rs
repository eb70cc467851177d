//! With `[filter] types` a server may hold values of other types under names that the stream writes to: on the way back the
//! source's own, and what a destination held before. They are nobody's but that server's.
//!
//! A command that works on one type is refused by the server where the key holds another (WRONGTYPE). One that overwrites, or
//! does the same to all types, is run by a script that looks at the type first, in the same place of the same transaction:
//!
//! ```text
//! SET k v           ──▶  the key holds a type that is not copied:  an error that says so; `mirror.on_error` decides
//! DEL k, PEXPIREAT k ──▶ the same:  nothing. The key of the stream was another one
//! MSET, DEL of many ──▶  one such script for each key
//! ```

use std::fmt::Write as _;

use super::copying::places;
use super::decode::frames;
use super::kinds::{Works, works};
use super::transform::is_own;
use crate::config::{Filter, ValueType};
use crate::resp::write;

/// ARGV: the names of the types that are copied, whether those of any other name are, what to do where the type is
/// another ("stop", "pass"), and the command.
const SCRIPT: &str = "local t=redis.call('TYPE',KEYS[1]) t=t.ok or t \
    local known=string.find(' none string list set zset hash stream ',' '..t..' ',1,true) \
    local ours=ARGV[2]=='1' if known then ours=string.find(ARGV[1],' '..t..' ',1,true) end \
    if ours then return redis.call(unpack(ARGV,4)) end \
    if ARGV[3]=='pass' then return 0 end \
    return redis.error_reply('CROSSFADE the key holds a '..t..' there that is not part of the copy')";
/// Words in front of the command that is run.
const HEAD: usize = 7;

/// What stands before the writes to a server that holds keys of other types.
#[derive(Debug, Clone)]
pub struct Guard {
    /// Between blanks, with `none`.
    kept: String,
    others: bool,
}

impl Guard {
    /// A guard for a filter that chooses by type.
    pub fn new(filter: &Filter) -> Option<Self> {
        let mut guard = Self { kept: " none ".into(), others: filter.keeps_type(ValueType::Module) };
        for kind in filter.types.iter().filter(|kind| **kind != ValueType::Module) {
            let _ = write!(guard.kept, "{} ", kind.name());
        }
        (!filter.types.is_empty()).then_some(guard)
    }

    /// Puts itself before the commands that stand in `wire` behind `start`. Answers how many they are then.
    pub fn stand_before(&self, wire: &mut Vec<u8>, start: usize, db: u32) -> u32 {
        let commands = wire.split_off(start);
        let mut count = 0;
        for (at, frame) in frames(&commands) {
            let bytes = &commands[at..at + frame.len];
            let args: Vec<&[u8]> = frame.args(bytes).collect();
            count += self.write(&args, db, wire).unwrap_or_else(|| {
                wire.extend_from_slice(bytes);
                1
            });
        }
        count
    }

    /// `None`: the command goes as it is.
    fn write(&self, args: &[&[u8]], db: u32, out: &mut Vec<u8>) -> Option<u32> {
        let (name, rest) = args.split_first()?;
        let is = |word: &str| name.eq_ignore_ascii_case(word.as_bytes());
        let (how, step, rest) = match () {
            () if is("DEL") || is("UNLINK") => ("pass", 1, rest),
            // The source only sends what took effect, and it comes here without an expiry.
            () if is("MSET") || is("MSETNX") => ("stop", 2, rest),
            () if is("MSETEX") => {
                let pairs: usize = std::str::from_utf8(rest.first()?).ok()?.parse().ok()?;
                ("stop", 2, rest.get(1..1 + pairs.checked_mul(2)?)?)
            }
            () => {
                let how = match works(name) {
                    Some(Works::OnAny) => "pass",
                    Some(Works::Becomes(_)) => "stop",
                    // SETNX would do nothing, and not say why.
                    _ if is("RESTORE") || is("SETNX") => "stop",
                    _ => return None,
                };
                let key = places(args, db).ok()?.into_iter().find(|(_, written)| *written)?.0.1;
                if is_own(&key) {
                    return None;
                }
                self.run(how, &key, args, out);
                return Some(1);
            }
        };
        let name: &[u8] = if step == 1 { name } else { b"SET" };
        let mut count = 0;
        for one in rest.chunks_exact(step).filter(|one| !is_own(one[0])) {
            let mut command = vec![name];
            command.extend_from_slice(one);
            self.run(how, one[0], &command, out);
            count += 1;
        }
        Some(count)
    }

    fn run(&self, how: &str, key: &[u8], command: &[&[u8]], out: &mut Vec<u8>) {
        let others: &[u8] = if self.others { b"1" } else { b"0" };
        let mut words: Vec<&[u8]> = Vec::with_capacity(HEAD + command.len());
        words.extend([&b"EVAL"[..], SCRIPT.as_bytes(), b"1", key]);
        words.extend([self.kept.as_bytes(), others, how.as_bytes()]);
        words.extend_from_slice(command);
        write::command(out, &words);
    }
}

/// The command that a guard stands before, or the one that was given.
pub(super) fn behind(mut args: Vec<&[u8]>) -> Vec<&[u8]> {
    if args.len() > HEAD && args[1] == SCRIPT.as_bytes() {
        args.drain(..HEAD);
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guarded(types: &[ValueType], line: &str) -> Option<Vec<String>> {
        let guard = Guard::new(&Filter { types: types.to_vec(), ..Default::default() })?;
        let mut wire = b"before".to_vec();
        write::command(&mut wire, &line.split(' ').collect::<Vec<_>>());
        let count = guard.stand_before(&mut wire, 6, 0);
        let mut lines = Vec::new();
        let mut end = 6;
        for (at, frame) in frames(&wire[6..]) {
            let args: Vec<&[u8]> = frame.args(&wire[6 + at..]).collect();
            end = 6 + at + frame.len;
            let scripted = args.len() > HEAD && args[1] == SCRIPT.as_bytes();
            let mut words = if scripted { args[3..HEAD].to_vec() } else { vec![&b"as it is:"[..]] };
            words.extend(behind(args));
            let words: Vec<_> = words.into_iter().map(String::from_utf8_lossy).collect();
            lines.push(words.join("|"));
        }
        assert_eq!((end, lines.len()), (wire.len(), count as usize));
        Some(lines)
    }

    #[test]
    fn what_looks_at_the_type_first() {
        let told = |line| guarded(&[ValueType::List, ValueType::String], line).unwrap();
        let types = " none list string |0";
        assert_eq!(told("SET k v PXAT 5"), [format!("k|{types}|stop|SET|k|v|PXAT|5")]);
        assert_eq!(told("PEXPIREAT k 5"), [format!("k|{types}|pass|PEXPIREAT|k|5")]);
        assert_eq!(told("BITOP NOT d s"), [format!("d|{types}|stop|BITOP|NOT|d|s")]);
        assert_eq!(told("RESTORE k 0 x"), [format!("k|{types}|stop|RESTORE|k|0|x")]);
        let each = [format!("a|{types}|pass|DEL|a"), format!("b|{types}|pass|DEL|b")];
        assert_eq!(told("DEL a b crossfade:x"), each);
        let each = [format!("a|{types}|stop|SET|a|1"), format!("b|{types}|stop|SET|b|2")];
        assert_eq!(told("MSET a 1 b 2"), each);
        assert_eq!(told("MSETEX 2 a 1 b 2 NX"), each);
        assert_eq!(told("MSETNX a 1 b 2"), each);
        assert_eq!(told("SETNX k v"), [format!("k|{types}|stop|SETNX|k|v")]);
        for line in ["RPUSH k 1", "SET crossfade:x 1", "SELECT 3", "FUNCTION FLUSH"] {
            assert_eq!(told(line), [format!("as it is:|{}", line.replace(' ', "|"))]);
        }
        let modules = guarded(&[ValueType::Module, ValueType::Set], "DEL k").unwrap();
        assert_eq!(modules, ["k| none set |1|pass|DEL|k"]);
        assert_eq!(guarded(&[], "DEL k"), None);
    }
}
