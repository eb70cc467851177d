//! `GET /v1/events`: server-sent events. `status` with the whole document, at first and then at most five times a
//! second; `phase` and `switch` at once, and none of these is left out.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures_util::Stream;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Control;
use crate::migration::status::{Phase, Status};

/// The least time between two `status` events.
const INTERVAL: Duration = Duration::from_millis(200);

struct Subscription {
    news: watch::Receiver<Status>,
    shutdown: CancellationToken,
    ready: std::collections::VecDeque<Event>,
    phase: Option<Phase>,
    switches: usize,
    last: Option<Instant>,
}

impl Subscription {
    /// `None` ends the stream: the gateway shuts down.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if let Some(last) = self.last {
                tokio::select! {
                    changed = self.news.changed() => changed.ok()?,
                    () = self.shutdown.cancelled() => return None,
                }
                if !self.urgent() {
                    tokio::select! {
                        () = tokio::time::sleep_until(last + INTERVAL) => {}
                        () = self.shutdown.cancelled() => return None,
                    }
                }
            }
            self.collect();
        }
    }

    /// Whether something happened that is not just a number that moved.
    fn urgent(&self) -> bool {
        let status = self.news.borrow();
        self.phase != Some(status.phase) || self.switches != status.switches.len()
    }

    fn collect(&mut self) {
        let status = self.news.borrow_and_update().clone();
        if self.phase.is_some_and(|phase| phase != status.phase) {
            self.push(
                "phase",
                &serde_json::json!({"phase": status.phase, "active": status.active, "epoch": status.epoch}),
            );
        }
        if self.last.is_some() {
            for entry in status.switches.iter().skip(self.switches) {
                self.push("switch", entry);
            }
        }
        self.phase = Some(status.phase);
        self.switches = status.switches.len();
        self.last = Some(Instant::now());
        self.push("status", &status);
    }

    fn push(&mut self, name: &str, data: &impl Serialize) {
        // Our own types are always JSON; an event that were not would be left out rather than end the stream.
        if let Ok(event) = Event::default().event(name).json_data(data) {
            self.ready.push_back(event);
        }
    }
}

pub(super) fn stream(
    control: &Arc<dyn Control>,
    shutdown: CancellationToken,
) -> Sse<impl Stream<Item = Result<Event, Infallible>> + use<>> {
    let subscription = Subscription {
        news: control.watch(),
        shutdown,
        ready: std::collections::VecDeque::new(),
        phase: None,
        switches: 0,
        last: None,
    };
    let events = futures_util::stream::unfold(subscription, |mut subscription| async move {
        let event = subscription.next().await?;
        Some((Ok(event), subscription))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
}
