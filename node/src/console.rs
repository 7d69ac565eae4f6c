//! What a node says about itself over HTTP: a page, health, metrics, and JSON.
//!
//! Read-only, and built from one document, [`Status`], so that no two answers disagree. The
//! invariant: nothing here waits for the rest of the node or changes it; the document is made by a
//! function that the node hands in. Bounded by [`CONNECTIONS_MAX`]; a document grows with the
//! number of members only. There is no authentication here: the default address is loopback.

mod page;

use crate::listen::{self, Limits, Listener};
use crate::metrics;
use crate::status::{Member, State, Status, View};
use axum::extract::State as Extract;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper_util::service::TowerToHyperService;
use prometheus_client::registry::Registry;
use serde::Serialize;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
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

/// What the console shows.
#[derive(Clone)]
pub struct Source {
    /// Makes the status document; quick, and without waiting.
    pub status: Arc<dyn Fn() -> Status + Send + Sync>,
    /// What `/metrics` shows.
    pub registry: Arc<Registry>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}

/// Serves until `drain`, and returns when the last request is answered.
pub async fn serve(listener: Listener, source: Source, drain: CancellationToken) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let limits = Limits { connections, age_max: Duration::ZERO };
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
        .fallback(nothing)
        .with_state(source)
}

async fn nothing() -> (StatusCode, String) {
    let paths = PATHS.map(|(path, what)| format!("{path}  {what}\n")).concat();
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
