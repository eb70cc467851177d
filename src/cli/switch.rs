//! What `cutover` and `rollback` have in common: the same code, the other way round.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value as Json;

use super::api::Gateway;
use super::{Failure, Global, output, report};
use crate::config::units;
use crate::migration::status::{Finding, SwitchEntry, SwitchKind, SwitchOutcome, SwitchRequest};

/// The flags of a switch.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Only the plan and the checks; changes nothing
    #[arg(long, conflicts_with_all = ["rehearse", "postpone"])]
    dry_run: bool,
    /// All but the commit, then back: measures the pause that clients would see
    #[arg(long, conflicts_with = "postpone")]
    rehearse: bool,
    /// The longest that clients may be held before the switch is undone [default: cutover.max_pause]
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration)]
    max_pause: Option<Duration>,
    /// Do everything up to the gate and keep it ready; a second call lets it through
    #[arg(long)]
    postpone: bool,
    /// Go although the last comparison found differences
    #[arg(long)]
    force_unverified: bool,
    /// The clients do without what [filter] leaves out, and use the names that [map] gives
    #[arg(long)]
    clients_know_the_map: bool,
    #[command(flatten)]
    gateway: Gateway,
}

impl Options {
    fn request(&self) -> SwitchRequest {
        SwitchRequest {
            max_pause: self.max_pause,
            dry_run: self.dry_run,
            rehearse: self.rehearse,
            postpone: self.postpone,
            force_unverified: self.force_unverified,
            clients_know_the_map: self.clients_know_the_map,
        }
    }
}

pub(super) fn run(kind: SwitchKind, options: &Options, global: &Global) -> Result<ExitCode, Failure> {
    let answer = options.gateway.post(&format!("/v1/{}", kind.name()), &options.request())?;
    if global.json {
        output::json(&answer);
    }
    if answer.get("outcome").is_some() {
        let entry: SwitchEntry = serde_json::from_value(answer).map_err(|error| {
            Failure::failed(format!("the gateway's answer is not of this version: {error}"))
        })?;
        if !global.json {
            output::line(&report::switch(&entry));
        }
        let aborted = entry.outcome == SwitchOutcome::Aborted;
        return Ok(if aborted { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    if !global.json {
        output::line(&plan(kind, &answer));
    }
    let refused = answer.get("verdict").and_then(Json::as_str).is_some_and(|verdict| verdict != "go");
    Ok(if refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The answer to `--dry-run` and `--postpone`, for people.
fn plan(kind: SwitchKind, answer: &Json) -> String {
    let text = |key: &str| answer.get(key).and_then(Json::as_str);
    let strings = |key: &str| {
        let list = answer.get(key).and_then(Json::as_array).cloned().unwrap_or_default();
        list.into_iter().filter_map(|item| item.as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let mut out = match (answer.get("postponed").and_then(Json::as_bool), text("verdict")) {
        (Some(true), _) => {
            format!("Ready and waiting at the gate. `crossfade {}` lets it through.\n", kind.name())
        }
        (_, Some("go")) => format!("Go: a {} may begin.\n", kind.name()),
        (_, Some("not-yet")) => format!("Not yet: a {} has to wait.\n", kind.name()),
        _ => format!("Refused: a {} cannot begin like this.\n", kind.name()),
    };
    for reason in strings("reasons") {
        out.push_str(&format!("  - {reason}\n"));
    }
    let findings = answer.get("findings").cloned().unwrap_or_default();
    if let Ok(findings) = serde_json::from_value::<Vec<Finding>>(findings)
        && !findings.is_empty()
    {
        out.push_str(&format!("\nWhat was looked at:\n{}\n", output::findings(&findings)));
    }
    let steps = strings("steps");
    if !steps.is_empty() {
        out.push_str("\nThe steps:\n");
        for (at, step) in steps.iter().enumerate() {
            out.push_str(&format!("  {}. {step}\n", at + 1));
        }
    }
    if let Some(budget) = answer.get("max_pause_ms").and_then(Json::as_f64) {
        out.push_str(&format!(
            "\nIf clients would be held for more than {}, it is undone.",
            output::ms(budget)
        ));
    }
    out.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_plan_for_people() {
        let text = plan(
            SwitchKind::Cutover,
            &json!({"kind": "cutover", "postponed": false, "verdict": "refused",
                    "reasons": ["destination: it is a replica"],
                    "findings": [{"level": "error", "side": "destination", "what": "it is a replica", "remedy": "promote it"}],
                    "steps": ["close the gate"], "max_pause_ms": 500.0}),
        );
        for part in ["Refused", "it is a replica", "promote it", "1. close the gate", "500 ms"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        let text = plan(SwitchKind::Rollback, &json!({"postponed": true, "verdict": "go"}));
        assert!(text.contains("`crossfade rollback` lets it through"), "{text}");
    }
}
