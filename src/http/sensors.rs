//! The present motion and the history of sensors.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use tracing::warn;

use super::Http;
use super::auth::Caller;
use super::envelope::rfc3339;
use super::history::{EventState, reading};
use super::problem::HttpProblem;
use super::query::{Query, decode};
use crate::status::{EdgeFigures, Finding, SensorSnapshot};

/// The path of sensors.
const SENSORS: &str = "/api/v1/sensors/";
/// The most events on a page.
const MAX_EVENTS: usize = 1000;

/// A sensor with its state.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Sensor")]
pub(crate) struct SensorView<'a> {
    #[serde(flatten)]
    snapshot: &'a SensorSnapshot,
    /// When the state began; `null` while the clock is not synchronised.
    since: Option<String>,
}

/// A change of a sensor's state.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SensorEvent")]
pub(crate) struct EventView {
    n: u64,
    state: EventState,
    time: Option<String>,
    boot: String,
    boot_ms: u64,
}

/// An edge of a pin.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SensorEdge")]
pub(crate) struct EdgeView {
    /// The time of the edge in milliseconds of the boot clock.
    boot_ms: u64,
    /// Whether the sensor became active.
    active: bool,
}

/// The last edges of a sensor's pin, with statistics.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SensorEdges")]
pub(crate) struct Edges {
    /// The diagnosis; `null` if nothing is wrong.
    finding: Option<Finding>,
    figures: EdgeFigures,
    /// At most 512 edges of the ten minutes before the last one, oldest first.
    edges: Vec<EdgeView>,
}

/// A page of the history of a sensor.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SensorEvents")]
pub(crate) struct Events {
    events: Vec<EventView>,
    /// The value of `cursor` with which to continue after these events, now or later.
    cursor: u64,
    /// Whether more events are available already.
    more: bool,
}

fn view<'a>(http: &Http, snapshot: &'a SensorSnapshot) -> SensorView<'a> {
    SensorView { snapshot, since: snapshot.since_boot_ms.and_then(|since| http.time(since)) }
}

/// The sensors whose topics the caller may read, as JSON.
pub(crate) fn list_json(http: &Http, caller: &Caller, snapshots: &[SensorSnapshot]) -> String {
    let visible = snapshots.iter().filter(|snapshot| caller.permissions.may_receive(&snapshot.topic));
    serde_json::to_string(&visible.map(|snapshot| view(http, snapshot)).collect::<Vec<_>>()).unwrap_or_default()
}

/// The sensor with this name, if the caller may see it.
fn find(http: &Http, caller: &Caller, name: &str) -> Result<SensorSnapshot, HttpProblem> {
    let name = decode(name, false)?;
    let snapshots = http.status.sensors.borrow();
    let is_it = |snapshot: &&SensorSnapshot| snapshot.name == name && caller.permissions.may_receive(&snapshot.topic);
    snapshots.iter().find(is_it).cloned().ok_or_else(|| HttpProblem::not_found("there is no such sensor"))
}

/// Handles `GET /api/v1/sensors`.
pub(crate) async fn list(State(http): State<Arc<Http>>, caller: Caller) -> Response {
    let snapshots = http.status.sensors.borrow().clone();
    ([(header::CONTENT_TYPE, "application/json")], list_json(&http, &caller, &snapshots)).into_response()
}

/// Handles `GET /api/v1/sensors/{name}`.
pub(crate) async fn one(State(http): State<Arc<Http>>, caller: Caller, uri: Uri) -> Result<Response, HttpProblem> {
    let name = uri.path().strip_prefix(SENSORS).unwrap_or_default();
    let snapshot = find(&http, &caller, name)?;
    Ok(Json(view(&http, &snapshot)).into_response())
}

/// Handles `GET /api/v1/sensors/{name}/edges`.
pub(crate) async fn edges(State(http): State<Arc<Http>>, caller: Caller, uri: Uri) -> Result<Json<Edges>, HttpProblem> {
    let name = uri.path().strip_prefix(SENSORS).and_then(|rest| rest.strip_suffix("/edges")).unwrap_or_default();
    let SensorSnapshot { finding, edges, .. } = find(&http, &caller, name)?;
    let last = edges.copy();
    let figures = EdgeFigures::of(&last, http.ingress.clock().boot_ms());
    let edges = last.into_iter().map(|(boot_ms, active)| EdgeView { boot_ms, active }).collect();
    Ok(Json(Edges { finding, figures, edges }))
}

/// Handles `GET /api/v1/sensors/{name}/events`.
pub(crate) async fn events(State(http): State<Arc<Http>>, caller: Caller, uri: Uri) -> Result<Response, HttpProblem> {
    let query = Query::parse(&uri, &["since", "limit", "cursor"])?;
    let name = uri.path().strip_prefix(SENSORS).and_then(|rest| rest.strip_suffix("/events")).unwrap_or_default();
    let sensor = find(&http, &caller, name)?.name;
    let time = |text: &str| text.parse::<Timestamp>().ok().map(Timestamp::as_millisecond);
    let since = query.parsed("since", "a time such as 2026-03-01T12:00:00Z", time)?;
    let cursor = query.parsed("cursor", "the cursor of an earlier answer", |text| text.parse().ok())?.unwrap_or(0);
    let within = |text: &str| text.parse().ok().filter(|limit| (1..=MAX_EVENTS).contains(limit));
    let limit = query.parsed("limit", "a number from 1 to 1000", within)?.unwrap_or(100);
    let turn = http.history_turns.take(caller.holder()).await;
    let dir = http.history.clone();
    let reading = tokio::task::spawn_blocking(move || {
        // the turn lasts as long as the reading, even if the client is gone before
        let _turn = turn?;
        Some(reading::read(&dir, &sensor, since, cursor, limit + 1))
    });
    let mut found = match reading.await {
        Ok(Some(Ok(found))) => found,
        Ok(Some(Err(error))) => {
            warn!(%error, "the history of a sensor cannot be read");
            return Err(HttpProblem::new(StatusCode::INTERNAL_SERVER_ERROR, "the history cannot be read"));
        }
        Ok(None) | Err(_) => return Err(HttpProblem::unavailable("the gateway is shutting down")),
    };
    let more = found.len() > limit;
    found.truncate(limit);
    let cursor = found.last().map_or(cursor, |event| event.n);
    let events = found.into_iter().map(|event| EventView {
        n: event.n,
        state: event.state,
        time: event.unix_ms.and_then(rfc3339),
        boot: event.boot,
        boot_ms: event.boot_ms,
    });
    Ok(Json(Events { events: events.collect(), cursor, more }).into_response())
}
