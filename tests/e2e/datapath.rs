//! The data path in this process, without migration: what goes through the lanes comes back right.

use std::time::Duration;

use crossfade::Side;
use crossfade::cli::demo::servers::Server;
use crossfade::cli::demo::workload::{Plan, Workload};
use crossfade::proxy::{Active, ListenOptions, Proxy, ProxyOptions};
use crossfade::server::Endpoint;

use crate::support::{operations, start_server};

pub async fn proxy(source: &Server, destination: Option<&Server>, workers: usize) -> Proxy {
    let endpoint = |server: &Server, side| Endpoint::parse(side, &server.url()).unwrap();
    Proxy::start(ProxyOptions {
        listen: ListenOptions { address: "127.0.0.1:0".into(), workers, ..ListenOptions::default() },
        source: endpoint(source, Side::Source),
        destination: destination.map(|server| endpoint(server, Side::Destination)),
        active: Active::Source,
        reconnect_wait: Duration::from_secs(10),
    })
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn checked_traffic_goes_through() {
    let dir = tempfile::tempdir().unwrap();
    let server = start_server("", dir.path(), &[]).await;
    for workers in [1, 2] {
        let proxy = proxy(&server, None, workers).await;
        let plan =
            Plan { prefix: format!("w{workers}"), clients: 48, ..Plan::new(proxy.local_addr().to_string()) };
        let workload = Workload::start(&plan);
        operations(&workload, 40_000).await;
        let verdict = workload.stop().await.unwrap().judge(&server.address()).await.unwrap();
        proxy.shutdown(Duration::from_secs(1)).await;
        assert!(verdict.is_clean(), "{verdict}");
    }
}
