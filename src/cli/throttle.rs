//! `crossfade throttle`: change limits while running.

use std::process::ExitCode;

use serde_json::{Map, Value as Json};

use super::api::Gateway;
use super::{Failure, Global, output};
use crate::config::units;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("limits").required(true).multiple(true)))]
pub(super) struct Args {
    /// Bytes of the snapshot per second, as in 50MB/s; 'off' for no limit
    #[arg(long, group = "limits", value_name = "RATE", value_parser = rate)]
    snapshot_bytes: Option<String>,
    /// Keys of the snapshot per second
    #[arg(long, group = "limits", value_name = "RATE", value_parser = count_rate)]
    snapshot_keys: Option<String>,
    /// Mirrored commands per second
    #[arg(long, group = "limits", value_name = "RATE", value_parser = count_rate)]
    mirror_ops: Option<String>,
    /// Bytes of mirrored commands per second
    #[arg(long, group = "limits", value_name = "RATE", value_parser = rate)]
    mirror_bytes: Option<String>,
    /// Slow down while a PING takes the destination longer than this, as in 20ms; 'off' for no limit
    #[arg(long, group = "limits", value_name = "DURATION", value_parser = latency)]
    max_destination_latency: Option<String>,
    /// Wait while the destination uses more memory than this, as in 80% or 6GB
    #[arg(long, group = "limits", value_name = "SIZE", value_parser = memory)]
    max_destination_memory: Option<String>,
    #[command(flatten)]
    gateway: Gateway,
}

fn rate(text: &str) -> Result<String, String> {
    units::parse_rate(text).map(units::show_rate)
}

fn count_rate(text: &str) -> Result<String, String> {
    units::parse_rate(text).map(units::show_count_rate)
}

fn latency(text: &str) -> Result<String, String> {
    units::parse_latency_limit(text).map(units::show_latency_limit)
}

fn memory(text: &str) -> Result<String, String> {
    units::parse_memory_limit(text).map(units::show_memory_limit)
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let limits = [
        ("snapshot_bytes", &args.snapshot_bytes),
        ("snapshot_keys", &args.snapshot_keys),
        ("mirror_ops", &args.mirror_ops),
        ("mirror_bytes", &args.mirror_bytes),
        ("max_destination_latency", &args.max_destination_latency),
        ("max_destination_memory", &args.max_destination_memory),
    ];
    let body: Map<String, Json> = limits
        .into_iter()
        .filter_map(|(key, rate)| rate.clone().map(|rate| (key.to_owned(), Json::String(rate))))
        .collect();
    let answer = args.gateway.post("/v1/throttle", &body)?;
    if global.json {
        output::json(&answer);
    } else {
        let limits = answer.as_object().into_iter().flatten();
        let shown: Vec<String> =
            limits.filter_map(|(name, limit)| Some(format!("{name} {}", limit.as_str()?))).collect();
        output::line(&format!("In force: {}.", shown.join(", ")));
    }
    Ok(ExitCode::SUCCESS)
}
