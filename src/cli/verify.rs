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
        output::line(&text(&report, args.repair));
    }
    let left = differences.saturating_sub(number("repaired"));
    Ok(if left == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(report: &Json, repair: bool) -> String {
    let number = |key: &str| output::count(report.get(key).and_then(Json::as_u64).unwrap_or(0));
    let differences = report.get("difference_count").and_then(Json::as_u64).unwrap_or(0);
    let keys = format!("{} of {} keys compared", number("compared"), number("keys"));
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
        let what = ["what", "kind", "reason"].iter().map(|key| field(key)).find(|text| !text.is_empty());
        out.push_str(&format!("  db{} {}: {}\n", field("db"), field("key"), what.unwrap_or_default()));
    }
    out.push_str(if repair {
        "Next: `crossfade verify` again shows whether everything was repaired."
    } else {
        "Next: `crossfade verify --repair` copies what differs from the active side."
    });
    out
}
