//! `GET /api/v1/stream`: messages as they come, as server-sent events.
//!
//! A stream is a cursor into the [`super::ring::Ring`] that all share. One that is slow finds the ring has moved on, is
//! told of the gap and goes on; one that takes nothing is closed by the port. Events:
//!
//! | event | data |
//! |---|---|
//! | `message` | a message; its id is one to resume from |
//! | `gap` | `{"missed": n}`: so many messages, on all topics, have gone by unseen; `null`: nobody knows how many |
//! | `heartbeat` | at the start and every 15 seconds, with the id to resume from: the boot clock of the host, and which boot it is |
//! | `sensors`, `upstreams`, `clients`, `problems`, `gateway` | with `status=true`: at the start and after every change |

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, Uri, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use super::answers;
use super::auth::Caller;
use super::envelope::Envelope;
use super::hub::SysGuard;
use super::problem::HttpProblem;
use super::query::Query;
use super::sensors;
use super::{Http, MAX_STREAMS};
use crate::access::places::Place;
use crate::exchange::receiving::Reservation;
use crate::message::{check_filter, matches};

/// How often a quiet stream shows that it lives.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// After something has happened, more is waited for this long, so that a burst is one write ...
const GATHER: Duration = Duration::from_millis(20);
/// ... and this much longer for every open stream: a thousand of them write no more often than fifty, and leave time for
/// MQTT.
const GATHER_MORE: Duration = Duration::from_micros(400);
/// How often the gateway's own figures are compared.
const STATUS: Duration = Duration::from_secs(1);
/// Bytes of events that are written at a time, beyond the first.
const PORTION: usize = 128 << 10;
/// Filters of one stream.
const MAX_FILTERS: usize = 32;

/// One client's stream.
struct EventStream {
    http: Arc<Http>,
    caller: Caller,
    filters: Vec<Box<str>>,
    cursor: u64,
    head: watch::Receiver<u64>,
    heartbeat: Interval,
    status: Option<StatusEvents>,
    begun: bool,
    _sys: Option<SysGuard>,
    place: Place,
}

/// The part of a stream that is not about messages.
struct StatusEvents {
    sensors: watch::Receiver<Vec<crate::status::SensorSnapshot>>,
    tick: Interval,
    /// What was sent last.
    sent: HashMap<&'static str, Arc<str>>,
}

/// Serves it.
pub(crate) async fn stream(
    State(http): State<Arc<Http>>,
    caller: Caller,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, HttpProblem> {
    let query = Query::parse(&uri, &["filter", "status", "last_event_id"])?;
    let filters: Vec<Box<str>> = query.all("filter").map(Into::into).collect();
    let with_status = query.flag("status")?;
    if filters.is_empty() && !with_status {
        return Err(HttpProblem::bad_request("parameter \"filter\" is missing"));
    }
    if filters.len() > MAX_FILTERS {
        return Err(HttpProblem::bad_request(format!("more than {MAX_FILTERS} filters")));
    }
    for filter in &filters {
        check_filter(filter)?;
        if !caller.permissions.may_subscribe(filter) {
            return Err(HttpProblem::forbidden("this user may not subscribe to this topic filter"));
        }
    }
    // the header goes before the parameter: a browser repeats the address as it was, and keeps the header up to date
    let resume = match headers.get("last-event-id") {
        Some(id) => id.to_str().ok(),
        None => query.get("last_event_id")?,
    };
    let resume = match resume.filter(|id| !id.is_empty()) {
        None => None,
        Some(id) => Some(id.parse::<u64>().map_err(|_| HttpProblem::bad_request("the last event id is not a number"))?),
    };
    let place = http.streams.enter(&caller.newcomer(), http.bounds(MAX_STREAMS));
    let place = place.map_err(|_| HttpProblem::unavailable("too many streams are open"))?;
    let sys = filters.iter().any(|filter| matches("$SYS/#", filter)).then(|| http.hub.with_sys());
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeat.reset();
    let head = http.hub.head();
    let status = with_status.then(|| StatusEvents {
        sensors: http.status.sensors.clone(),
        tick: interval(STATUS),
        sent: HashMap::new(),
    });
    let cursor = resume.map_or_else(|| http.hub.next(), |id| id.saturating_add(1));
    let stream = EventStream { http, caller, filters, cursor, head, heartbeat, status, begun: false, _sys: sys, place };
    let events = futures_util::stream::unfold(stream, async |mut stream| {
        let events = stream.next().await?;
        Some((Ok::<_, std::convert::Infallible>(events), stream))
    });
    // a proxy that gathers what it passes on would hold back events: nginx is told by this header, others by the type
    let no_buffering = (HeaderName::from_static("x-accel-buffering"), "no");
    let kind = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store"), no_buffering];
    Ok((kind, Body::from_stream(events)).into_response())
}

impl EventStream {
    /// The next events; `None` ends the stream.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = String::new();
        let mut memory = None;
        if !self.begun {
            self.begun = true;
            out.push_str("retry: 2000\n\n");
            if self.http.hub.check(self.cursor).is_ok() {
                self.beat(&mut out);
            }
        }
        loop {
            if !self.caller.still_holds(&self.http.access) {
                return None;
            }
            self.messages(&mut out, &mut memory);
            if !out.is_empty() {
                return Some(match memory {
                    Some(memory) => answers::kept(out, memory),
                    None => out.into(),
                });
            }
            let cancel = self.http.cancel.clone();
            tokio::select! {
                () = cancel.cancelled() => return None,
                () = self.place.cut() => return None,
                changed = self.head.changed(), if !self.filters.is_empty() => {
                    changed.ok()?;
                    sleep(GATHER + GATHER_MORE * self.http.open_streams()).await;
                }
                _ = self.heartbeat.tick() => self.beat(&mut out),
                () = status_changes(&mut self.status) => self.status(&mut out, &mut memory),
            }
        }
    }

    /// Adds what has come. What is large takes memory of the budget for answers: where there is none, messages come a few at a
    /// time, and one that is large by itself is missed.
    fn messages(&mut self, out: &mut String, memory: &mut Option<Reservation>) {
        if self.filters.is_empty() {
            return;
        }
        let may = |topic: &str| self.caller.permissions.may_receive(topic);
        match self.http.hub.read(self.cursor, &self.filters, may) {
            Ok(reading) => {
                self.cursor = reading.next;
                for (id, message) in &reading.messages {
                    let envelope = Envelope::new(&self.http, message, message.view().retain());
                    let data = serde_json::to_string(&envelope).unwrap_or_default();
                    let len = out.len() + data.len();
                    if len > answers::FREE && memory.is_none() {
                        *memory = answers::ask(&self.http.answers, self.caller.user(), len.max(PORTION));
                    }
                    let most = if memory.is_some() { PORTION } else { answers::FREE };
                    // writing to a string does not fail
                    let _ = match out.is_empty() {
                        false if len > most => {
                            self.cursor = *id;
                            return;
                        }
                        true if len > answers::FREE && memory.is_none() => {
                            write!(out, "id: {id}\nevent: gap\ndata: {{\"missed\":1}}\n\n")
                        }
                        _ => write!(out, "id: {id}\nevent: message\ndata: {data}\n\n"),
                    };
                }
            }
            Err(gap) => {
                let missed = gap.missed.map_or_else(|| "null".into(), |missed| missed.to_string());
                let last = gap.next.saturating_sub(1);
                let _ = write!(out, "id: {last}\nevent: gap\ndata: {{\"missed\":{missed}}}\n\n");
                self.cursor = gap.next;
            }
        }
    }

    fn beat(&mut self, out: &mut String) {
        if self.filters.is_empty() {
            self.cursor = self.http.hub.next();
        }
        // the browser resumes from here even if nothing that it wants has come for long
        let (id, boot, now) = (self.cursor.saturating_sub(1), &self.http.boot, self.http.ingress.clock().boot_ms());
        let data = serde_json::json!({ "boot": boot, "boot_ms": now });
        let _ = write!(out, "id: {id}\nevent: heartbeat\ndata: {data}\n\n");
    }

    /// Adds what has changed. What there is no memory for comes later.
    fn status(&mut self, out: &mut String, memory: &mut Option<Reservation>) {
        let Some(status) = &mut self.status else { return };
        let snapshot = status.sensors.borrow_and_update().clone();
        let sensors: Arc<str> = sensors::list_json(&self.http, &self.caller, &snapshot).into();
        let mut events = vec![("sensors", sensors)];
        if self.caller.permissions.may_observe() {
            events.extend(self.http.overview().events());
        }
        let mut room = memory.as_ref().map_or(answers::FREE, |_| PORTION);
        for (event, data) in events {
            let len = out.len() + data.len();
            if status.sent.get(event) == Some(&data) {
                continue;
            }
            if len > room && out.len() <= answers::FREE {
                // given back first: one that is large may have to be all that its user has
                *memory = None;
                *memory = answers::ask(&self.http.answers, self.caller.user(), len.max(PORTION));
                room = memory.as_ref().map_or(answers::FREE, |_| len.max(PORTION));
            }
            if len <= room {
                let _ = write!(out, "event: {event}\ndata: {data}\n\n");
                status.sent.insert(event, data);
            }
        }
    }
}

/// Waits until the gateway's own figures are to be compared again.
async fn status_changes(status: &mut Option<StatusEvents>) {
    let Some(status) = status else { return std::future::pending().await };
    tokio::select! {
        _ = status.tick.tick() => {}
        changed = status.sensors.changed() => if changed.is_err() {
            // the sensors have ended: the tick is enough
            status.tick.tick().await;
        }
    }
}
