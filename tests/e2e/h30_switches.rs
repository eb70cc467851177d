//! H30: cutover, rollback, cutover … under full load; H31 and H33 ride along with the workload's blocked readers and
//! subscribers.

use crossfade::cli::demo::workload::{Plan, Workload, create_library, create_user};

use crate::support::{Setup, operations};

#[tokio::test(flavor = "multi_thread")]
async fn h30_ten_switches_under_full_load() {
    let mut lab = Setup::new().build().await;
    create_user(&lab.destination.address()).await.unwrap();
    let user = Some(create_user(&lab.source.address()).await.unwrap());
    create_library(&lab.source.address()).await.unwrap();
    let plan = Plan { clients: 64, user, modern: true, monitored: true, ..Plan::new(lab.gateway.address()) };
    let workload = Workload::start(&plan);
    lab.mirror().await;
    // CROSSFADE_SWITCHES=50 for what the hard case asks.
    let turns = std::env::var("CROSSFADE_SWITCHES").map_or(10, |count| count.parse().unwrap());
    for turn in 0..turns {
        operations(&workload, 4000).await;
        let entry = if turn % 2 == 0 { lab.cutover().await } else { lab.rollback().await };
        assert_eq!(entry["outcome"], "committed");
        let status = lab.gateway.status().await.unwrap();
        assert_eq!(status["epoch"], turn + 1, "{status}");
        assert_eq!(status["active"], if turn % 2 == 0 { "destination" } else { "source" });
        for step in ["prepare", "close_gate", "drain_clients", "fence", "drain_mirror", "commit", "open_gate"]
        {
            assert!(entry["steps_ms"][step].is_number(), "{entry}");
        }
    }
    operations(&workload, 4000).await;
    let verdict = lab.judge(workload).await;
    assert_eq!(verdict.reconnects, 0);
    assert_eq!(lab.gateway.status().await.unwrap()["switches"].as_array().unwrap().len(), turns);
}

#[tokio::test(flavor = "multi_thread")]
async fn h30_a_rehearsal_changes_nothing() {
    let mut lab = Setup::new().build().await;
    let workload = Workload::start(&Plan { pace: Some(4000), ..Plan::new(lab.gateway.address()) });
    lab.mirror().await;
    operations(&workload, 2000).await;
    for _ in 0..3 {
        let entry = lab.gateway.order("cutover", &serde_json::json!({"rehearse": true})).await.unwrap();
        assert_eq!(entry["outcome"], "rehearsed", "{entry}");
        operations(&workload, 1000).await;
        let status = lab.gateway.status().await.unwrap();
        assert_eq!((&status["active"], &status["epoch"]), (&"source".into(), &0.into()), "{status}");
    }
    lab.cutover().await;
    operations(&workload, 2000).await;
    lab.judge(workload).await;
}
