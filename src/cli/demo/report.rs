//! What a person reads while the demo runs and at its end, and the document for scripts.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use super::Stage;
use super::gateway::Gateway;
use super::servers::Server;
use super::workload::Verdict;
use crate::verify;

/// The steps of a switch, in their order, with the words for a person.
const STEPS: [(&str, &str); 7] = [
    ("prepare", "prepare"),
    ("close_gate", "close gate"),
    ("drain_clients", "drain clients"),
    ("fence", "fence"),
    ("drain_mirror", "drain mirror"),
    ("commit", "commit"),
    ("open_gate", "open gate"),
];

/// The figures.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) keys: u64,
    pub(super) copy_seconds: f64,
    pub(super) switches: Vec<Json>,
    operations: u64,
    errors: u64,
    lost: u64,
    duplicated: u64,
    differences: u64,
    compared: u64,
    seconds: f64,
    waits: [f64; 3],
    /// The first faults and differences, in words.
    faults: Vec<String>,
}

impl Report {
    /// A report on a source with so many keys.
    pub(super) fn new(keys: u64) -> Self {
        Self { keys, ..Self::default() }
    }

    /// Adds what the clients and the comparison found. Replies that cannot be right and steps out of order count as
    /// errors.
    pub(super) fn finish(&mut self, verdict: &Verdict, compared: &verify::Report, took: Duration) {
        self.operations = verdict.operations;
        self.errors = verdict.errors + verdict.wrong + verdict.reordered;
        self.lost = verdict.lost;
        self.duplicated = verdict.duplicated;
        self.waits = [verdict.p50_ms, verdict.p99_ms, verdict.worst_ms];
        self.compared = compared.compared;
        self.differences = compared.difference_count;
        self.faults = verdict.findings.iter().take(10).map(ToString::to_string).collect();
        self.faults.extend(
            compared
                .differences
                .iter()
                .take(10)
                .map(|d| format!("Differs: db {}, key {}: {}", d.db, d.key, d.what)),
        );
        self.seconds = took.as_secs_f64();
    }

    pub(super) fn is_clean(&self) -> bool {
        self.errors + self.lost + self.duplicated + self.differences == 0
    }

    pub(super) fn json(&self) -> Json {
        json!({
            "keys": self.keys,
            "operations": self.operations,
            "errors": self.errors,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "differences": self.differences,
            "switches": self.switches,
            "compared": self.compared,
            "copy_seconds": round(self.copy_seconds),
            "seconds": round(self.seconds),
            "reply_ms": {"p50": round(self.waits[0]), "p99": round(self.waits[1]), "max": round(self.waits[2])},
        })
    }
}

fn round(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// `1234567` as `1,234,567`.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Tells what happens while it happens: on stdout, or on stderr when stdout is for a JSON document.
pub(super) struct Story {
    json: bool,
    colour: bool,
    live: bool,
    began: Instant,
    steps: Vec<(String, Json, f64)>,
}

impl Story {
    pub(super) fn new(json: bool) -> Self {
        let live = if json { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
        let colour = live && std::env::var_os("NO_COLOR").is_none();
        Self { json, colour, live, began: Instant::now(), steps: Vec::new() }
    }

    fn say(&self, line: &str) {
        let erase = if self.live { "\r\x1b[K" } else { "" };
        if self.json {
            eprintln!("{erase}{line}");
        } else {
            println!("{erase}{line}");
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    fn done(&self, what: &str, text: &str) {
        let mark = self.paint("32", "✓");
        let at = self.paint("2", &format!("{:5.1} s", self.began.elapsed().as_secs_f64()));
        self.say(&format!("  {at}  {mark} {what:<10} {text}"));
    }

    pub(super) fn title(&self) {
        let title = self.paint("1", "Crossfade demo");
        self.say(&format!("\n{title}: a live Redis moves to another server, back, and over again.\n"));
    }

    pub(super) async fn server(&self, side: &str, server: &Server, state: &str) {
        let version = server.info("redis_version").await.unwrap_or_default();
        self.say(&format!("  {side:<12} {:<16} redis {version}: {state}", server.address()));
    }

    pub(super) fn gateway(&self, gateway: &Gateway, clients: usize) {
        let address = gateway.address();
        self.say(&format!(
            "  {:<12} {address:<16} {clients} clients go through it and check every reply\n",
            "gateway"
        ));
    }

    pub(super) fn progress(&self, status: &Json) {
        if !self.live {
            return;
        }
        let snapshot = &status["snapshot"];
        let number = |key: &str| snapshot[key].as_u64().unwrap_or(0);
        let line = match status["phase"].as_str() {
            Some("snapshot") => {
                let (loaded, expected) =
                    (thousands(number("keys_loaded")), thousands(number("keys_expected")));
                format!("copying: {loaded} of {expected} keys")
            }
            Some(phase) => format!("{phase}: {} bytes behind", status["mirror"]["lag_bytes"]),
            None => String::new(),
        };
        let text = format!("\r\x1b[K           {line}");
        if self.json {
            eprint!("{text}");
        } else {
            print!("{text}");
        }
        let _ = std::io::stdout().flush();
    }

    pub(super) fn mirroring(&self, status: &Json, seconds: f64) {
        let keys = thousands(status["snapshot"]["keys_loaded"].as_u64().unwrap_or(0));
        self.done(
            "copied",
            &format!("{keys} keys in {seconds:.1} s while the clients kept writing; now mirroring live"),
        );
    }

    pub(super) fn switched(&mut self, entry: &Json, worst_ms: f64) {
        let kind = entry["kind"].as_str().unwrap_or("switch").to_string();
        let pause = entry["pause_ms"].as_f64().unwrap_or(0.0);
        let held = thousands(entry["held_commands"].as_u64().unwrap_or(0));
        let to = if kind == "cutover" { "to the destination" } else { "back to the source" };
        let text = format!("{to}: pause {pause:.1} ms, {held} commands held, longest reply {worst_ms:.1} ms");
        self.done(&kind, &text);
        self.steps.push((kind, entry.clone(), worst_ms));
    }

    pub(super) fn verdict(&self, report: &Report) {
        if !self.steps.is_empty() {
            self.say("");
            let heads: String = self.steps.iter().map(|(kind, ..)| format!("{kind:>12}")).collect();
            self.say(&format!("  {:<24}{heads}", "pauses by step, ms"));
            for (key, name) in STEPS {
                let row: String =
                    self.steps.iter().map(|(_, entry, _)| cell(&entry["steps_ms"][key])).collect();
                let note = if key == "prepare" { "  (traffic runs)" } else { "" };
                self.say(&format!("    {name:<22}{row}{note}"));
            }
            for (key, name) in [("pause_ms", "pause"), ("max_hold_ms", "longest hold")] {
                let row: String = self.steps.iter().map(|(_, entry, _)| cell(&entry[key])).collect();
                self.say(&self.paint("1", &format!("  {name:<24}{row}")));
            }
        }
        let [p50, p99, worst] = report.waits;
        self.say("");
        self.say(&format!(
            "  {:<16}{:>10}   compared on both servers: {}",
            "keys",
            thousands(report.keys),
            thousands(report.compared)
        ));
        let waits =
            format!("time to reply: half under {p50:.1} ms, 99 % under {p99:.1} ms, longest {worst:.1} ms");
        self.say(&format!("  {:<16}{:>10}   {waits}", "operations", thousands(report.operations)));
        let rows = [
            ("errors", report.errors, "error replies, lost connections, wrong or disordered replies"),
            ("lost", report.lost, "acknowledged and gone"),
            ("duplicated", report.duplicated, "there more often than sent"),
            ("differences", report.differences, "between the two servers, key by key"),
        ];
        for (name, count, meaning) in rows {
            let count =
                self.paint(if count == 0 { "32" } else { "31;1" }, &format!("{:>10}", thousands(count)));
            self.say(&format!("  {name:<16}{count}   {meaning}"));
        }
        for fault in &report.faults {
            self.say(&format!("\n{fault}"));
        }
        let end = if report.is_clean() {
            self.paint("32;1", "Nothing lost, nothing twice, no client saw an error.")
        } else {
            self.paint("31;1", "This must not happen: see above.")
        };
        self.say(&format!("\n{end} ({:.1} s)", report.seconds));
    }

    pub(super) fn kept(&self, stage: &Stage) {
        let Stage { gateway, source, destination, dir } = stage;
        self.say("\nLeft running:");
        self.say(&format!(
            "  gateway      {}   control: crossfade status --admin {}",
            gateway.address(),
            gateway.admin()
        ));
        self.say(&format!("  source       {}", source.address()));
        self.say(&format!("  destination  {}", destination.address()));
        self.say(&format!("  files        {}", dir.path().display()));
        self.say(&format!("To end them: kill {} {} {}", gateway.pid(), source.pid(), destination.pid()));
    }
}

fn cell(value: &Json) -> String {
    value.as_f64().map_or_else(|| format!("{:>12}", "-"), |ms| format!("{ms:>12.2}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn thousands_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(super::thousands(number), text);
        }
    }
}
