//! How the gateway's threads share processors with the server that they work for.

use std::net::IpAddr;

use super::{Address, Endpoint};

/// How much the gateway gives way (nice(2)): two thirds of the weight that its neighbours have. With 5, a third of it, a
/// busy client waits for its core 2 % of the time instead of 4, and pipelines lose a tenth: they do better where the gateway runs beside
/// the clients.
const NICE: i32 = 2;

/// Of the server, the clients and the gateway on one machine, let no thread of the gateway take a processor away from
/// the others when it wakes up; that is what Linux calls `SCHED_BATCH` (sched(7)). What the gateway would
/// interrupt is who sends its next command, and the two interruptions cost 5 % of the throughput at full load; where a
/// processor is idle, nothing changes.
///
/// And let the kernel, which compares how loaded processors are when it chooses one for the server that the gateway wakes,
/// count the gateway for less than a client: the server then runs where the gateway waits for it. With equal weights it came to
/// share a processor with the clients for milliseconds, while the gateway held the other one.
///
/// Threads that are started later inherit both. A policy that somebody chose for the process stays, and so does
/// everything when the servers are elsewhere.
///
/// To be called before any other thread is started.
pub fn let_neighbours_run<'a>(servers: impl IntoIterator<Item = &'a Endpoint>) {
    if !servers.into_iter().any(|server| is_here(&server.address)) || !is_ordinary() {
        return;
    }
    #[cfg(target_os = "linux")]
    match scheduler::set_self_policy(scheduler::Policy::Batch, 0) {
        Ok(()) => {
            tracing::debug!("a server is on this machine: its threads are not interrupted by the gateway's")
        }
        Err(()) => tracing::debug!("the scheduling policy cannot be changed here; it stays as it is"),
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!("the gateway's weight cannot be changed here: {error}");
    }
}

/// Whether an address is on this machine for sure.
fn is_here(address: &Address) -> bool {
    match address {
        Address::Unix(_) => true,
        Address::Tcp { host, .. } => {
            host.eq_ignore_ascii_case("localhost")
                || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
        }
    }
}

/// Whether this process runs under the system's default policy and weight: the 41st and the 19th field of `/proc/self/stat`
/// (proc_pid_stat(5)), counted behind the name, which may hold spaces.
fn is_ordinary() -> bool {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return false };
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let fields: Vec<&str> = rest.split_whitespace().collect();
    fields.get(38) == Some(&"0") && fields.get(16) == Some(&"0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Side;

    #[test]
    fn only_what_is_here_counts() {
        let here = |url: &str| is_here(&Endpoint::parse(Side::Source, url).unwrap().address);
        for yes in ["redis://localhost:1", "redis://127.0.0.9:1", "redis://[::1]:1", "unix:///tmp/s"] {
            assert!(here(yes), "{yes}");
        }
        for no in ["redis://10.0.0.1:1", "redis://redis.example:1", "redis://[::2]:1"] {
            assert!(!here(no), "{no}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn threads_that_come_later_inherit_it() {
        let policy_and_weight = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
            format!("{} {}", fields[38], fields[16])
        };
        std::thread::spawn(move || {
            assert_eq!(policy_and_weight(), "0 0");
            let_neighbours_run([&Endpoint::parse(Side::Source, "redis://10.0.0.1:1").unwrap()]);
            assert_eq!(policy_and_weight(), "0 0");
            let_neighbours_run([&Endpoint::parse(Side::Source, "redis://127.0.0.1:1").unwrap()]);
            assert_eq!(std::thread::spawn(policy_and_weight).join().unwrap(), "3 2");
        })
        .join()
        .unwrap();
    }
}
