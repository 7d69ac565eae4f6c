//! What a node says about itself over HTTP: a page, health, metrics, and JSON.
//!
//! Built from one document, [`Status`], so that no two answers disagree. The invariant: nothing
//! here waits for the rest of the node or changes it, but for a question about one trace, which
//! asks the members, and for [`drain`]; documents are made by functions that the node hands in.
//! Bounded by [`CONNECTIONS_MAX`]; a document grows with the number of members only. There is no
//! authentication here: the default address is loopback.

mod drain;
mod page;

use crate::explain::Explanation;

use crate::listen::{self, Limits, Listener};
use crate::metrics;
use crate::spans::TraceId;
use crate::status::{Ending, Member, State, Status, View};
use axum::extract::{Path, State as Extract};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::future::BoxFuture;
use hyper_util::service::TowerToHyperService;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use serde::Serialize;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// Browsers, scrapers and balancers of one node at once.
const CONNECTIONS_MAX: usize = 256;
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Every path, and what is there.
const PATHS: [(&str, &str); 6] = [
    ("/metrics", "for Prometheus, in its own format or as OpenMetrics"),
    ("/healthz", "200 while the process works"),
    ("/readyz", "200 while it accepts spans"),
    ("/api/v1/status", "this page as JSON"),
    ("/api/v1/members", "the members"),
    ("/api/v1/placement", "how the slots are shared out"),
];

/// What else there is, and is not there to be looked at in passing.
const QUESTIONS: [(&str, &str); 2] = [
    ("/api/v1/traces/TRACE_ID", "who owns a trace, and who holds what of it"),
    ("/api/v1/drain", "POST, from this host: end in order; GET: how that ended, once it has"),
];

/// What the console shows.
#[derive(Clone)]
pub struct Source {
    /// Makes the status document; quick, and without waiting.
    pub status: Arc<dyn Fn() -> Status + Send + Sync>,
    /// What `/metrics` shows.
    pub registry: Arc<Registry>,
    /// Asks the mesh about one trace; bounded by its own deadline.
    pub explain: Arc<dyn Fn(TraceId) -> BoxFuture<'static, Explanation> + Send + Sync>,
    /// Cancelled by whoever wants the node to drain.
    pub draining: CancellationToken,
    /// How the node ended.
    pub ended: watch::Receiver<Option<Ending>>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}

/// Serves until `drain`, and returns when the last request is answered.
pub async fn serve(listener: Listener, source: Source, drain: CancellationToken) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let limits = Limits { connections, age_max: Duration::ZERO, refused: Family::default() };
    listen::serve(listener, TowerToHyperService::new(router(source)), limits, drain).await;
}

fn router(source: Source) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/api/v1/status", get(status))
        .route("/api/v1/members", get(members))
        .route("/api/v1/placement", get(placement))
        .route("/api/v1/traces/{trace_id}", get(explain))
        .route("/api/v1/drain", get(drain::wait).post(drain::ask))
        .fallback(nothing)
        .with_state(source)
}

async fn nothing() -> (StatusCode, String) {
    let paths = PATHS.iter().chain(&QUESTIONS);
    let paths: String = paths.map(|(path, what)| format!("{path}  {what}\n")).collect();
    (StatusCode::NOT_FOUND, format!("nothing here; there is\n/  a page for people\n{paths}"))
}

async fn page(Extract(source): Extract<Source>) -> Html<String> {
    Html(page::render(&(source.status)(), &PATHS))
}

async fn metrics(Extract(source): Extract<Source>, headers: HeaderMap) -> Response {
    let asked = |accept: &str| accept.contains("application/openmetrics-text");
    let accepts = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (content_type, text) = if accepts.into_iter().any(asked) {
        (OPEN_METRICS, metrics::open_metrics(&source.registry))
    } else {
        (CLASSIC, metrics::classic(&source.registry))
    };
    match text {
        Ok(text) => ([(CONTENT_TYPE, content_type)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// The body of `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Readiness {
    ready: bool,
    state: State,
    /// Why it is not ready; empty when it is.
    why: &'static str,
    /// What is impaired although it is ready.
    degraded: Vec<String>,
}

impl From<Status> for Readiness {
    fn from(status: Status) -> Self {
        let why = match (status.ready, status.state) {
            (true, _) => "",
            (false, State::Joining) => "joining: it holds no slots yet",
            (false, State::Active) => "it does not accept spans now",
            (false, State::Leaving) => "draining: it hands over what it holds and stops",
        };
        Self { ready: status.ready, state: status.state, why, degraded: status.degraded }
    }
}

async fn ready(Extract(source): Extract<Source>) -> (StatusCode, Json<Readiness>) {
    let readiness = Readiness::from((source.status)());
    let code = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(readiness))
}

async fn status(Extract(source): Extract<Source>) -> Json<Status> {
    Json((source.status)())
}

async fn members(Extract(source): Extract<Source>) -> Json<Vec<Member>> {
    Json((source.status)().members)
}

/// What nobody knows is not found, and says all the same who would own it.
async fn explain(
    Extract(source): Extract<Source>,
    Path(trace_id): Path<String>,
) -> Result<(StatusCode, Json<Explanation>), (StatusCode, String)> {
    let trace_id = trace_id.parse::<TraceId>();
    let trace_id = trace_id.map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}\n")))?;
    let explanation = (source.explain)(trace_id).await;
    let code = if explanation.known { StatusCode::OK } else { StatusCode::NOT_FOUND };
    Ok((code, Json(explanation)))
}

/// The body of `/api/v1/placement`.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Placement {
    view: View,
    shares: Vec<Share>,
}

/// What one member holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Share {
    id: String,
    zone: String,
    weight: f64,
    owned_slots: u32,
    replica_slots: u32,
}

async fn placement(Extract(source): Extract<Source>) -> Json<Placement> {
    let Status { view, members, .. } = (source.status)();
    let share = |member: Member| Share {
        id: member.id,
        zone: member.zone,
        weight: member.weight,
        owned_slots: member.owned_slots,
        replica_slots: member.replica_slots,
    };
    Json(Placement { view, shares: members.into_iter().map(share).collect() })
}

#[cfg(test)]
mod tests;
