//! The kinds of commands, by their names.

use super::int;

/// The kinds of commands that need a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// PING, REPLCONF, nothing at all.
    Idle,
    /// SELECT.
    Select,
    /// MULTI.
    Multi,
    /// EXEC.
    Exec,
    /// PUBLISH, SPUBLISH: the first argument is no key.
    Publish,
    /// DEL, UNLINK.
    Delete,
    /// SET.
    Set,
    /// SETEX (seconds) and PSETEX (milliseconds).
    SetEx(Unit),
    /// GETEX.
    GetEx,
    /// MSETEX.
    MultiSetEx,
    /// EXPIRE, PEXPIRE.
    Expire(Unit),
    /// EXPIREAT, PEXPIREAT.
    ExpireAt(Unit),
    /// RESTORE, RESTORE-ASKING.
    Restore,
    /// HEXPIRE, HPEXPIRE.
    FieldExpire(Unit),
    /// HEXPIREAT, HPEXPIREAT.
    FieldExpireAt(Unit),
    /// HSETEX.
    FieldSetEx,
    /// HGETEX.
    FieldGetEx,
    /// RENAME, RENAMENX, COPY: an expiry travels to a second key.
    Carry,
    /// MOVE: an expiry travels to another db.
    Move,
    /// EVAL, EVALSHA.
    Evaluate,
    /// SCRIPT.
    Script,
    /// FLUSHALL.
    FlushAll,
    /// FLUSHDB.
    FlushDb,
    /// SWAPDB.
    SwapDb,
    /// See [`super::older`].
    Older,
    /// Anything else.
    Other,
}

/// The unit of a time argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Millis,
}

impl Unit {
    fn ms(self, number: i64) -> Option<i64> {
        match self {
            Unit::Seconds => number.checked_mul(1000),
            Unit::Millis => Some(number),
        }
    }

    /// The time that lies `number` units behind `base_ms`, if a server can store it.
    pub(super) fn behind(self, base_ms: u64, number: &[u8]) -> Option<u64> {
        let at = base_ms.checked_add_signed(self.ms(int(number)?)?)?;
        (at <= i64::MAX as u64).then_some(at)
    }
}

/// The kind of a command, by its name in any case.
#[inline]
pub fn classify(name: &[u8]) -> Class {
    use Unit::{Millis, Seconds};
    let mut lower = [0u8; 14];
    let Some(lower) = lower.get_mut(..name.len()) else {
        return Class::Other;
    };
    for (to, from) in lower.iter_mut().zip(name) {
        *to = from | 0x20;
    }
    match &*lower {
        b"" | b"ping" | b"replconf" => Class::Idle,
        b"set" => Class::Set,
        b"del" | b"unlink" => Class::Delete,
        b"select" => Class::Select,
        b"multi" => Class::Multi,
        b"exec" => Class::Exec,
        b"publish" | b"spublish" => Class::Publish,
        b"setex" => Class::SetEx(Seconds),
        b"psetex" => Class::SetEx(Millis),
        b"getex" => Class::GetEx,
        b"msetex" => Class::MultiSetEx,
        b"expire" => Class::Expire(Seconds),
        b"pexpire" => Class::Expire(Millis),
        b"expireat" => Class::ExpireAt(Seconds),
        b"pexpireat" => Class::ExpireAt(Millis),
        b"restore" | b"restore-asking" => Class::Restore,
        b"hexpire" => Class::FieldExpire(Seconds),
        b"hpexpire" => Class::FieldExpire(Millis),
        b"hexpireat" => Class::FieldExpireAt(Seconds),
        b"hpexpireat" => Class::FieldExpireAt(Millis),
        b"hsetex" => Class::FieldSetEx,
        b"hgetex" => Class::FieldGetEx,
        b"rename" | b"renamenx" | b"copy" => Class::Carry,
        b"move" => Class::Move,
        b"eval" | b"evalsha" => Class::Evaluate,
        b"script" => Class::Script,
        b"flushall" => Class::FlushAll,
        b"flushdb" => Class::FlushDb,
        b"swapdb" => Class::SwapDb,
        _ => Class::Other,
    }
}
