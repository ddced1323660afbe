//! `/api/v1/traces`: single messages on their way.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::Http;
use super::auth::Caller;
use super::problem::Problem;
use crate::exchange::trace::PROPERTY;

/// `POST /api/v1/traces`
pub async fn begin(State(http): State<Arc<Http>>, caller: Caller) -> Result<Response, Problem> {
    caller.must_observe()?;
    let id = http.ingress.traces().begin(http.ingress.clock().boot_ms());
    let id = id.map_err(|_| Problem::unavailable("the system has no random numbers yet"))?;
    let body = json!({ "id": id, "user_property": PROPERTY }).to_string();
    Ok((StatusCode::CREATED, [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// `GET /api/v1/traces/{id}`
pub async fn read(State(http): State<Arc<Http>>, caller: Caller, Path(id): Path<String>) -> Result<Response, Problem> {
    caller.must_observe()?;
    let trace = http.ingress.traces().get(&id, http.ingress.clock().boot_ms());
    let trace = trace.ok_or_else(|| Problem::not_found("there is no such trace: they are kept for ten minutes"))?;
    let steps: Vec<_> = trace
        .steps
        .iter()
        .map(|step| {
            json!({
                "step": step.what.name(),
                "upstream": step.upstream,
                "time": http.time(step.boot_ms),
                "boot_ms": step.boot_ms,
            })
        })
        .collect();
    let body = json!({
        "id": trace.id,
        "topic": trace.topic,
        "is_kept": trace.position.is_some(),
        "waits_for_upstreams": trace.waits_for,
        "steps": steps,
    });
    Ok(([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response())
}
