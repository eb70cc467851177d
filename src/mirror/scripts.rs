//! Scripts that the source replicates by their text.
//!
//! Before Redis 5.0 (until 7.0 where `lua-replicate-commands no` is set) a script travels as EVAL or EVALSHA. What it does on
//! the destination has to be what it did on the source, where the same text meets:
//!
//! * another time: EXPIRE, SETEX and SET EX count from the arrival, and are [padded](super::expiry); TTL tells the
//!   time left without the pad;
//! * another order: these servers sort what SMEMBERS, HKEYS and their kin answer to a script, Redis 7.0 does not;
//! * other numbers: these servers begin each script with the same seed;
//! * the same error: a script that breaks half-way on the source is replicated too, and breaks here in the same place.
//!   Only what the destination alone can say (OOM, READONLY, …) counts as a failure;
//! * no cache: the source sends EVALSHA once it has sent EVAL. Texts are kept here, so that a restart of the
//!   destination or of the gateway does not lose them.
//!
//! So each goes as EVAL of its text inside a frame (`BEFORE`) that stands in for `redis` and takes the time of arrival as
//! the last argument. The frame is the same for every call: a destination keeps one script for each of the source's.
//!
//! Not covered: keys that a script names by itself and gives an expiry while the expiries are being made exact.

use std::collections::HashMap;

use bytes::Bytes;

use crate::resp::write;

/// Stands before a script's text. 2^52 is [`super::expiry::PAD_MS`], 2^51 what tells a padded expiry from an exact one.
const BEFORE: &str = concat!(
    "local at=tonumber(table.remove(ARGV)) local raw=redis ",
    "local function far(ms) if ms<2^51 then ms=ms+2^52 end return string.format('%.0f',ms) end ",
    "local expiry={expire={1000,at},pexpire={1,at},expireat={1000,0},pexpireat={1,0},ex={1000,at},px={1,at}} ",
    "local sorted={smembers=1,sinter=1,sunion=1,sdiff=1,hkeys=1,hvals=1,keys=1} ",
    "local function time(unit,number) local n=tonumber(number) if unit and n then return far(unit[2]+n*unit[1]) end end ",
    "local function go(call,name,...) local n=string.lower(tostring(name)) local a={...} ",
    "if n=='setex' or n=='psetex' then local t=time(expiry[n=='setex' and 'ex' or 'px'],a[2]) ",
    "if t and #a==3 and tonumber(a[2])>0 then local r=call('SET',a[1],a[3]) call('PEXPIREAT',a[1],t) return r end ",
    "elseif n=='set' and #a>3 then local rest,t={},nil local i=3 while i<=#a do local u=expiry[string.lower(tostring(a[i]))] ",
    "if u and #tostring(a[i])==2 then t=time(u,a[i+1]) i=i+2 else rest[#rest+1]=a[i] i=i+1 end end ",
    "if t then local r=call('SET',a[1],a[2],unpack(rest)) if type(r)=='table' and r.ok then call('PEXPIREAT',a[1],t) end return r end ",
    "elseif expiry[n] and #n>2 then local t=time(expiry[n],a[2]) if t and #a==2 then return call('PEXPIREAT',a[1],t) end ",
    "elseif n=='ttl' or n=='pttl' then local r=call('PTTL',...) if type(r)=='number' and r>=0 then ",
    "if r>=2^51 then r=math.max(r-2^52,0) end if n=='ttl' then r=math.floor((r+500)/1000) end end return r ",
    "elseif sorted[n] then local r=call(name,...) if type(r)=='table' and not r.err then ",
    "if n=='keys' then local own=r r={} for _,k in ipairs(own) do if string.sub(k,1,10)~='crossfade:' then r[#r+1]=k end end end ",
    "table.sort(r) end return r end return call(name,...) end ",
    "local redis=setmetatable({call=function(...) return go(raw.call,...) end,pcall=function(...) return go(raw.pcall,...) end},{__index=raw}) ",
    "math.randomseed(0) local fine,why=pcall(function() ",
);

/// Stands behind it.
const BEHIND: &str = concat!(
    "\nend) if not fine then if type(why)=='table' then why=why.err end why=tostring(why) ",
    "for _,word in ipairs({'OOM','READONLY','MISCONF','NOREPLICAS','NOPERM','LOADING'}) do ",
    "if string.find(why,word,1,true) then return raw.error_reply(why) end end end",
);

/// Texts that are kept, in bytes: those that were in use last. A source forgets after 10,000 what it has sent, and sends it anew.
const KEPT: usize = 64 * 1024 * 1024;
/// What an entry takes besides its text.
const OVERHEAD: usize = 256;

/// The scripts whose texts have come by.
#[derive(Debug, Default)]
pub struct Scripts {
    /// Used since the last change of generations, and how much that is.
    young: HashMap<String, Bytes>,
    bytes: usize,
    /// Used in the generation before. When the next begins, what is still here is forgotten.
    old: HashMap<String, Bytes>,
    fresh: Vec<(String, Bytes)>,
    gone: Vec<String>,
}

impl Scripts {
    /// Knows a text from an earlier run.
    pub fn remember(&mut self, text: Bytes) {
        self.keep(sha1_hex(&text), text);
    }

    /// Texts that came since the last call, with their digests: to be kept on disk before what came with them is applied.
    pub fn take_fresh(&mut self) -> Vec<(String, Bytes)> {
        std::mem::take(&mut self.fresh)
    }

    /// Digests that are forgotten since the last call: their texts need not be kept on disk any more.
    pub fn take_gone(&mut self) -> Vec<String> {
        std::mem::take(&mut self.gone)
    }

    fn learn(&mut self, text: &[u8]) {
        let digest = sha1_hex(text);
        if self.text(&digest).is_none() {
            let text = Bytes::copy_from_slice(text);
            self.fresh.push((digest.clone(), text.clone()));
            self.keep(digest, text);
        }
    }

    fn keep(&mut self, digest: String, text: Bytes) {
        self.bytes += text.len() + OVERHEAD;
        self.young.insert(digest, text);
        if self.bytes > KEPT / 2 {
            let forgotten = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
            self.gone.extend(forgotten.into_keys());
            self.bytes = 0;
        }
    }

    /// The text of a digest, which is in use by that.
    fn text(&mut self, digest: &str) -> Option<Bytes> {
        if let Some(text) = self.young.get(digest) {
            return Some(text.clone());
        }
        let (digest, text) = self.old.remove_entry(digest)?;
        self.keep(digest, text.clone());
        Some(text)
    }

    /// Looks at a SCRIPT command, which goes as it is.
    pub fn script(&mut self, args: &[&[u8]]) {
        if let [_, sub, text] = args
            && sub.eq_ignore_ascii_case(b"LOAD")
        {
            self.learn(text);
        }
    }

    /// Writes EVAL or EVALSHA in its frame; `None` when its text is not known.
    pub fn evaluate(&mut self, args: &[&[u8]], arrived_ms: u64, out: &mut Vec<u8>) -> Option<u32> {
        let [name, script, rest @ ..] = args else { return None };
        let text = if name.eq_ignore_ascii_case(b"EVAL") {
            self.learn(script);
            Bytes::copy_from_slice(script)
        } else {
            let digest = std::str::from_utf8(script).ok()?.to_ascii_lowercase();
            self.text(&digest)?
        };
        let framed = [BEFORE.as_bytes(), &text, BEHIND.as_bytes()].concat();
        let mut number = itoa::Buffer::new();
        let mut words = vec![&b"EVAL"[..], &framed];
        words.extend_from_slice(rest);
        words.push(number.format(arrived_ms).as_bytes());
        write::command(out, &words);
        Some(1)
    }
}

/// The keys that EVAL or EVALSHA declares.
pub fn declared<'a>(args: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let count = args.get(2).and_then(|count| std::str::from_utf8(count).ok()?.parse().ok()).unwrap_or(0);
    args.iter().skip(3).take(count).copied().collect()
}

/// SHA-1 (FIPS 180-4), by which servers name scripts. Nothing here rests on its strength.
fn sha1_hex(text: &[u8]) -> String {
    let mut state: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    let mut message = text.to_vec();
    message.push(0x80);
    message.resize(message.len().next_multiple_of(64), 0);
    if message.len() - text.len() < 9 {
        message.resize(message.len() + 64, 0);
    }
    let end = message.len();
    message[end - 8..].copy_from_slice(&(text.len() as u64 * 8).to_be_bytes());
    for block in message.chunks_exact(64) {
        let mut words = [0u32; 80];
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
        }
        for at in 16..80 {
            words[at] = (words[at - 3] ^ words[at - 8] ^ words[at - 14] ^ words[at - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (at, word) in words.iter().enumerate() {
            let (mixed, constant) = match at {
                0..20 => ((b & c) | (!b & d), 0x5a82_7999),
                20..40 => (b ^ c ^ d, 0x6ed9_eba1),
                40..60 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6u32),
            };
            let next = a
                .rotate_left(5)
                .wrapping_add(mixed)
                .wrapping_add(e)
                .wrapping_add(constant)
                .wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (state, new) in state.iter_mut().zip([a, b, c, d, e]) {
            *state = state.wrapping_add(new);
        }
    }
    state.iter().map(|word| format!("{word:08x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_servers() {
        assert_eq!(sha1_hex(b""), "da39a3ee5e6b4b0d3255bfef95601890afd80709");
        assert_eq!(sha1_hex(b"return 1"), "e0e1f9fabfc9d4800c877a703b823ac0578ff8db");
        for len in [55, 56, 63, 64, 119, 120] {
            assert_eq!(sha1_hex(&vec![b'a'; len]).len(), 40);
        }
        assert_eq!(sha1_hex(&[b'a'; 56]), "c2db330f6083854c99d4b5bfb6e8f29f201be699");
    }

    #[test]
    fn what_is_in_use_stays_and_the_rest_is_forgotten() {
        let mut scripts = Scripts::default();
        let mut known = std::collections::HashSet::new();
        let used = sha1_hex(b"return 'used'");
        scripts.learn(b"return 'used'");
        for n in 0..200 {
            scripts.learn(format!("return '{n}{}'", "x".repeat(KEPT / 100)).as_bytes());
            assert!(scripts.text(&used).is_some());
            known.extend(scripts.take_fresh().into_iter().map(|(digest, _)| digest));
            for digest in scripts.take_gone() {
                assert!(known.remove(&digest));
            }
            let held: usize = scripts.young.values().chain(scripts.old.values()).map(Bytes::len).sum();
            assert!(held <= KEPT + KEPT / 50 && known.len() == scripts.young.len() + scripts.old.len());
        }
        assert!(known.len() < 110);
    }

    #[test]
    fn a_text_that_came_once_serves_its_digest_from_then_on() {
        let mut scripts = Scripts::default();
        let mut out = Vec::new();
        let sha = sha1_hex(b"return 1");
        let by_digest = [&b"EVALSHA"[..], sha.as_bytes(), b"1", b"k"];
        assert_eq!(scripts.evaluate(&by_digest, 7, &mut out), None);
        assert_eq!(scripts.evaluate(&[b"EVAL", b"return 1", b"1", b"k"], 7, &mut out), Some(1));
        let first = std::mem::take(&mut out);
        assert_eq!(scripts.evaluate(&by_digest, 7, &mut out), Some(1));
        assert_eq!(out, first);
        assert_eq!(scripts.take_fresh(), vec![(sha.clone(), Bytes::from_static(b"return 1"))]);
        assert!(scripts.take_fresh().is_empty());
        assert!(scripts.take_gone().is_empty());
        assert_eq!(declared(&by_digest), vec![b"k"]);
        assert_eq!(declared(&[b"EVAL", b"", b"x"]), Vec::<&[u8]>::new());
    }
}
