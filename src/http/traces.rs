//! `/api/v1/traces`: single messages on their way.

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

/// What a message is to carry so that it is followed.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "NewTrace")]
pub(crate) struct Begun {
    /// The value of the user property.
    id: String,
    /// The name of the user property.
    user_property: &'static str,
}

/// What has happened to a message.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Trace")]
pub(crate) struct TraceView {
    id: String,
    /// Until the message has come: null.
    topic: Option<String>,
    /// Whether the journal has it.
    is_kept: bool,
    /// Upstreams that have not settled it.
    waits_for_upstreams: usize,
    steps: Vec<StepView>,
}

/// One step of a message.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TraceStep")]
pub(crate) struct StepView {
    step: &'static str,
    upstream: Option<String>,
    time: Option<String>,
    boot_ms: u64,
}

/// `POST /api/v1/traces`
pub(crate) async fn begin(
    State(http): State<Arc<Http>>,
    caller: Caller,
) -> Result<(StatusCode, Json<Begun>), HttpProblem> {
    caller.must_observe()?;
    let id = http.ingress.traces().begin(http.ingress.clock().boot_ms());
    let id = id.map_err(|_| HttpProblem::unavailable("the system has no random numbers yet"))?;
    Ok((StatusCode::CREATED, Json(Begun { id, user_property: TRACE_PROPERTY })))
}

/// `GET /api/v1/traces/{id}`
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
