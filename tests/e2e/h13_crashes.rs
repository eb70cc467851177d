//! H13: the gateway, the destination (with an append-only file) and the link to the source end at random instants, under
//! load where once more or once less shows. Afterwards nothing differs, nothing is doubled, and no second full sync was
//! needed.
//!
//! `CROSSFADE_CRASHES=200 scripts/test.sh --test e2e h13_crashes_in_the_mirror` is the long run.

use std::time::Duration;

use crossfade::cli::demo::fill;
use crossfade::cli::demo::workload::{Plan, Workload};

use crate::support::{Lab, PATIENCE, Setup, operations};

/// Instants that differ from run to run; `CROSSFADE_SEED` repeats one.
fn seed() -> u64 {
    let given = std::env::var("CROSSFADE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.subsec_nanos().into()
    });
    eprintln!("CROSSFADE_SEED={seed}");
    seed
}

fn instant(seed: u64, turn: u64, most_ms: u64) -> Duration {
    let mixed = (seed ^ (turn << 32))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(29)
        .wrapping_mul(0xbf58_476d_1ce4_e5b9);
    Duration::from_micros((mixed >> 20) % (most_ms * 1000))
}

async fn lab(config: &str) -> Lab {
    let mut lab = Setup::new()
        .config(config)
        .source(&["--repl-backlog-size", "128mb"])
        .destination(&["--appendonly", "yes"])
        .proxies()
        .build()
        .await;
    // lost connections are the subject here
    lab.expect_log("");
    lab
}

#[tokio::test(flavor = "multi_thread")]
async fn h13_crashes_in_the_mirror() {
    let crashes = std::env::var("CROSSFADE_CRASHES").ok().map_or(30, |number| number.parse().unwrap());
    let mut lab = lab("").await;
    let seed = seed();
    fill::fill(&lab.source.address(), 2000, 0).await.unwrap();
    let workload = Workload::start(&Plan { pace: Some(3000), ..Plan::new(lab.gateway.address()).tolerant() });
    lab.mirror().await;
    for turn in 0..crashes {
        operations(&workload, 150).await;
        tokio::time::sleep(instant(seed, turn, 120)).await;
        match turn % 5 {
            0 | 2 => lab.gateway.restart().await.unwrap(),
            1 | 3 => lab.destination.restart().await.unwrap(),
            _ => lab.source_proxy.as_ref().unwrap().cut(),
        }
    }
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    operations(&workload, 1000).await;
    lab.judge(workload).await;
    assert_eq!(lab.source.info("sync_full").await.unwrap(), "1", "the backlog covered every gap");
}

#[tokio::test(flavor = "multi_thread")]
async fn h13_twelve_crashes_in_the_snapshot() {
    let seed = seed();
    for turn in 0..6 {
        let method = ["auto", "commands"][turn as usize / 3];
        let mut lab = lab(&format!("[snapshot]\nmethod = \"{method}\"\n")).await;
        fill::fill(&lab.source.address(), 30_000, 2 << 20).await.unwrap();
        let workload =
            Workload::start(&Plan { pace: Some(1500), ..Plan::new(lab.gateway.address()).tolerant() });
        lab.gateway.begin().await.unwrap();
        for crash in 0..2 {
            tokio::time::sleep(instant(seed, 100 + turn * 2 + crash, 500)).await;
            match (turn + crash) % 3 {
                0 => lab.gateway.restart().await.unwrap(),
                1 => lab.destination.restart().await.unwrap(),
                _ => lab.source_proxy.as_ref().unwrap().cut(),
            }
        }
        lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
        operations(&workload, 500).await;
        lab.judge(workload).await;
    }
}
