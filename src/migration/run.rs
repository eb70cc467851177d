//! Putting the gateway together: record, data path, control API, controller.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::controller::Controller;
use super::handle::Handle;
use super::record::{Store, choice};
use super::status::{ActiveSide, Status};
use super::switching;
use crate::admin::Admin;
use crate::config::{Config, ListenTls};
use crate::cutover::failpoint;
use crate::cutover::live::take_down;
use crate::error::{Error, Result, Side};
use crate::mirror::Limits;
use crate::proxy::{ListenOptions, Proxy, ProxyOptions};

/// Runs the gateway until `shutdown` is cancelled. With `start_now` it begins to mirror at once, unless it has begun
/// before.
///
/// # Errors
/// When it cannot begin: the state directory is in use, an address cannot be bound, a certificate cannot be read.
pub async fn run(config: Config, start_now: bool, shutdown: CancellationToken) -> Result<()> {
    failpoint::arm();
    let config = Arc::new(config);
    let mut store = Store::open(&config.state_dir)?;
    let line = store.line().clone();
    if line.active == ActiveSide::Destination && config.destination.is_none() {
        return Err(Error::new(
            Side::Gateway,
            format!(
                "the clients are on the destination, says {}, but no destination is configured",
                config.state_dir.display()
            ),
        )
        .remedy("name the destination, or use another state_dir"));
    }
    same_migration(&config, &store)?;
    if let Some(entry) = switching::recovered(&line, &store.record().switches) {
        tracing::warn!(
            epoch = line.epoch,
            "a {} was interrupted behind its commit line; it is finished now",
            entry.kind.name()
        );
        store.update(|record| record.switches.push(entry))?;
    }
    // Before the clients come: their writes would wait for it.
    if let Some(fence) = store.record().fence.clone() {
        let endpoint = match fence.side {
            ActiveSide::Source => Some(&config.source),
            ActiveSide::Destination => config.destination.as_ref(),
        };
        if let Some(endpoint) = endpoint {
            match take_down(endpoint, &fence, fence.side != line.active).await {
                Ok(()) => store.update(|record| record.fence = None)?,
                Err(error) => {
                    tracing::warn!(%error, "a fence that an interrupted switch left on the {} is still up; trying again", fence.side)
                }
            }
        }
    }
    let admin = Admin::bind(&config).await?;
    let proxy = Proxy::start(ProxyOptions {
        listen: listen(&config)?,
        source: config.source.clone(),
        destination: config.destination.clone(),
        active: line.active.into(),
        epoch: line.epoch,
        connect_timeout: config.server.connect_timeout,
        reconnect_wait: config.server.reconnect_wait,
        scripts: Some(config.state_dir.join("scripts")),
    })?;
    tracing::info!(
        name = %config.name,
        listen = %proxy.local_addr(),
        admin = %admin.address(),
        source = %config.source.address,
        destination = config.destination.as_ref().map(|d| d.address.to_string()),
        "crossfade {}",
        env!("CARGO_PKG_VERSION")
    );

    let (asks, asked) = mpsc::channel(16);
    let (status, shown) = watch::channel(Status::default());
    let limits = Arc::new(Limits::new(&config.throttle));
    let handle = Handle::new(asks, shown, Arc::clone(&limits));
    let (controller, outputs) =
        Controller::new(Arc::clone(&config), limits, proxy, store, asked, status, shutdown.clone());
    // The control API outlives the signal: what happens while the gateway drains can be watched.
    let closed = CancellationToken::new();
    let admin = tokio::spawn(admin.serve(Arc::new(handle), closed.clone()));
    controller.run(outputs, start_now).await;
    closed.cancel();
    match tokio::time::timeout(Duration::from_secs(3), admin).await {
        Ok(Ok(served)) => served,
        _ => Ok(()),
    }
}

/// A state directory belongs to the two servers that its migration began with, and to what is copied of them.
fn same_migration(config: &Config, store: &Store) -> Result<()> {
    let record = store.record();
    if record.intent != super::record::Intent::Mirror {
        return Ok(());
    }
    let destination = config.destination.as_ref().map(|d| d.address.to_string()).unwrap_or_default();
    for (name, was, is) in [
        ("source", &record.source, config.source.address.to_string()),
        ("destination", &record.destination, destination),
    ] {
        if !was.is_empty() && *was != is {
            tracing::warn!(
                "the {name} was {was} when the migration began and is {is} now; it must be the same server"
            );
        }
    }
    // Before there was a mapping, none was noted.
    let is = choice(config);
    let same = match &record.chosen {
        Some(chosen) => *chosen == is,
        None => !config.map.is_set(),
    };
    if same {
        return Ok(());
    }
    let was = record.chosen.as_ref().map_or_else(|| "no [map]".to_owned(), ToString::to_string);
    Err(Error::new(
        Side::Gateway,
        "[filter] or [map] is not what the migration in state_dir began with, and part of the data is copied by that",
    )
    .remedy(format!(
        "it was {was}: put that back and start the gateway; then, to choose otherwise, `crossfade abort`, change it, and start anew"
    )))
}

fn listen(config: &Config) -> Result<ListenOptions> {
    let listen = &config.listen;
    Ok(ListenOptions {
        address: listen.address.clone(),
        unix_socket: listen.unix_socket.clone(),
        tls: listen.tls.as_ref().map(tls).transpose()?,
        workers: listen.workers,
        max_clients: listen.max_clients,
        output_buffer_limit: listen.output_buffer_limit,
        query_buffer_limit: listen.query_buffer_limit,
        idle_timeout: listen.idle_timeout,
        tcp_keepalive: listen.tcp_keepalive,
        allow_replicas: listen.allow_replicas,
    })
}

fn tls(files: &ListenTls) -> Result<Arc<rustls::ServerConfig>> {
    use rustls_pki_types::pem::PemObject as _;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};

    let wrong = |path: &std::path::Path, cause: String| {
        Error::new(Side::Gateway, format!("{} cannot be used: {cause}", path.display()))
            .remedy("give PEM files in [listen.tls]")
    };
    let certificates = |path: &std::path::Path| {
        CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
            .map_err(|e| wrong(path, e.to_string()))
    };
    let chain = certificates(&files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| wrong(&files.key, e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(&files.cert, e.to_string()))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|e| wrong(path, e.to_string()))?;
            }
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|e| wrong(path, e.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    builder.with_single_cert(chain, key).map(Arc::new).map_err(|e| wrong(&files.cert, e.to_string()))
}
