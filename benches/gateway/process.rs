//! What a process has used: processor time and memory, from /proc.

use std::path::Path;

/// Processor time of a process so far, in microseconds, all threads together.
///
/// From `schedstat`, which counts nanoseconds; from `stat`, which counts ticks of 10 ms, where the kernel has none.
pub(crate) fn cpu_us(pid: u32) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let exact: Option<f64> = tasks
        .map(|task| first_number(&task.path().join("schedstat")))
        .try_fold(0.0, |sum, ns| ns.map(|ns| sum + ns / 1e3));
    match exact {
        Some(us) if us > 0.0 => us,
        _ => ticks(pid).unwrap_or(f64::NAN) * 1e4,
    }
}

fn first_number(path: &Path) -> Option<f64> {
    std::fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

/// Fields 14 and 15 of `stat`, counted behind the name, which may hold blanks.
fn ticks(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
}

/// Resident memory of a process now, in MiB.
pub(crate) fn rss_mib(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}
