//! Other proxies in front of the same server, when they are on this machine: HAProxy (TCP), twemproxy, Envoy.
//!
//! Each is configured for one server and one thread, which is what suits it best on two cores.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossfade::cli::demo::connection::Connection;
use crossfade::cli::demo::servers::free_port;

/// A running proxy; ended by its process id when dropped.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) port: u16,
    child: Child,
}

impl Peer {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts every known proxy that is installed.
pub(crate) async fn start_all(dir: &Path, source: u16) -> Result<Vec<Peer>> {
    let mut peers = Vec::new();
    for name in ["haproxy", "nutcracker", "envoy"] {
        if let Some(exe) = find(name) {
            peers.push(start(name, &exe, dir, source).await.with_context(|| name.to_string())?);
        }
    }
    Ok(peers)
}

/// An executable in $CROSSFADE_PEERS, on PATH, or where Debian puts daemons.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::var_os("CROSSFADE_PEERS").map(PathBuf::from);
    let places = own.into_iter().chain(std::env::split_paths(&path)).chain(["/usr/sbin".into()]);
    places.map(|place| place.join(name)).find(|path| path.is_file())
}

async fn start(name: &'static str, exe: &Path, dir: &Path, source: u16) -> Result<Peer> {
    let (port, extra) = (free_port()?, free_port()?);
    let (text, args): (String, Vec<&str>) = match name {
        "haproxy" => (
            format!(
                "global\n  maxconn 4096\n  nbthread 1\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  \
                 timeout server 1h\nlisten redis\n  bind 127.0.0.1:{port}\n  server s 127.0.0.1:{source}\n"
            ),
            vec!["-db", "-f"],
        ),
        "nutcracker" => (
            format!(
                "bench:\n  listen: 127.0.0.1:{port}\n  hash: fnv1a_64\n  distribution: ketama\n  redis: true\n  \
                 servers:\n   - 127.0.0.1:{source}:1\n"
            ),
            vec!["-c"],
        ),
        _ => (
            envoy(port, source),
            vec!["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c"],
        ),
    };
    let config = dir.join(format!("{name}.{}", if name == "haproxy" { "cfg" } else { "yaml" }));
    std::fs::write(&config, text)?;
    let log_path = dir.join(format!("{name}.log"));
    let log = std::fs::File::create(&log_path)?;
    let mut command = Command::new(exe);
    command.args(args).arg(&config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    if name == "nutcracker" {
        // Debian's build logs into a folder of its own, which only its package makes
        command.args(["-s", &extra.to_string(), "-o"]).arg(&log_path);
    }
    let peer = Peer { name, port, child: command.spawn()? };
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let asked = async { Connection::open(&format!("127.0.0.1:{port}")).await?.call(&["GET", "k"]).await };
        if asked.await.is_ok() {
            return Ok(peer);
        }
        if Instant::now() > deadline {
            let log = std::fs::read_to_string(&log_path).unwrap_or_default();
            bail!("does not answer:\n{log}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn envoy(port: u16, source: u16) -> String {
    format!(
        r#"static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.redis_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy
          stat_prefix: bench
          settings: {{op_timeout: 30s, max_buffer_size_before_flush: 1024, buffer_flush_timeout: 0.003s}}
          prefix_routes: {{catch_all_route: {{cluster: source}}}}
  clusters:
  - name: source
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: source
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {source}}}}}}}
"#
    )
}
