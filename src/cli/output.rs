//! Writing to the terminal, and the shapes that several subcommands share.
//!
//! A reader that goes away (`crossfade status | head -1`) is no failure of ours.

use std::io::{IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::migration::status::{Finding, Level};

/// One line, or several, on stdout.
pub(super) fn line(text: &str) {
    let _reader_gone = writeln!(std::io::stdout().lock(), "{text}");
}

/// Bytes on stdout as they are.
pub(super) fn raw(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _reader_gone = out.write_all(bytes).and_then(|()| out.flush());
}

/// A message on stderr.
pub(super) fn complain(text: &str) {
    let _reader_gone = writeln!(std::io::stderr().lock(), "{text}");
}

/// One JSON document on stdout, indented when a person looks at it.
pub(super) fn json(document: &impl Serialize) {
    let text = if std::io::stdout().is_terminal() {
        serde_json::to_string_pretty(document)
    } else {
        serde_json::to_string(document)
    };
    match text {
        Ok(text) => line(&text),
        Err(error) => complain(&format!("crossfade: the answer cannot be written as JSON: {error}")),
    }
}

/// An empty table in our style, as wide as the terminal at most.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if !header.is_empty() {
        table.set_header(header.to_vec());
    }
    // Not a terminal, or one that does not know its own width (some pipes and CI systems say 0).
    if !std::io::stdout().is_terminal() || table.width().is_none_or(|columns| columns < 40) {
        table.set_width(110);
    }
    table
}

/// A table as text with an indent and without blanks at the ends of lines.
pub(super) fn indented(table: &Table) -> String {
    table.lines().map(|line| format!(" {}", line.trim_end())).collect::<Vec<_>>().join("\n")
}

/// Findings as a table, the worst first.
pub(super) fn findings(findings: &[Finding]) -> String {
    let mut sorted: Vec<_> = findings.iter().collect();
    sorted.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    let mut table = table(&[]);
    for finding in sorted {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Warn => "WARN",
            Level::Error => "ERROR",
        };
        let text = match &finding.remedy {
            Some(remedy) => format!("{}\n→ {remedy}", finding.what),
            None => finding.what.clone(),
        };
        table.add_row([level, &finding.side.to_string(), &text]);
    }
    indented(&table)
}

/// 1234567 as "1 234 567".
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// Milliseconds with as many digits as matter.
pub(super) fn ms(milliseconds: f64) -> String {
    match milliseconds {
        m if m >= 10_000.0 => format!("{:.1} s", m / 1000.0),
        m if m >= 100.0 => format!("{m:.0} ms"),
        m if m >= 10.0 => format!("{m:.1} ms"),
        m => format!("{m:.2} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Side;

    #[test]
    fn numbers_for_reading() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1000), "1 000");
        assert_eq!(count(1_234_567), "1 234 567");
        assert_eq!(ms(0.123), "0.12 ms");
        assert_eq!(ms(12.34), "12.3 ms");
        assert_eq!(ms(345.6), "346 ms");
        assert_eq!(ms(12_345.0), "12.3 s");
    }

    #[test]
    fn findings_come_worst_first() {
        let text = findings(&[
            Finding::ok(Side::Source, "reached"),
            Finding::error(Side::Destination, "it is a replica", "promote it"),
            Finding::warn(Side::Source, "the backlog is small", "raise it"),
        ]);
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} is missing in\n{text}"));
        assert!(at("ERROR") < at("WARN") && at("WARN") < at("reached"));
        assert!(at("promote it") > at("it is a replica"));
    }
}
