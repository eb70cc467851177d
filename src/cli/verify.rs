//! `crossfade verify`: compare the two servers.

use std::process::ExitCode;

use serde_json::{Value as Json, json};

use super::api::Gateway;
use super::{Failure, Global, output};

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Copy what differs
    #[arg(long)]
    repair: bool,
    /// Compare only so many keys, chosen evenly
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    sample: Option<u64>,
    /// How often a key that differs is looked at again before it counts [default: verify.rounds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    #[command(flatten)]
    gateway: Gateway,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let request = json!({"repair": args.repair, "sample": args.sample, "rounds": args.rounds});
    let report = args.gateway.post("/v1/verify", &request)?;
    let number = |key: &str| report.get(key).and_then(Json::as_u64).unwrap_or(0);
    let differences = number("difference_count");
    if global.json {
        output::json(&report);
    } else {
        output::line(&text(&report));
    }
    let left = report.get("left").and_then(Json::as_u64).unwrap_or(differences);
    Ok(if left == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(report: &Json) -> String {
    let number = |key: &str| report.get(key).and_then(Json::as_u64).unwrap_or(0);
    let differences = report.get("difference_count").and_then(Json::as_u64).unwrap_or(0);
    let all = number("keys_a").max(number("keys_b"));
    let seconds = report.get("seconds").and_then(Json::as_f64).unwrap_or(0.0);
    let keys = format!(
        "{} of {} keys compared in {seconds:.1} s",
        output::count(number("compared")),
        output::count(all)
    );
    if differences == 0 {
        return format!("{keys}: no differences.");
    }
    let mut out = format!("{keys}: {} DIFFER.\n", output::count(differences));
    for difference in report.get("differences").and_then(Json::as_array).into_iter().flatten().take(20) {
        let field = |key: &str| match difference.get(key) {
            Some(Json::String(text)) => text.clone(),
            None | Some(Json::Null) => String::new(),
            Some(other) => other.to_string(),
        };
        out.push_str(&format!("  db{} {}: {}\n", field("db"), field("key"), field("what")));
    }
    match (report.get("repaired").and_then(Json::as_u64), report.get("left").and_then(Json::as_u64)) {
        (Some(repaired), Some(left)) => out.push_str(&match left {
            0 => format!("{} keys copied from the active side; nothing differs any more.", output::count(repaired)),
            left => format!(
                "{} keys copied from the active side; {} STILL DIFFER: function libraries, values above 128 MiB, what somebody else writes there, or keys that were written all the time. `crossfade verify` names them.",
                output::count(repaired),
                output::count(left)
            ),
        }),
        _ => out.push_str("Next: `crossfade verify --repair` copies what differs from the active side."),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_for_people() {
        let same =
            json!({"keys_a": 1000, "keys_b": 1000, "compared": 1000, "difference_count": 0, "seconds": 1.25});
        assert_eq!(text(&same), "1 000 of 1 000 keys compared in 1.2 s: no differences.");
        let differ = json!({"keys_a": 2, "keys_b": 1, "compared": 2, "difference_count": 1, "seconds": 0.0,
                            "differences": [{"db": 3, "key": "a", "kind": "missing-on-b", "what": "only the source has it"}]});
        let said = text(&differ);
        assert!(said.contains("1 DIFFER") && said.contains("db3 a: only the source has it"), "{said}");
        assert!(said.contains("--repair"), "{said}");
        for (left, part) in [(0, "nothing differs any more"), (1, "1 STILL DIFFER")] {
            let mut repaired = differ.clone();
            (repaired["repaired"], repaired["left"]) = (json!(1), json!(left));
            assert!(text(&repaired).contains(part), "{}", text(&repaired));
        }
    }
}
