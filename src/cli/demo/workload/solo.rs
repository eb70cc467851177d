//! A client that changes things of its own and things that all share, and checks every reply.
//!
//! Its own things: a log (APPEND), two lists (RPUSH, LPUSH), counters (INCR, HINCRBY, ZINCRBY, a script, an
//! optimistic WATCH/MULTI/EXEC), a set, a stream, a pair of counters that move together in a transaction, and a
//! register that it sets to values nobody else knows. Shared: counters, a list, a pair.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::link::{Dice, Link};
use super::scan::Scan;
use super::sequence::{Fault, FaultKind, Sequence, TOKEN, parse_token, token};
use super::{Plan, SHARED};
use crate::cli::demo::connection::{Connection, Reply};

/// The things of its own, each with a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Own {
    Log,
    Tail,
    Head,
    Counter,
    Field,
    Score,
    Script,
    Function,
    Watched,
    Members,
    Stream,
    Pair,
}

impl Own {
    const ALL: [Own; 12] = [
        Own::Log,
        Own::Tail,
        Own::Head,
        Own::Counter,
        Own::Field,
        Own::Score,
        Own::Script,
        Own::Function,
        Own::Watched,
        Own::Members,
        Own::Stream,
        Own::Pair,
    ];

    fn name(self) -> &'static str {
        match self {
            Own::Log => "log",
            Own::Tail => "tail",
            Own::Head => "head",
            Own::Counter => "counter",
            Own::Field => "field",
            Own::Score => "score",
            Own::Script => "script",
            Own::Function => "function",
            Own::Watched => "watched",
            Own::Members => "members",
            Own::Stream => "stream",
            Own::Pair => "pair",
        }
    }
}

/// What the reply to a command in flight has to be.
#[derive(Debug, Clone, Copy)]
enum Expect {
    Own(Own, u64),
    Set(u64),
    Get,
    Lease,
    LeaseTtl,
    SharedCounter(usize, u64),
    SharedList(u64),
    SharedPair(u64),
    Ok,
    Queued,
    Name,
    Echo(u64),
    Replicas,
}

/// A value that only its writer knows; reads may not go back in time.
#[derive(Debug, Default)]
struct Register {
    writes: Sequence,
    /// The newest write that is known to have happened.
    floor: u64,
    unknown: Vec<u64>,
}

/// The script, and its SHA-1.
const SCRIPT: [&str; 2] = ["return redis.call('INCR', KEYS[1])", "61636018f4e6b5817b89791bbed242f93fa089e3"];

pub(super) struct Solo {
    index: usize,
    link: Link,
    dice: Dice,
    prefix: String,
    own: [Sequence; Own::ALL.len()],
    pub(super) shared_counters: [(Sequence, i64); SHARED],
    pub(super) shared_list: Sequence,
    pub(super) shared_pair: (Sequence, i64),
    register: Register,
    secret: u64,
    stream_id: (u64, u64),
    /// The script went to the server as text, so its hash will do.
    script_known: bool,
    /// The server has the library.
    functions: bool,
    /// Members that are known to be there, in the order of their replies.
    members: Vec<u64>,
    /// Of the set, and of the database.
    scans: [Scan; 2],
    flight: Vec<Expect>,
}

impl Solo {
    pub(super) fn new(index: usize, link: Link, plan: &Plan) -> Self {
        let mut dice = Dice::new(plan.seed ^ (index as u64).wrapping_mul(0x1_0001));
        let secret = dice.next();
        Self {
            index,
            link,
            dice,
            prefix: plan.prefix.clone(),
            own: Default::default(),
            shared_counters: Default::default(),
            shared_list: Sequence::new(),
            shared_pair: Default::default(),
            register: Register::default(),
            secret,
            stream_id: (0, 0),
            script_known: false,
            functions: plan.modern,
            members: Vec::new(),
            scans: Default::default(),
            flight: Vec::new(),
        }
    }

    pub(super) fn db(&self) -> u32 {
        self.link.db
    }

    pub(super) fn index(&self) -> usize {
        self.index
    }

    pub(super) fn told(&self, what: &str, fault: Fault) {
        self.link.told(what, fault);
    }

    fn key(&self, what: &str) -> String {
        format!("{}:{}:{what}", self.prefix, self.index)
    }

    pub(super) fn shared(&self, what: &str, index: usize) -> String {
        shared_key(&self.prefix, what, index)
    }

    /// Works until the traffic is stopped.
    pub(super) async fn run(mut self, interval: Option<Duration>) -> Self {
        let mut due = Instant::now();
        while !self.link.stop.is_cancelled() {
            if self.link.ready().await.is_none() {
                break;
            }
            let odd = self.dice.below(40);
            let operations = if odd == 0 {
                self.optimistic().await;
                5
            } else if odd <= 2 && self.link.strict() {
                // Not where servers may restart: their cursors are of no use afterwards.
                self.scan_on().await;
                1
            } else {
                let batch = match self.dice.below(10) {
                    0..=6 => 1,
                    7..=8 => 2 + self.dice.below(6),
                    _ => 8 + self.dice.below(24),
                };
                (0..batch).for_each(|_| self.choose());
                self.settle().await
            };
            if let Some(interval) = interval {
                due += interval * operations;
                let now = Instant::now();
                if due > now {
                    tokio::time::sleep(due - now).await;
                } else if now - due > Duration::from_secs(1) {
                    due = now; // after a pause, do not try to catch up with the whole of it
                }
            }
        }
        self
    }

    fn choose(&mut self) {
        match self.dice.below(24) {
            0..=1 => self.own(Own::Log),
            2..=3 => self.own(Own::Tail),
            4 => self.own(Own::Head),
            5..=7 => self.own(Own::Counter),
            8 => self.own(Own::Field),
            9 => self.own(Own::Score),
            10 if self.functions && self.dice.below(2) == 0 => self.own(Own::Function),
            10 => self.own(Own::Script),
            11 => self.own(Own::Members),
            12 => self.own(Own::Stream),
            13 => self.own(Own::Pair),
            14 => {
                let index = self.dice.below(SHARED as u64) as usize;
                let step = self.shared_counters[index].0.attempt();
                self.send(&["INCR", &self.shared("counter", index)], Expect::SharedCounter(index, step));
            }
            15 => {
                let step = self.shared_list.attempt();
                let element = format!("{}.{step}", self.index);
                self.send(&["RPUSH", &self.shared("list", 0), &element], Expect::SharedList(step));
            }
            16 => {
                let step = self.shared_pair.0.attempt();
                let (a, b) = (self.shared("pair", 0), self.shared("pair", 1));
                self.transaction(&a, &b, Expect::SharedPair(step));
            }
            17 => {
                let key = self.key("lease");
                self.send(&["SET", &key, "leased", "EX", "600"], Expect::Lease);
                self.send(&["TTL", &key], Expect::LeaseTtl);
            }
            18 => match self.dice.below(8) {
                0 => self.send(&["CLIENT", "GETNAME"], Expect::Name),
                1 => self.send(&["WAIT", "1", "20"], Expect::Replicas),
                _ => {
                    let number = self.dice.next() >> 16;
                    self.send(&["ECHO", &format!("{}:{number}", self.index)], Expect::Echo(number));
                }
            },
            19..=20 => {
                let step = self.register.writes.attempt();
                let value = self.secret_value(step);
                self.send(&["SET", &self.key("register"), &value], Expect::Set(step));
            }
            _ => self.send(&["GET", &self.key("register")], Expect::Get),
        }
    }

    fn own(&mut self, what: Own) {
        let step = self.own[what as usize].attempt();
        let key = self.key(what.name());
        let element = format!("{}.{step}", self.index);
        let expect = Expect::Own(what, step);
        match what {
            Own::Log => self.send(&["APPEND", &key, &token(step)], expect),
            Own::Tail => self.send(&["RPUSH", &key, &element], expect),
            Own::Head => self.send(&["LPUSH", &key, &element], expect),
            Own::Counter => self.send(&["INCR", &key], expect),
            Own::Field => self.send(&["HINCRBY", &key, "steps", "1"], expect),
            Own::Score => self.send(&["ZINCRBY", &key, "1", "steps"], expect),
            Own::Script if self.script_known && self.link.strict() => {
                self.send(&["EVALSHA", SCRIPT[1], "1", &key], expect);
            }
            Own::Script => self.send(&["EVAL", SCRIPT[0], "1", &key], expect),
            Own::Function => self.send(&["FCALL", "checked_incr", "1", &key], expect),
            Own::Members => self.send(&["SADD", &key, &member(step)], expect),
            Own::Stream => self.send(&["XADD", &key, "*", "step", &step.to_string()], expect),
            Own::Pair => self.transaction(&format!("{key}:a"), &format!("{key}:b"), expect),
            Own::Watched => {}
        }
    }

    fn transaction(&mut self, a: &str, b: &str, expect: Expect) {
        self.send(&["MULTI"], Expect::Ok);
        self.send(&["INCR", a], Expect::Queued);
        self.send(&["INCR", b], Expect::Queued);
        self.send(&["EXEC"], expect);
    }

    fn send(&mut self, args: &[&str], expect: Expect) {
        self.link.queue(args);
        self.flight.push(expect);
    }

    fn secret_value(&self, step: u64) -> String {
        format!("{:016x}:{step}:{:>40}", self.secret, self.index)
    }

    /// Sends what was chosen, checks each reply, notes what was lost. Returns the number of commands.
    async fn settle(&mut self) -> u32 {
        let began = Instant::now();
        let replies = self.link.exchange().await;
        let flight = std::mem::take(&mut self.flight);
        for (index, expect) in flight.iter().enumerate() {
            match replies.get(index) {
                Some(Reply::Error(text)) => {
                    self.refuse(*expect);
                    let (what, step) = describe(*expect);
                    self.link.remember(what, step, None, "refused", began);
                    self.link.refused(what, step, text).await;
                }
                Some(reply) => {
                    let (what, step) = describe(*expect);
                    self.link.remember(what, step, reply.number(), "answered", began);
                    if let Err(fault) = self.check(*expect, reply) {
                        self.link.told(what, fault);
                    }
                }
                None => {
                    let (what, step) = describe(*expect);
                    self.link.remember(what, step, None, "unknown", began);
                    self.lose(*expect);
                }
            }
        }
        u32::try_from(flight.len()).unwrap_or(1)
    }

    fn sequence(&mut self, expect: Expect) -> Option<(&mut Sequence, u64)> {
        Some(match expect {
            Expect::Own(what, step) => (&mut self.own[what as usize], step),
            Expect::SharedCounter(index, step) => (&mut self.shared_counters[index].0, step),
            Expect::SharedList(step) => (&mut self.shared_list, step),
            Expect::SharedPair(step) => (&mut self.shared_pair.0, step),
            Expect::Set(step) => (&mut self.register.writes, step),
            _ => return None,
        })
    }

    fn lose(&mut self, expect: Expect) {
        if let Some((sequence, step)) = self.sequence(expect) {
            sequence.lose(step);
        }
        if let Expect::Set(step) = expect {
            self.register.unknown.push(step);
        }
    }

    fn refuse(&mut self, expect: Expect) {
        if let Some((sequence, step)) = self.sequence(expect) {
            sequence.refuse(step);
        }
    }

    fn check(&mut self, expect: Expect, reply: &Reply) -> Result<(), Fault> {
        let (_, step) = describe(expect);
        let wrong = |should: &str| {
            let text = format!("the reply is {}, it has to be {should}", reply.brief());
            Err(Fault::new(FaultKind::WrongReply, Some(step), text))
        };
        match expect {
            Expect::Ok => return if reply.bytes() == Some(b"OK") { Ok(()) } else { wrong("OK") },
            Expect::Queued => return if reply.bytes() == Some(b"QUEUED") { Ok(()) } else { wrong("QUEUED") },
            Expect::Lease => return if reply.bytes() == Some(b"OK") { Ok(()) } else { wrong("OK") },
            Expect::LeaseTtl => {
                return match reply {
                    Reply::Integer(595..=600) => Ok(()),
                    _ => wrong("595 to 600 seconds"),
                };
            }
            Expect::Name => {
                let same = reply.bytes() == Some(self.link.name.as_bytes());
                return if same { Ok(()) } else { wrong(&self.link.name) };
            }
            Expect::Echo(number) => {
                let own = format!("{}:{number}", self.index);
                return if reply.bytes() == Some(own.as_bytes()) { Ok(()) } else { wrong(&own) };
            }
            Expect::Replicas => {
                return if matches!(reply, Reply::Integer(0..)) {
                    Ok(())
                } else {
                    wrong("a number of replicas")
                };
            }
            Expect::Get => return self.check_read(reply),
            Expect::Set(step) => {
                if reply.bytes() != Some(b"OK") {
                    return wrong("OK");
                }
                self.register.floor = step;
                self.register.unknown.retain(|&unknown| unknown > step);
                return self.register.writes.acknowledge(step, None);
            }
            Expect::SharedCounter(index, step) => {
                let Reply::Integer(now) = *reply else { return wrong("a number") };
                let (steps, last) = &mut self.shared_counters[index];
                let before = std::mem::replace(last, now);
                steps.acknowledge(step, None)?;
                return if now > before {
                    Ok(())
                } else {
                    wrong(&format!("more than {before}, seen before"))
                };
            }
            Expect::SharedList(step) => {
                let Reply::Integer(_) = reply else { return wrong("a number") };
                return self.shared_list.acknowledge(step, None);
            }
            Expect::SharedPair(step) => {
                let [Reply::Integer(a), Reply::Integer(b)] = *reply.items() else {
                    return wrong("two numbers");
                };
                let before = std::mem::replace(&mut self.shared_pair.1, a);
                self.shared_pair.0.acknowledge(step, None)?;
                return if a == b && a > before {
                    Ok(())
                } else {
                    wrong(&format!("two equal numbers above {before}"))
                };
            }
            Expect::Own(..) => {}
        }
        let Expect::Own(what, step) = expect else { return Ok(()) };
        let steps = &mut self.own[what as usize];
        match what {
            Own::Log => match reply {
                Reply::Integer(bytes) if (*bytes as usize).is_multiple_of(TOKEN) => {
                    steps.acknowledge(step, Some((*bytes as usize / TOKEN) as u64))
                }
                _ => wrong("a multiple of 8"),
            },
            Own::Pair => match *reply.items() {
                [Reply::Integer(a), Reply::Integer(b)] if a == b => steps.acknowledge(step, Some(a as u64)),
                _ => wrong("two equal numbers"),
            },
            Own::Members => match reply {
                Reply::Integer(1) => {
                    self.members.push(step);
                    steps.acknowledge(step, None)
                }
                _ => wrong("1: no other client adds here"),
            },
            Own::Stream => {
                let id = reply.bytes().and_then(stream_id);
                match id {
                    Some(id) if id > self.stream_id => {
                        self.stream_id = id;
                        steps.acknowledge(step, None)
                    }
                    _ => wrong(&format!("an id above {}-{}", self.stream_id.0, self.stream_id.1)),
                }
            }
            _ => match reply.number() {
                Some(total) if total >= 0 => {
                    self.script_known |= what == Own::Script;
                    steps.acknowledge(step, Some(total as u64))
                }
                _ => wrong("a number"),
            },
        }
    }

    /// A read has to give this client's newest write, or one of unknown outcome after it.
    fn check_read(&mut self, reply: &Reply) -> Result<(), Fault> {
        let read = match reply {
            Reply::Nil => 0,
            Reply::Bulk(value) => {
                let step =
                    std::str::from_utf8(value).ok().and_then(|value| value.split(':').nth(1)?.parse().ok());
                match step {
                    Some(step) if self.secret_value(step).as_bytes() == value.as_slice() => step,
                    _ => {
                        let text = format!("a value that this client never wrote: {}", reply.brief());
                        return Err(Fault::new(FaultKind::WrongReply, None, text));
                    }
                }
            }
            _ => {
                let text = format!("a string was expected, not {}", reply.brief());
                return Err(Fault::new(FaultKind::WrongReply, None, text));
            }
        };
        let register = &mut self.register;
        if read == register.floor {
            return Ok(());
        }
        if register.unknown.contains(&read) {
            register.floor = read;
            register.unknown.retain(|&unknown| unknown > read);
            return Ok(());
        }
        let text =
            format!("read version {read} of the register, after version {} was written", register.floor);
        Err(Fault::new(FaultKind::WrongReply, Some(read), text))
    }

    /// The next step of a scan over the set, or over the database.
    async fn scan_on(&mut self) {
        let began = Instant::now();
        let keys = self.dice.below(2) == 1;
        let mut scan = std::mem::take(&mut self.scans[usize::from(keys)]);
        if keys {
            let cursor = scan.cursor(|| self.keys_there());
            let pattern = self.key("*");
            self.link.queue(&[b"SCAN".as_slice(), &cursor, b"MATCH", pattern.as_bytes(), b"COUNT", b"50"]);
        } else {
            let cursor = scan.cursor(|| self.members.iter().map(|step| member(*step).into()).collect());
            let key = self.key(Own::Members.name());
            self.link.queue(&[b"SSCAN".as_slice(), key.as_bytes(), &cursor, b"COUNT", b"5"]);
        }
        let replies = self.link.exchange().await;
        match scan.took(replies.first()) {
            Ok(None) => {}
            Ok(Some(named)) => self.link.remember("scan", 0, Some(named as i64), "answered", began),
            Err(fault) => self.link.told("scan", fault),
        }
        self.scans[usize::from(keys)] = scan;
        if let Some(Reply::Error(text)) = replies.first() {
            self.link.refused("scan", 0, text).await;
        }
    }

    /// The keys of its own that are known to exist. None of them is ever removed.
    fn keys_there(&self) -> HashSet<Vec<u8>> {
        let mut there = HashSet::new();
        for what in Own::ALL.into_iter().filter(|what| self.own[*what as usize].acknowledged() > 0) {
            let key = self.key(what.name());
            match what {
                Own::Pair => there.extend([format!("{key}:a").into(), format!("{key}:b").into()]),
                _ => _ = there.insert(key.into()),
            }
        }
        there
    }

    /// WATCH, GET, MULTI, SET to one more, EXEC. A nil EXEC (which a switch may give) did not happen.
    async fn optimistic(&mut self) {
        let (key, began) = (self.key(Own::Watched.name()), Instant::now());
        self.link.queue(&["WATCH", &key]);
        self.link.queue(&["GET", &key]);
        let replies = self.link.exchange().await;
        let value = match replies.as_slice() {
            [Reply::Simple(_), Reply::Nil] => 0,
            [Reply::Simple(_), value] if value.number().is_some() => value.number().unwrap_or_default(),
            [.., last] => {
                if let Reply::Error(text) = last {
                    self.link.refused("watched", 0, text).await;
                }
                self.link.hang_up(); // the key must not stay watched
                return;
            }
            [] => return,
        };
        if let Err(fault) = self.own[Own::Watched as usize].check_total(None, value as u64) {
            self.link.told("watched", fault);
        }
        let step = self.own[Own::Watched as usize].attempt();
        self.link.queue(&["MULTI"]);
        self.link.queue(&["SET", &key, &(value + 1).to_string()]);
        self.link.queue(&["EXEC"]);
        let replies = self.link.exchange().await;
        let steps = &mut self.own[Own::Watched as usize];
        match replies.as_slice() {
            [_, _, Reply::Nil] => {
                steps.refuse(step);
                self.link.remember("watched", step, None, "conflict", began);
            }
            [_, _, Reply::Array(_)] => {
                let checked = steps.acknowledge(step, Some(value as u64 + 1));
                self.link.remember("watched", step, Some(value + 1), "answered", began);
                if let Err(fault) = checked {
                    self.link.told("watched", fault);
                }
            }
            [_, _, Reply::Error(text)] => {
                steps.refuse(step);
                self.link.refused("watched", step, text).await;
            }
            _ => {
                steps.lose(step);
                self.link.remember("watched", step, None, "unknown", began);
            }
        }
    }

    /// Compares what the server holds with what this client knows.
    pub(super) async fn judge(&self, server: &mut Connection) -> std::io::Result<()> {
        for what in Own::ALL {
            let steps = &self.own[what as usize];
            let key = self.key(what.name());
            let faults = match what {
                Own::Log => {
                    let text = server.must(&["GET", &key]).await?;
                    let tokens = text.bytes().unwrap_or_default().chunks(TOKEN).map(parse_token);
                    steps.judge(&tokens.collect::<Vec<_>>())
                }
                Own::Tail | Own::Head => {
                    let list = server.must(&["LRANGE", &key, "0", "-1"]).await?;
                    let mut found: Vec<u64> =
                        list.items().iter().map(|e| element_of(e, self.index)).collect();
                    if what == Own::Head {
                        found.reverse();
                    }
                    steps.judge(&found)
                }
                Own::Members => {
                    let members = server.must(&["SMEMBERS", &key]).await?;
                    let mut found: Vec<u64> = members.items().iter().map(step_of_member).collect();
                    found.sort_unstable();
                    steps.judge(&found)
                }
                Own::Stream => {
                    let entries = server.must(&["XRANGE", &key, "-", "+"]).await?;
                    let step = |entry: &Reply| entry.items().get(1)?.items().get(1)?.number();
                    let found = entries.items().iter().map(|e| step(e).unwrap_or_default() as u64);
                    steps.judge(&found.collect::<Vec<_>>())
                }
                Own::Pair => {
                    let a = number(server, &["GET", &format!("{key}:a")]).await?;
                    let b = number(server, &["GET", &format!("{key}:b")]).await?;
                    let mut faults: Vec<_> = steps.check_total(None, a).err().into_iter().collect();
                    if a != b {
                        let text = format!("a transaction was torn: {a} and {b}");
                        faults.push(Fault::new(FaultKind::Lost, None, text));
                    }
                    faults
                }
                Own::Counter | Own::Script | Own::Function | Own::Watched => {
                    let total = number(server, &["GET", &key]).await?;
                    steps.check_total(None, total).err().into_iter().collect()
                }
                Own::Field => {
                    let total = number(server, &["HGET", &key, "steps"]).await?;
                    steps.check_total(None, total).err().into_iter().collect()
                }
                Own::Score => {
                    let total = number(server, &["ZSCORE", &key, "steps"]).await?;
                    steps.check_total(None, total).err().into_iter().collect()
                }
            };
            faults.into_iter().for_each(|fault| self.link.told(what.name(), fault));
        }
        Ok(())
    }
}

/// The name of a thing that all clients change.
pub(super) fn shared_key(prefix: &str, what: &str, index: usize) -> String {
    format!("{prefix}:shared:{what}:{index}")
}

/// The value of a key as a number, 0 when there is no such key.
pub(super) async fn number(server: &mut Connection, command: &[&str]) -> std::io::Result<u64> {
    Ok(server.must(command).await?.number().unwrap_or(0) as u64)
}

/// The step in a list element `client.step`; 0, which no step has, when it is somebody else's.
pub(super) fn element_of(element: &Reply, client: usize) -> u64 {
    match parse_element(element) {
        Some((owner, step)) if owner == client => step,
        _ => 0,
    }
}

pub(super) fn parse_element(element: &Reply) -> Option<(usize, u64)> {
    let (client, step) = std::str::from_utf8(element.bytes()?).ok()?.split_once('.')?;
    Some((client.parse().ok()?, step.parse().ok()?))
}

/// No number: a set of numbers is one block, which a scan names at once.
fn member(step: u64) -> String {
    format!("m{step}")
}

/// The step that added a member; 0, which no step has, when it is none of ours.
fn step_of_member(member: &Reply) -> u64 {
    let text = member.bytes().and_then(|bytes| std::str::from_utf8(bytes).ok());
    text.and_then(|text| text.strip_prefix('m')?.parse().ok()).unwrap_or(0)
}

fn stream_id(id: &[u8]) -> Option<(u64, u64)> {
    let (ms, seq) = std::str::from_utf8(id).ok()?.split_once('-')?;
    Some((ms.parse().ok()?, seq.parse().ok()?))
}

fn describe(expect: Expect) -> (&'static str, u64) {
    match expect {
        Expect::Own(what, step) => (what.name(), step),
        Expect::Set(step) => ("set", step),
        Expect::Get => ("get", 0),
        Expect::Lease => ("lease", 0),
        Expect::LeaseTtl => ("lease-ttl", 0),
        Expect::SharedCounter(_, step) => ("shared-count", step),
        Expect::SharedList(step) => ("shared-list", step),
        Expect::SharedPair(step) => ("shared-pair", step),
        Expect::Ok => ("multi", 0),
        Expect::Queued => ("queued", 0),
        Expect::Name => ("name", 0),
        Expect::Echo(_) => ("echo", 0),
        Expect::Replicas => ("wait", 0),
    }
}
