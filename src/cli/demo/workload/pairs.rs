//! Two clients that work together: one gives numbered things away, the other waits for them.
//!
//! Through a queue (BLPOP, BLMOVE, BZPOPMIN, XREADGROUP and XREAD with BLOCK) or a channel (SUBSCRIBE, PSUBSCRIBE, SSUBSCRIBE). Each thing arrives
//! exactly once and in order. So does each line of a client that has said MONITOR: it looks for what its partner writes. A reader whose connection is lost while it waits may have been given one thing that
//! it never saw; only that many may be missing.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::Plan;
use super::link::{Dice, Link};
use super::sequence::{Fault, FaultKind, Sequence};
use super::solo::parse_element;
use crate::cli::demo::connection::{Connection, Reply};

/// How the two meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Pop,
    Move,
    Group,
    Channel,
    Pattern,
    Ranked,
    Follow,
    Shard,
    Monitor,
}

impl Way {
    /// In the order in which smaller plans have them.
    const ALL: [Way; 9] = [
        Way::Pop,
        Way::Move,
        Way::Group,
        Way::Channel,
        Way::Pattern,
        Way::Ranked,
        Way::Follow,
        Way::Shard,
        Way::Monitor,
    ];

    /// Those of a plan.
    pub(super) fn of(plan: &Plan) -> Vec<Way> {
        let wanted = |way: &Way| match way {
            Way::Shard => plan.modern,
            Way::Monitor => plan.monitored,
            _ => true,
        };
        let most = match plan.clients {
            ..12 => 0,
            12..24 => 4,
            _ => Way::ALL.len(),
        };
        Way::ALL.into_iter().filter(wanted).take(most).collect()
    }

    fn name(self) -> &'static str {
        match self {
            Way::Pop => "queue",
            Way::Move => "belt",
            Way::Group => "group",
            Way::Channel => "channel",
            Way::Pattern => "pattern",
            Way::Ranked => "ranking",
            Way::Follow => "stream",
            Way::Shard => "shard",
            Way::Monitor => "monitor",
        }
    }

    fn is_heard(self) -> bool {
        matches!(self, Way::Channel | Way::Pattern | Way::Shard | Way::Monitor)
    }

    /// What makes a listener of a client.
    fn listening(self, key: &str) -> Vec<String> {
        match self {
            Way::Monitor => vec!["monitor".into()],
            Way::Pattern => vec!["psubscribe".into(), format!("{key}*")],
            Way::Shard => vec!["ssubscribe".into(), key.into()],
            _ => vec!["subscribe".into(), key.into()],
        }
    }

    /// What a listener has heard of `key`; `None`: it speaks of something else, which only MONITOR does.
    fn heard(self, key: &str, reply: &Reply) -> Result<Option<Reply>, ()> {
        let message = match self {
            Way::Monitor => return monitored(key, reply),
            Way::Pattern => "pmessage",
            Way::Shard => "smessage",
            _ => "message",
        };
        match reply.items() {
            // a pattern stands before the channel
            [kind, .., channel, element]
                if kind.bytes() == Some(message.as_bytes()) && channel.bytes() == Some(key.as_bytes()) =>
            {
                Ok(Some(element.clone()))
            }
            _ => Err(()),
        }
    }
}

/// The value in a line of MONITOR that tells of a write to `key`: time, database and address, then each word in quotes.
fn monitored(key: &str, line: &Reply) -> Result<Option<Reply>, ()> {
    let Reply::Simple(line) = line else { return Err(()) };
    let line = std::str::from_utf8(line).map_err(|_| ())?;
    let (_, words) =
        line.split_once("] \"").filter(|_| line.starts_with(|c: char| c.is_ascii_digit())).ok_or(())?;
    let value = words.strip_prefix("SET\" \"").and_then(|rest| rest.strip_prefix(key)?.strip_prefix("\" \""));
    Ok(value.and_then(|value| value.strip_suffix('"')).map(|value| Reply::Bulk(value.into())))
}

/// How late a blocking command may give up. Generous: the machine is busy, and a switch may lie in between.
const LATE: Duration = Duration::from_secs(5);
/// How long a published message may take.
const DELIVERY: Duration = Duration::from_secs(5);

pub(super) struct Giver {
    link: Link,
    way: Way,
    index: usize,
    key: String,
    dice: Dice,
    steps: Sequence,
}

pub(super) struct Taker {
    link: Link,
    way: Way,
    index: usize,
    key: String,
    dice: Dice,
    seen: Vec<u64>,
    /// Waits whose outcome is unknown.
    unseen: u64,
    last_id: Option<Vec<u8>>,
}

pub(super) fn pair(index: usize, way: Way, giver: Link, taker: Link, plan: &Plan) -> (Giver, Taker) {
    let key = format!("{}:{}:{index}", plan.prefix, way.name());
    let dice = Dice::new(plan.seed ^ (0xabcd_0000 + index as u64));
    let steps = Sequence::new();
    let giver = Giver { link: giver, way, index, key: key.clone(), dice: dice.clone(), steps };
    let taker = Taker { link: taker, way, index, key, dice, seen: Vec::new(), unseen: 0, last_id: None };
    (giver, taker)
}

impl Giver {
    /// Gives until the traffic is stopped. `reader_ready` fires when a subscriber is there.
    pub(super) async fn run(mut self, reader_ready: oneshot::Receiver<()>) -> Self {
        let stop = self.link.stop.clone();
        tokio::select! {
            _ = reader_ready => {}
            () = stop.cancelled() => return self,
        }
        while !self.link.stop.is_cancelled() {
            if self.link.ready().await.is_none() {
                break;
            }
            // bursts, so that the reader finds sometimes something and sometimes nothing
            for _ in 0..=self.dice.below(4) {
                self.give().await;
            }
            sleep(Duration::from_micros(500 + self.dice.below(6000))).await;
        }
        self
    }

    async fn give(&mut self) {
        let began = Instant::now();
        let step = self.steps.attempt();
        let element = format!("{}.{step}", self.index);
        match self.way {
            Way::Pop | Way::Move => self.link.queue(&["RPUSH", &self.key, &element]),
            Way::Ranked => self.link.queue(&["ZADD", &self.key, &step.to_string(), &element]),
            Way::Group | Way::Follow => self.link.queue(&["XADD", &self.key, "*", "e", &element]),
            Way::Channel | Way::Pattern => self.link.queue(&["PUBLISH", &self.key, &element]),
            Way::Shard => self.link.queue(&["SPUBLISH", &self.key, &element]),
            Way::Monitor => self.link.queue(&["SET", &self.key, &element]),
        }
        let replies = self.link.exchange().await;
        let Some(reply) = replies.first() else {
            self.steps.lose(step);
            self.link.remember(self.way.name(), step, None, "unknown", began);
            return;
        };
        self.link.remember(self.way.name(), step, reply.number(), "answered", began);
        match reply {
            Reply::Error(text) => {
                self.steps.refuse(step);
                self.link.refused(self.way.name(), step, text).await;
            }
            // nobody was subscribed: allowed only while subscribers come and go
            Reply::Integer(0) if self.way.is_heard() => {
                self.steps.lose(step);
                if self.link.strict() {
                    let text = "PUBLISH reached nobody".into();
                    self.link.fault(self.way.name(), Some(step), FaultKind::Lost, text);
                }
            }
            _ => {
                let _ = self.steps.acknowledge(step, None);
            }
        }
    }

    /// The step up to which a subscriber has to hear.
    pub(super) fn last(&self) -> u64 {
        self.steps.attempts()
    }
}

impl Taker {
    /// Takes until the traffic is stopped; a subscriber listens on until `last` (once known) has arrived.
    pub(super) async fn run(mut self, ready: oneshot::Sender<()>, last: oneshot::Receiver<u64>) -> Self {
        if self.way.is_heard() {
            self.listen(ready, last).await;
            return self;
        }
        let mut ready = Some(ready);
        let mut first = true;
        while !self.link.stop.is_cancelled() {
            match self.link.ready().await {
                None => break,
                Some(true) if self.way == Way::Group => {
                    if first {
                        self.link.queue(&["XGROUP", "CREATE", &self.key, "readers", "0", "MKSTREAM"]);
                        match self.link.exchange().await.first() {
                            Some(Reply::Simple(_)) => first = false,
                            Some(Reply::Error(text)) if text.starts_with(b"BUSYGROUP") => first = false,
                            Some(Reply::Error(text)) => {
                                let text = text.clone();
                                self.link.refused("group", 0, &text).await;
                                continue;
                            }
                            _ => continue,
                        }
                    } else {
                        self.pending().await;
                    }
                }
                Some(_) => {}
            }
            if let Some(ready) = ready.take() {
                let _ = ready.send(());
            }
            self.take().await;
        }
        self
    }

    /// What was given to this reader while its connection was lost.
    async fn pending(&mut self) {
        let last = self.last_id.clone().unwrap_or_else(|| b"0".to_vec());
        let name = &b"reader"[..];
        let command: [&[u8]; 9] = [
            b"XREADGROUP",
            b"GROUP",
            b"readers",
            name,
            b"COUNT",
            b"1000",
            b"STREAMS",
            self.key.as_bytes(),
            &last,
        ];
        self.link.queue(&command);
        match self.link.exchange().await.first() {
            Some(Reply::Error(text)) => {
                let text = text.clone();
                self.link.refused("group", 0, &text).await;
                self.link.hang_up(); // what is pending is asked for again on the next connection
            }
            Some(reply) => self.got_entries(reply),
            None => {}
        }
    }

    async fn take(&mut self) {
        let limit = Duration::from_millis(50 + self.dice.below(700));
        let seconds = format!("{:.3}", limit.as_secs_f64());
        let began = Instant::now();
        let done = format!("{}:done", self.key);
        let reply = match self.way {
            Way::Pop => self.link.blocking(&["BLPOP", &self.key, &seconds], limit).await,
            Way::Ranked => self.link.blocking(&["BZPOPMIN", &self.key, &seconds], limit).await,
            Way::Follow => {
                let ms = limit.as_millis().to_string();
                let last = self.last_id.clone().unwrap_or_else(|| b"0".to_vec());
                let read: [&[u8]; 6] =
                    [b"XREAD", b"BLOCK", ms.as_bytes(), b"STREAMS", self.key.as_bytes(), &last];
                self.link.blocking(&read, limit).await
            }
            Way::Move => {
                self.link.blocking(&["BLMOVE", &self.key, &done, "LEFT", "RIGHT", &seconds], limit).await
            }
            _ => {
                let ms = limit.as_millis().to_string();
                let group = [
                    "XREADGROUP",
                    "GROUP",
                    "readers",
                    "reader",
                    "COUNT",
                    "1",
                    "BLOCK",
                    &ms,
                    "STREAMS",
                    &self.key,
                    ">",
                ];
                self.link.blocking(&group, limit).await
            }
        };
        let took = began.elapsed();
        let step = self.seen.last().copied().unwrap_or(0);
        match reply {
            None => {
                self.unseen += 1;
                self.link.remember(self.way.name(), step, None, "unknown", began);
            }
            Some(Reply::Nil) => {
                self.link.remember(self.way.name(), step, None, "timed out", began);
                if took < limit.mul_f64(0.9) || took > limit + LATE {
                    let text = format!("gave up after {took:?}, the limit is {limit:?}");
                    self.link.fault(self.way.name(), None, FaultKind::WrongReply, text);
                }
            }
            Some(Reply::Error(text)) => self.link.refused(self.way.name(), step, &text).await,
            Some(reply) => {
                match self.way {
                    Way::Pop => match reply.items() {
                        [key, element] if key.bytes() == Some(self.key.as_bytes()) => self.got(element),
                        _ => self.strange(&reply),
                    },
                    Way::Ranked => match reply.items() {
                        [key, element, _] if key.bytes() == Some(self.key.as_bytes()) => self.got(element),
                        _ => self.strange(&reply),
                    },
                    Way::Move => self.got(&reply),
                    _ => self.got_entries(&reply),
                }
                let step = self.seen.last().copied().unwrap_or(0);
                self.link.remember(self.way.name(), step, None, "taken", began);
            }
        }
    }

    fn got_entries(&mut self, reply: &Reply) {
        let streams = reply.items();
        let Some(entries) = streams.first().and_then(|stream| stream.items().get(1)) else {
            return self.strange(reply);
        };
        for entry in entries.items().to_vec() {
            match entry.items() {
                [id, fields] => {
                    self.last_id = id.bytes().map(<[u8]>::to_vec);
                    match fields.items().get(1) {
                        Some(element) => self.got(&element.clone()),
                        None => self.strange(reply),
                    }
                }
                _ => self.strange(reply),
            }
        }
    }

    fn got(&mut self, element: &Reply) {
        match parse_element(element) {
            Some((index, step)) if index == self.index => {
                let last = self.seen.last().copied().unwrap_or(0);
                if step <= last {
                    let text = format!("step {step} came after step {last}");
                    let kind =
                        if self.seen.contains(&step) { FaultKind::Duplicated } else { FaultKind::Reordered };
                    self.link.fault(self.way.name(), Some(step), kind, text);
                }
                self.seen.push(step);
            }
            _ => self.strange(element),
        }
    }

    fn strange(&self, reply: &Reply) {
        let text = format!("not a thing of this pair: {}", reply.brief());
        self.link.fault(self.way.name(), None, FaultKind::WrongReply, text);
    }

    async fn listen(&mut self, ready: oneshot::Sender<()>, mut last: oneshot::Receiver<u64>) {
        let mut ready = Some(ready);
        let mut until: Option<(u64, Instant)> = None;
        loop {
            if self.link.ready().await.is_none() {
                return;
            }
            let command = self.way.listening(&self.key);
            self.link.queue(&command);
            match self.link.exchange().await.first() {
                Some(Reply::Array(items))
                    if items.first().and_then(Reply::bytes) == Some(command[0].as_bytes()) => {}
                Some(Reply::Simple(ok)) if self.way == Way::Monitor && ok == b"OK" => {}
                Some(other) => {
                    self.strange(&other.clone());
                    return;
                }
                None => continue,
            }
            if let Some(ready) = ready.take() {
                let _ = ready.send(());
            }
            loop {
                let heard = self.seen.last().copied().unwrap_or(0);
                // whoever hears of everything is never without news
                if until.is_some_and(|(until, latest)| heard >= until || Instant::now() > latest) {
                    return;
                }
                let Some(connection) = self.link.connection() else { break };
                let heard = tokio::select! {
                    heard = timeout(DELIVERY, connection.reply()) => heard,
                    told = &mut last, if until.is_none() => {
                        until = Some((told.unwrap_or(0), Instant::now() + DELIVERY));
                        continue;
                    }
                };
                match heard {
                    Ok(Ok(heard)) => match self.way.heard(&self.key, &heard) {
                        Ok(Some(element)) => {
                            let began = Instant::now();
                            self.got(&element);
                            let step = self.seen.last().copied().unwrap_or(0);
                            self.link.remember(self.way.name(), step, None, "heard", began);
                            self.link.ledger.operations.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        }
                        Ok(None) => {}
                        Err(()) => self.strange(&heard),
                    },
                    Ok(Err(error)) => {
                        self.link.hang_up();
                        self.unseen += 1;
                        if self.link.strict() {
                            let text = format!("the subscriber's connection was lost: {error}");
                            self.link.fault(self.way.name(), None, FaultKind::Error, text);
                        }
                        break;
                    }
                    // nothing came for long: fine while nothing is owed
                    Err(_) if until.is_some() => return,
                    Err(_) => {}
                }
            }
        }
    }
}

/// Compares what was given, what was taken and what is left on the server.
pub(super) async fn judge(giver: &Giver, taker: &Taker, server: &mut Connection) -> std::io::Result<()> {
    let (way, key) = (giver.way, &giver.key);
    let mut found = taker.seen.clone();
    let mut missing = taker.unseen;
    let step_of = |element: &Reply| match parse_element(element) {
        Some((index, step)) if index == giver.index => step,
        _ => 0,
    };
    match way {
        Way::Pop | Way::Move => {
            let left = server.must(&["LRANGE", key, "0", "-1"]).await?;
            if way == Way::Move {
                // the list that the elements were moved to is the truth, also where no reply arrived
                let done = server.must(&["LRANGE", &format!("{key}:done"), "0", "-1"]).await?;
                let moved: Vec<u64> = done.items().iter().map(step_of).collect();
                for step in found.iter().filter(|step| !moved.contains(step)) {
                    let text = format!("step {step} was answered as moved and is not there");
                    taker.link.told(way.name(), Fault::new(FaultKind::Lost, Some(*step), text));
                }
                found = moved;
                missing = 0;
            }
            found.extend(left.items().iter().map(step_of));
        }
        Way::Ranked => {
            let left = server.must(&["ZRANGE", key, "0", "-1"]).await?;
            found.extend(left.items().iter().map(step_of));
        }
        Way::Group | Way::Follow => {
            let entries = server.must(&["XRANGE", key, "-", "+"]).await?;
            let element = |entry: &Reply| Some(step_of(entry.items().get(1)?.items().get(1)?));
            let stored: Vec<u64> = entries.items().iter().map(|e| element(e).unwrap_or(0)).collect();
            for fault in giver.steps.judge(&stored) {
                giver.link.told(way.name(), fault);
            }
            // what nobody has read yet stands behind what was read last
            let last = found.last().copied().unwrap_or(0);
            found.extend(stored.into_iter().filter(|&step| step > last));
        }
        Way::Channel | Way::Pattern | Way::Shard | Way::Monitor => {
            // messages sent while the subscriber was away are gone, as they are with Redis itself
            if taker.unseen > 0 {
                missing = u64::MAX;
            }
        }
    }
    for fault in giver.steps.judge_with(&found, missing) {
        taker.link.told(way.name(), fault);
    }
    Ok(())
}
