//! HTTP: control API, metrics, dashboard page. It calls the migration through [`Control`]; nothing calls it.
//!
//! * Reading (`GET`) needs no token: the status, metrics and dashboard hold no keys, no values and no secrets.
//! * A change (`POST`) needs a JSON content type, which no page of another origin can send without asking first, an
//!   `Origin` that is the server itself if the request names one, and the bearer token where one is set. Without a
//!   token, which the configuration allows on loopback addresses only, the `Host` must be a loopback name too: a
//!   foreign name that resolves to this machine (DNS rebinding) is refused.
//! * Every error is `{"error": {"side", "message", "remedy"}}`; 400 the body is wrong, 401 the token, 403 the origin,
//!   404, 405, 409 refused, 415 the content type, 503 a server cannot be reached.
//! * What is asked for goes on when the one who asked hangs up: a switch is never torn down by a closed terminal.

mod events;
mod guard;
mod problem;
mod routes;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value as Json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::error::{Error, Result, Side};
use crate::migration::status::{Status, SwitchKind, SwitchRequest};
use crate::migration::{Handle, ResumeRequest, VerifyRequest};
use crate::mirror::ThrottleRequest;
use crate::telemetry::Metrics;

/// What an operator may ask for over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Begin to mirror.
    Start,
    /// Stop applying.
    Pause,
    /// Go on applying.
    Resume(ResumeRequest),
    /// End on the active side.
    Finish,
    /// End on the source.
    Abort,
    /// Switch the clients over, or back.
    Switch(SwitchKind, SwitchRequest),
    /// Compare the servers.
    Verify(VerifyRequest),
    /// Change the limits.
    Throttle(ThrottleRequest),
}

/// The answer to an order, as it travels.
pub type Answer = Pin<Box<dyn Future<Output = Result<Json>> + Send>>;

/// The migration, as the admin server sees it.
pub trait Control: Send + Sync + 'static {
    /// Where it stands, and news about it.
    fn watch(&self) -> watch::Receiver<Status>;
    /// Carries an order out. The answer is JSON: the switch's entry or plan, the comparison's report, the limits, else the status.
    fn order(&self, order: Order) -> Answer;
}

impl Control for Handle {
    fn watch(&self) -> watch::Receiver<Status> {
        self.subscribe()
    }

    fn order(&self, order: Order) -> Answer {
        fn json(answer: impl Serialize) -> Result<Json> {
            serde_json::to_value(answer)
                .map_err(|error| Error::new(Side::Gateway, "the answer is no JSON").because(error))
        }
        let handle = self.clone();
        Box::pin(async move {
            match order {
                Order::Start => handle.start().await?,
                Order::Pause => handle.pause().await?,
                Order::Resume(request) => handle.resume(request).await?,
                Order::Finish => handle.finish().await?,
                Order::Abort => handle.abort().await?,
                Order::Switch(SwitchKind::Cutover, request) => return json(handle.cutover(request).await?),
                Order::Switch(SwitchKind::Rollback, request) => return json(handle.rollback(request).await?),
                Order::Verify(request) => return json(handle.verify(request).await?),
                Order::Throttle(request) => return json(handle.throttle(&request)),
            }
            json(handle.status())
        })
    }
}

/// The admin server, bound but not serving yet.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: std::net::SocketAddr,
    token: Option<crate::server::Secret>,
    metrics: Arc<Metrics>,
}

impl Admin {
    /// Binds the address.
    ///
    /// # Errors
    /// It is taken, or is no address of this machine.
    pub async fn bind(config: &config::Config) -> Result<Self> {
        let wrong = |cause: std::io::Error| {
            Error::new(Side::Gateway, format!("admin.address {} cannot be listened on", config.admin.address))
                .because(cause)
                .remedy("free it, or give another one with --admin")
        };
        let listener = TcpListener::bind(&config.admin.address).await.map_err(wrong)?;
        let address = listener.local_addr().map_err(wrong)?;
        let metrics = Arc::new(Metrics::new(&config.name, &config.environment));
        Ok(Self { listener, address, token: config.admin.token.clone(), metrics })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    /// Serves until `shutdown`; then answers what is under way, for a second at most.
    ///
    /// # Errors
    /// The listener failed.
    pub async fn serve(self, control: Arc<dyn Control>, shutdown: CancellationToken) -> Result<()> {
        let keep = tokio::spawn(observe(self.metrics.clone(), control.watch(), shutdown.clone()));
        let router = routes::router(routes::Context {
            control,
            metrics: self.metrics,
            guard: guard::Guard::new(self.token, self.address.ip().to_canonical().is_loopback()),
            shutdown: shutdown.clone(),
        });
        let graceful = axum::serve(self.listener, router)
            .with_graceful_shutdown(shutdown.clone().cancelled_owned())
            .into_future();
        let served = tokio::select! {
            served = graceful => served,
            // A client that keeps its connection open must not keep the gateway from ending.
            () = async { shutdown.cancelled().await; tokio::time::sleep(Duration::from_secs(1)).await } => Ok(()),
        };
        keep.abort();
        served.map_err(|cause| Error::new(Side::Gateway, "the admin server ended").because(cause))
    }
}

/// Feeds the metrics, so that none is stale when somebody scrapes and every switch is counted.
async fn observe(metrics: Arc<Metrics>, mut news: watch::Receiver<Status>, shutdown: CancellationToken) {
    metrics.observe(&news.borrow_and_update().clone());
    loop {
        tokio::select! {
            changed = news.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(Duration::from_secs(5)) => metrics.upkeep(),
            () = shutdown.cancelled() => return,
        }
        metrics.observe(&news.borrow_and_update().clone());
    }
}

#[cfg(test)]
mod tests;
