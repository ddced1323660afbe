//! `/api/v1/traces`: traces single messages.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

use super::Http;
use super::auth::Caller;
use super::problem::HttpProblem;
use crate::exchange::trace::Step;
use crate::message::TRACE_PROPERTY;

/// A user property that makes the message which carries it traced.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "NewTrace")]
pub(crate) struct Begun {
    /// The value of the user property.
    id: String,
    /// The name of the user property.
    user_property: &'static str,
}

/// The progress of a traced message.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Trace")]
pub(crate) struct TraceView {
    id: String,
    /// The topic of the message; `null` until the message has arrived.
    topic: Option<String>,
    /// Whether the journal has the message.
    is_kept: bool,
    /// The number of upstreams that have not settled the message.
    waits_for_upstreams: usize,
    steps: Vec<StepView>,
}

/// One event of a traced message.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TraceStep")]
pub(crate) struct StepView {
    step: &'static str,
    upstream: Option<String>,
    time: Option<String>,
    boot_ms: u64,
}

/// Handles `POST /api/v1/traces`: starts a trace.
pub(crate) async fn begin(
    State(http): State<Arc<Http>>,
    caller: Caller,
) -> Result<(StatusCode, Json<Begun>), HttpProblem> {
    caller.must_observe()?;
    let id = http.ingress.traces().begin(http.ingress.clock().boot_ms());
    let id = id.map_err(|_| HttpProblem::unavailable("the system has no random numbers yet"))?;
    Ok((StatusCode::CREATED, Json(Begun { id, user_property: TRACE_PROPERTY })))
}

/// Handles `GET /api/v1/traces/{id}`: the progress so far.
pub(crate) async fn read(
    State(http): State<Arc<Http>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<TraceView>, HttpProblem> {
    caller.must_observe()?;
    let trace = http.ingress.traces().get(&id, http.ingress.clock().boot_ms());
    let trace = trace.ok_or_else(|| HttpProblem::not_found("there is no such trace: they are kept for ten minutes"))?;
    let view = |step: Step| StepView {
        step: step.what.name(),
        upstream: step.upstream,
        time: http.time(step.boot_ms),
        boot_ms: step.boot_ms,
    };
    Ok(Json(TraceView {
        id: trace.id,
        topic: trace.topic,
        is_kept: trace.position.is_some(),
        waits_for_upstreams: trace.waits_for,
        steps: trace.steps.into_iter().map(view).collect(),
    }))
}
