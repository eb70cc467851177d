//! The paths and what answers them.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::guard::Guard;
use super::problem::Problem;
use super::{Control, Order, events};
use crate::migration::status::{Phase, SwitchKind};
use crate::telemetry::Metrics;
use crate::{Error, Side};

const DASHBOARD: &str = include_str!("dashboard.html");

/// What every handler can reach.
pub(super) struct Context {
    pub(super) control: Arc<dyn Control>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) guard: Guard,
    pub(super) shutdown: CancellationToken,
}

type Shared = State<Arc<Context>>;

pub(super) fn router(context: Context) -> Router {
    Router::new()
        .route("/", get(async || Html(DASHBOARD)))
        .route(
            "/v1/status",
            get(async |State(context): Shared| axum::Json(context.control.watch().borrow().clone())),
        )
        .route(
            "/v1/events",
            get(async |State(context): Shared| events::stream(&context.control, context.shutdown.clone())),
        )
        .route("/v1/{order}", post(order))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || axum::Json(json!({"alive": true}))))
        .route("/readyz", get(ready))
        .fallback(async || {
            Problem::new(
                StatusCode::NOT_FOUND,
                "there is nothing at this path",
                "see GET / or GET /v1/status",
            )
        })
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path does not take this method",
                "changes are POST, all else is GET",
            )
        })
        // An order is a few dozen bytes.
        .layer(DefaultBodyLimit::max(64 << 10))
        .layer(middleware::from_fn(headers))
        .with_state(Arc::new(context))
}

/// No answer is cached, framed by another page or taken for something else.
async fn headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
             img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn metrics(State(context): Shared) -> Response {
    context.metrics.observe(&context.control.watch().borrow().clone());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], context.metrics.render())
        .into_response()
}

/// Ready means that clients are served, whatever the mirror does; not so while the gateway drains.
async fn ready(State(context): Shared) -> Response {
    let phase = context.control.watch().borrow().phase;
    let ready = !context.shutdown.is_cancelled();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(json!({"ready": ready, "phase": phase, "mirror_failed": phase == Phase::Failed})))
        .into_response()
}

async fn order(
    State(context): Shared,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    context.guard.admit(&headers)?;
    let order = match name.as_str() {
        "start" => bare(&body, Order::Start)?,
        "pause" => bare(&body, Order::Pause)?,
        "resume" => Order::Resume(parse(&body)?),
        "finish" => bare(&body, Order::Finish)?,
        "abort" => bare(&body, Order::Abort)?,
        "cutover" => Order::Switch(SwitchKind::Cutover, parse(&body)?),
        "rollback" => Order::Switch(SwitchKind::Rollback, parse(&body)?),
        "verify" => Order::Verify(parse(&body)?),
        "throttle" => Order::Throttle(parse(&body)?),
        _ => {
            return Err(Problem::new(
                StatusCode::NOT_FOUND,
                "there is no such order",
                "start, cutover, rollback, verify, pause, resume, throttle, finish, abort",
            ));
        }
    };
    tracing::info!(?order, "ordered over the control API");
    // In a task of its own: a requester that hangs up drops this handler, but not what it asked for.
    let answer = tokio::spawn(context.control.order(order)).await;
    let answer =
        answer.map_err(|error| Error::new(Side::Gateway, "the order broke off").because(error))??;
    Ok(axum::Json(answer).into_response())
}

/// An order without arguments: an empty body or an empty object.
fn bare(body: &Bytes, order: Order) -> Result<Order, Problem> {
    #[derive(Default, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    parse::<Nothing>(body).map(|_| order)
}

fn parse<T: DeserializeOwned + Default>(body: &Bytes) -> Result<T, Problem> {
    if body.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|error| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            format!("the body cannot be understood: {error}"),
            "see `crossfade --help`",
        )
    })
}
