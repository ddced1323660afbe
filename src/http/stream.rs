//! `GET /api/v1/stream`: live messages as server-sent events.
//!
//! A stream is a cursor into the shared [`super::ring::Ring`]. If a slow stream finds that the ring has moved on, it gets an
//! event about the gap and continues. A stream whose client reads nothing is closed by the port. What a stream looks at and
//! sends is charged to its client like a request that reads ([`crate::exchange::meter`]), so one that has cost the others too
//! much waits for its turn. The events are:
//!
//! | event | data |
//! |---|---|
//! | `message` | a message; the event's id can be used to resume |
//! | `gap` | `{"missed": n}`: the number of messages on all topics that were missed; `null` if it is unknown |
//! | `heartbeat` | at the start and every 15 seconds, with the id to resume from: boot clock and boot id of the host |
//! | `sensors`, `upstreams`, `clients`, `problems`, `gateway` | with `status=true`: at the start and after every change |

use std::collections::HashMap;
use std::fmt::Write;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, Uri, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use super::answers;
use super::auth::Caller;
use super::envelope::Envelope;
use super::hub::SysGuard;
use super::problem::HttpProblem;
use super::query::Query;
use super::sensors;
use super::topics::check_levels;
use super::{Http, MAX_STREAMS};
use crate::access::places::Place;
use crate::exchange::meter::timed;
use crate::exchange::receiving::Reservation;
use crate::message::{check_filter, matches};
use crate::workers::worked;

/// The interval of heartbeats in a quiet stream.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long more messages are waited for after the first, so that a burst is written at once.
const GATHER: Duration = Duration::from_millis(20);
/// The time that every open stream adds to this, so that a thousand streams write no more often than fifty and leave time
/// for MQTT.
const GATHER_MORE: Duration = Duration::from_micros(400);
/// The interval at which the gateway's state is compared.
const STATUS: Duration = Duration::from_secs(1);
/// The bytes of events that are written at a time, unless the first one is larger.
const PORTION: usize = 128 << 10;
/// The most filters of one stream.
const MAX_FILTERS: usize = 32;
/// The most bytes of these filters, which stay in memory as long as the stream.
const MAX_FILTER_BYTES: usize = 4 << 10;

/// The stream of one client.
struct EventStream {
    http: Arc<Http>,
    caller: Caller,
    filters: Vec<Box<str>>,
    cursor: u64,
    head: watch::Receiver<u64>,
    heartbeat: Interval,
    status: Option<StatusEvents>,
    begun: bool,
    /// Whether there may be more messages than were last read.
    has_more: bool,
    _sys: Option<SysGuard>,
    place: Place,
}

/// The part of a stream with the gateway's state.
struct StatusEvents {
    sensors: watch::Receiver<Vec<crate::status::SensorSnapshot>>,
    tick: Interval,
    /// Hashes of the state that was last sent, by event. The texts themselves would be in memory once for each stream.
    sent: HashMap<&'static str, u64>,
}

/// Handles `GET /api/v1/stream`.
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
    if filters.iter().map(|filter| filter.len()).sum::<usize>() > MAX_FILTER_BYTES {
        return Err(HttpProblem::bad_request(format!("filters of more than {MAX_FILTER_BYTES} bytes")));
    }
    for filter in &filters {
        check_filter(filter)?;
        check_levels("topic filter", filter)?;
        if !caller.permissions.may_subscribe(filter) {
            return Err(HttpProblem::forbidden("this user may not subscribe to this topic filter"));
        }
    }
    // the header has precedence over the parameter: a browser repeats the URL unchanged, and updates the header
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
    let (begun, has_more) = (false, false);
    let stream =
        EventStream { http, caller, filters, cursor, head, heartbeat, status, begun, has_more, _sys: sys, place };
    let events = futures_util::stream::unfold(stream, async |mut stream| {
        let events = stream.next().await?;
        Some((Ok::<_, std::convert::Infallible>(events), stream))
    });
    // a proxy that buffers would delay events: nginx obeys this header, and others the content type
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
            if self.has_more {
                worked();
                yield_now().await;
            }
            self.has_turn().await?;
            let (has_more, time) = timed(|| self.messages(&mut out, &mut memory));
            self.has_more = has_more;
            self.pay(time);
            if !out.is_empty() {
                return Some(match memory {
                    Some(memory) => answers::kept(out, memory),
                    None => out.into(),
                });
            }
            if has_more {
                continue;
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
                () = status_changes(&mut self.status) => {
                    let ((), time) = timed(|| self.status(&mut out, &mut memory));
                    self.pay(time);
                }
            }
        }
    }

    /// Waits until the client may make the others wait again; `None` ends the stream.
    async fn has_turn(&self) -> Option<()> {
        tokio::select! {
            biased;
            () = self.http.ingress.turn(self.caller.origin()) => Some(()),
            () = self.http.cancel.cancelled() => None,
            () = self.place.cut() => None,
        }
    }

    fn pay(&self, time: Duration) {
        self.http.ingress.meter().charge_beside(self.caller.origin(), time);
    }

    /// Adds new messages. Large amounts take memory from the budget for answers. If there is none, messages are sent a few
    /// at a time, and a message that is too large by itself is missed. Returns whether there may be more already.
    fn messages(&mut self, out: &mut String, memory: &mut Option<Reservation>) -> bool {
        if self.filters.is_empty() {
            return false;
        }
        let mut more = false;
        let may = |topic: &str| self.caller.permissions.may_receive(topic);
        match self.http.hub.read(self.cursor, &self.filters, may) {
            Ok(reading) => {
                self.cursor = reading.next;
                more = reading.more;
                for (id, message) in &reading.messages {
                    let envelope = Envelope::new(&self.http, message, message.view().retain());
                    let data = serde_json::to_string(&envelope).unwrap_or_default();
                    let len = out.len() + data.len();
                    if len > answers::FREE && memory.is_none() {
                        *memory = answers::ask(&self.http.answers, self.caller.holder(), len.max(PORTION));
                    }
                    let most = if memory.is_some() { PORTION } else { answers::FREE };
                    // writing to a string cannot fail
                    let _ = match out.is_empty() {
                        false if len > most => {
                            self.cursor = *id;
                            return true;
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
        more
    }

    fn beat(&mut self, out: &mut String) {
        if self.filters.is_empty() {
            self.cursor = self.http.hub.next();
        }
        // so the browser resumes from here even if no matching message has come for long
        let (id, boot, now) = (self.cursor.saturating_sub(1), &self.http.boot, self.http.ingress.clock().boot_ms());
        let data = serde_json::json!({ "boot": boot, "boot_ms": now });
        let _ = write!(out, "id: {id}\nevent: heartbeat\ndata: {data}\n\n");
    }

    /// Adds the changed parts of the state. A part for which there is no memory is sent later.
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
            let hash = status.sent.hasher().hash_one(&data);
            if status.sent.get(event) == Some(&hash) {
                continue;
            }
            if len > room && out.len() <= answers::FREE {
                // released first, because a large part may need all memory of its user
                *memory = None;
                *memory = answers::ask(&self.http.answers, self.caller.holder(), len.max(PORTION));
                room = memory.as_ref().map_or(answers::FREE, |_| len.max(PORTION));
            }
            if len <= room {
                let _ = write!(out, "event: {event}\ndata: {data}\n\n");
                status.sent.insert(event, hash);
            }
        }
    }
}

/// Waits until the gateway's state must be compared again.
async fn status_changes(status: &mut Option<StatusEvents>) {
    let Some(status) = status else { return std::future::pending().await };
    tokio::select! {
        _ = status.tick.tick() => {}
        changed = status.sensors.changed() => if changed.is_err() {
            // the sensors have ended, so only the interval counts
            status.tick.tick().await;
        }
    }
}
