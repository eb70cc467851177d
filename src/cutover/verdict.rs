//! Whether a switch may begin. A decision is a value: the same one is logged, shown to people and asserted in tests.

use std::time::Duration;

use serde::Serialize;

use crate::error::Side;
use crate::migration::status::{ActiveSide, Finding, Level, SwitchKind};
use crate::server::{Events, Info};

/// What is known when the question is asked.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Which way.
    pub kind: SwitchKind,
    /// The mirror towards the new side.
    pub mirror: MirrorFacts,
    /// The last comparison of both servers.
    pub verification: Verification,
    /// The server that would become active.
    pub to: ServerFacts,
    /// The server that is active.
    pub from: ServerFacts,
}

/// The mirror towards the new side.
#[derive(Debug, Clone, PartialEq)]
pub struct MirrorFacts {
    /// The new side holds everything up to the lag: the stage is live.
    pub live: bool,
    /// What it is doing, in words.
    pub stage: String,
    /// The link to the active server is up and streaming. A broken stream has no lag: it must never look caught up.
    pub linked: bool,
    /// Age of the oldest byte that is not applied.
    pub lag: Duration,
    /// The same in bytes.
    pub lag_bytes: u64,
    /// What the mirror complains about.
    pub error: Option<String>,
}

/// What the last comparison found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verification {
    /// Nobody compared.
    Never,
    /// So many keys differed.
    Differences(u64),
}

/// What a server says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerFacts {
    /// `master` or `slave`.
    pub role: String,
    /// Its limit in bytes; 0 is none.
    pub maxmemory: u64,
    /// Memory in use.
    pub used_memory: u64,
    /// `maxmemory_policy`.
    pub policy: String,
    /// Keys evicted since it started.
    pub evicted: u64,
    /// The error that a write got.
    pub write_refused: Option<String>,
    /// Connections of others that wrote lately.
    pub foreign_writers: Vec<String>,
    /// The keyspace notifications that it sends, if it tells.
    pub events: Option<Events>,
    /// How writers that bypass the gateway can be held; `None`: not at all.
    pub fence: Option<&'static str>,
}

impl ServerFacts {
    /// From `INFO`.
    #[must_use]
    pub fn read(info: &Info) -> Self {
        Self {
            role: info.get("role").unwrap_or_default().to_owned(),
            maxmemory: info.u64("maxmemory").unwrap_or(0),
            used_memory: info.u64("used_memory").unwrap_or(0),
            policy: info.get("maxmemory_policy").unwrap_or_default().to_owned(),
            evicted: info.u64("evicted_keys").unwrap_or(0),
            ..Self::default()
        }
    }

    fn may_evict(&self) -> bool {
        self.maxmemory > 0 && !self.policy.is_empty() && self.policy != "noeviction"
    }

    fn nearly_full(&self) -> bool {
        self.maxmemory > 0 && self.used_memory as f64 > 0.95 * self.maxmemory as f64
    }
}

/// What the operator allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A mirror further behind than this is not near enough.
    pub max_lag: Duration,
    /// Go although the last comparison found differences.
    pub force_unverified: bool,
    /// Part of the data is left out of the copy, and nobody said that the clients do without it.
    pub left_out: bool,
    /// Keys or databases have other names on the destination, and nobody said that the clients know them.
    pub renamed: bool,
    /// There is no way back from those names.
    pub one_way: bool,
}

/// May it begin?
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// It may.
    Go {
        /// How far the mirror is behind.
        lag_ms: f64,
    },
    /// Not now, but waiting helps.
    NotYet {
        /// How far the mirror is behind.
        lag_ms: f64,
        /// What is being waited for.
        reasons: Vec<String>,
    },
    /// Not like this: a person has to do something.
    Refused {
        /// What is wrong, each with its remedy.
        reasons: Vec<String>,
    },
}

impl Verdict {
    /// Whether it may begin.
    #[must_use]
    pub fn is_go(&self) -> bool {
        matches!(self, Verdict::Go { .. })
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Verdict::Go { lag_ms } => write!(f, "go: the mirror is {lag_ms:.1} ms behind"),
            Verdict::NotYet { reasons, .. } => write!(f, "not yet: {}", reasons.join("; ")),
            Verdict::Refused { reasons } => write!(f, "refused: {}", reasons.join("; ")),
        }
    }
}

/// Everything that was looked at, good and bad.
#[must_use]
pub fn findings(facts: &Facts, limits: &Limits) -> Vec<Finding> {
    let to_side = Side::from(facts.kind.target());
    let from_side = Side::from(facts.kind.origin());
    let to = &facts.to;
    let mirror = &facts.mirror;
    let mut all = Vec::new();

    if let Some(error) = &mirror.error {
        all.push(Finding::error(
            to_side,
            format!("the mirror is in trouble: {error}"),
            "see `crossfade status`",
        ));
    } else if !mirror.live {
        all.push(Finding::error(
            to_side,
            format!("the {to_side} does not hold everything yet: the mirror is {}", mirror.stage),
            "wait until it is mirroring (`crossfade status --wait mirroring`)",
        ));
    } else if !mirror.linked {
        all.push(Finding::error(
            from_side,
            format!("the replication link to the {from_side} is down, so nobody knows how far behind the mirror is"),
            "wait until it is back, or see `crossfade status`",
        ));
    } else if mirror.lag > limits.max_lag {
        all.push(Finding::error(
            to_side,
            format!(
                "the mirror is {:.0} ms ({} bytes) behind; the limit is {:.0} ms",
                mirror.lag.as_secs_f64() * 1e3,
                mirror.lag_bytes,
                limits.max_lag.as_secs_f64() * 1e3
            ),
            "wait, lower the write load, or raise cutover.max_lag",
        ));
    } else {
        all.push(Finding::ok(
            to_side,
            format!("the mirror is live, {:.1} ms behind", mirror.lag.as_secs_f64() * 1e3),
        ));
    }

    if limits.left_out && facts.kind == SwitchKind::Cutover {
        all.push(Finding::error(
            Side::Gateway,
            "[filter] leaves part of the data out of the copy: after the cutover clients do not see it",
            "make sure that they do without it, then pass --clients-know-the-map",
        ));
    }
    if limits.renamed && facts.kind == SwitchKind::Cutover {
        all.push(Finding::error(
            Side::Gateway,
            "[map] gives keys or databases other names: after the cutover clients find nothing under the old ones",
            "make sure that they use the new names, then pass --clients-know-the-map",
        ));
    }
    if limits.one_way {
        all.push(Finding::error(
            Side::Gateway,
            "map.key_case cannot be undone, so there would be no way back",
            "let the clients go over by themselves and end with `crossfade finish`; or leave map.key_case out",
        ));
    }
    match facts.verification {
        Verification::Never => all.push(Finding::warn(
            Side::Gateway,
            "the two servers have not been compared",
            "run `crossfade verify` first if you want to be sure",
        )),
        Verification::Differences(0) => {
            all.push(Finding::ok(Side::Gateway, "the last comparison found no difference"))
        }
        Verification::Differences(n) if limits.force_unverified => all.push(Finding::warn(
            Side::Gateway,
            format!("the last comparison found {n} differences; going on as asked"),
            "run `crossfade verify --repair`",
        )),
        Verification::Differences(n) => all.push(Finding::error(
            Side::Gateway,
            format!("the last comparison found {n} differences"),
            "run `crossfade verify --repair`, or pass --force-unverified",
        )),
    }

    if facts.from.role != "master" {
        // After FAILOVER, for one: what its primary is told comes through no gate, and the mirror back could not write.
        all.push(Finding::error(
            from_side,
            format!("the {from_side} is a replica (role {}): its writes come from elsewhere, and there is no way back to it", facts.from.role),
            "make it a primary again (FAILOVER on its primary, or REPLICAOF NO ONE), or let the gateway start anew with its primary as the address",
        ));
    }
    if to.role != "master" {
        all.push(Finding::error(
            to_side,
            format!("the {to_side} is a replica (role {})", to.role),
            "make it a primary (REPLICAOF NO ONE), or name its primary in the configuration",
        ));
    }
    match &to.write_refused {
        Some(error) => all.push(Finding::error(
            to_side,
            format!("the {to_side} refuses writes: {error}"),
            "make it writable",
        )),
        None => all.push(Finding::ok(to_side, format!("the {to_side} accepts writes"))),
    }
    if to.may_evict() && !facts.from.may_evict() {
        all.push(Finding::error(
            to_side,
            format!("the {to_side} may evict keys (maxmemory-policy {}, maxmemory {} bytes), and the {from_side} does not", to.policy, to.maxmemory),
            "set maxmemory-policy noeviction on it, or give it more memory and maxmemory 0",
        ));
    } else if to.may_evict() && to.nearly_full() {
        all.push(Finding::error(
            to_side,
            format!(
                "the {to_side} is evicting keys: {} of {} bytes in use, {} keys evicted",
                to.used_memory, to.maxmemory, to.evicted
            ),
            "give it more memory",
        ));
    } else if to.nearly_full() {
        all.push(Finding::error(
            to_side,
            format!("the {to_side} is nearly full: {} of {} bytes in use", to.used_memory, to.maxmemory),
            "give it more memory",
        ));
    } else {
        all.push(Finding::ok(to_side, format!("the {to_side} has room and evicts nothing")));
    }
    if !to.foreign_writers.is_empty() {
        all.push(Finding::error(
            to_side,
            format!("somebody else writes to the {to_side}: {}", to.foreign_writers.join(", ")),
            "stop these clients; only the gateway may write there",
        ));
    }
    if let (Some(ours), Some(theirs)) = (&facts.from.events, &to.events)
        && let Some(lacking) = ours.lacking_in(theirs)
    {
        all.push(Finding::warn(
            to_side,
            format!("the {to_side} does not send keyspace notifications that the {from_side} sends (notify-keyspace-events {lacking})"),
            "set notify-keyspace-events on it as on the other, or subscribers hear nothing behind the switch",
        ));
    }
    match facts.from.fence {
        Some(how) => all.push(Finding::ok(from_side, format!("writers that bypass the gateway will be held by {how}"))),
        None => all.push(Finding::warn(
            from_side,
            format!("writers that bypass the gateway cannot be held on the {from_side} (neither CLIENT PAUSE nor CONFIG SET is allowed)"),
            "make sure that every writer goes through the gateway",
        )),
    }
    all
}

/// The decision.
#[must_use]
pub fn judge(facts: &Facts, limits: &Limits) -> Verdict {
    let lag_ms = facts.mirror.lag.as_secs_f64() * 1e3;
    let reasons: Vec<String> = findings(facts, limits)
        .into_iter()
        .filter(|finding| finding.level == Level::Error)
        .map(|finding| match finding.remedy {
            Some(remedy) => format!("{} ({remedy})", finding.what),
            None => finding.what,
        })
        .collect();
    if reasons.is_empty() {
        return Verdict::Go { lag_ms };
    }
    // Only what time alone can mend is "not yet".
    let mut patient = facts.clone();
    patient.mirror =
        MirrorFacts { live: true, linked: true, lag: Duration::ZERO, lag_bytes: 0, ..patient.mirror };
    let others = findings(&patient, limits).iter().any(|finding| finding.level == Level::Error);
    if others { Verdict::Refused { reasons } } else { Verdict::NotYet { lag_ms, reasons } }
}

impl SwitchKind {
    /// The side that is active before the switch.
    #[must_use]
    pub fn origin(self) -> ActiveSide {
        self.target().other()
    }

    /// The side that is active after it.
    #[must_use]
    pub fn target(self) -> ActiveSide {
        match self {
            SwitchKind::Cutover => ActiveSide::Destination,
            SwitchKind::Rollback => ActiveSide::Source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        let server = ServerFacts {
            role: "master".into(),
            policy: "noeviction".into(),
            fence: Some("CLIENT PAUSE"),
            ..ServerFacts::default()
        };
        Facts {
            kind: SwitchKind::Cutover,
            mirror: MirrorFacts {
                live: true,
                stage: "live".into(),
                linked: true,
                lag: Duration::from_millis(2),
                lag_bytes: 100,
                error: None,
            },
            verification: Verification::Differences(0),
            to: server.clone(),
            from: server,
        }
    }

    const LIMITS: Limits = Limits {
        max_lag: Duration::from_millis(250),
        force_unverified: false,
        left_out: false,
        renamed: false,
        one_way: false,
    };

    fn after(change: impl FnOnce(&mut Facts)) -> Verdict {
        let mut facts = good();
        change(&mut facts);
        judge(&facts, &LIMITS)
    }

    #[test]
    fn all_is_well() {
        assert!(after(|_| {}).is_go());
        assert!(after(|f| f.verification = Verification::Never).is_go());
        assert!(after(|f| f.from.fence = None).is_go());
    }

    #[test]
    fn time_mends_lag_and_an_unfinished_snapshot() {
        assert!(matches!(after(|f| f.mirror.lag = Duration::from_secs(3)), Verdict::NotYet { .. }));
        assert!(matches!(after(|f| f.mirror.live = false), Verdict::NotYet { .. }));
        assert!(matches!(after(|f| f.mirror.linked = false), Verdict::NotYet { .. }));
    }

    #[test]
    fn a_broken_stream_is_never_caught_up() {
        let verdict = after(|f| {
            f.mirror.linked = false;
            f.mirror.lag = Duration::ZERO;
            f.mirror.lag_bytes = 0;
        });
        assert!(!verdict.is_go());
        assert!(verdict.to_string().contains("link to the source is down"), "{verdict}");
    }

    #[test]
    fn what_a_person_has_to_mend_is_refused_with_the_reason() {
        let refused = |verdict: Verdict, word: &str| {
            assert!(matches!(verdict, Verdict::Refused { .. }), "{verdict}");
            assert!(verdict.to_string().contains(word), "{verdict} lacks {word}");
        };
        refused(after(|f| f.verification = Verification::Differences(4)), "4 differences");
        refused(after(|f| f.to.role = "slave".into()), "replica");
        refused(after(|f| f.from.role = "slave".into()), "the source is a replica");
        refused(after(|f| f.to.write_refused = Some("READONLY You can't write".into())), "READONLY");
        refused(after(|f| f.to.foreign_writers = vec!["10.0.0.1:55 (set)".into()]), "10.0.0.1:55");
        refused(
            after(|f| {
                f.to.maxmemory = 1000;
                f.to.policy = "allkeys-lru".into();
            }),
            "allkeys-lru",
        );
        refused(
            after(|f| {
                f.to.maxmemory = 1000;
                f.to.used_memory = 990;
            }),
            "nearly full",
        );
        refused(after(|f| f.mirror.error = Some("WRONGTYPE".into())), "WRONGTYPE");
    }

    #[test]
    fn a_cache_may_move_to_a_cache() {
        assert!(
            after(|f| {
                for server in [&mut f.to, &mut f.from] {
                    server.maxmemory = 1000;
                    server.used_memory = 500;
                    server.policy = "allkeys-lru".into();
                }
            })
            .is_go()
        );
    }

    #[test]
    fn differences_can_be_overruled() {
        let mut facts = good();
        facts.verification = Verification::Differences(1);
        assert!(judge(&facts, &Limits { force_unverified: true, ..LIMITS }).is_go());
    }
}
