//! What goes through the lanes comes back right, as fast as it goes.

use crossfade::cli::demo::workload::{Plan, Workload};

use crate::support::{Front, operations};

#[tokio::test(flavor = "multi_thread")]
async fn checked_traffic_goes_through() {
    let front = Front::new().await;
    let workload = Workload::start(&Plan { clients: 48, ..Plan::new(front.address()) });
    operations(&workload, 40_000).await;
    let verdict = workload.stop().await.unwrap().judge(&front.server.address()).await.unwrap();
    assert!(verdict.is_clean(), "{verdict}");
}
