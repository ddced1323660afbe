//! The state of the gateway as JSON: upstreams, clients, problems and the gateway itself.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::Instant;

use super::Http;
use super::auth::Caller;
use super::envelope::rfc3339;
use super::problem::HttpProblem;
use super::query::Query;
use crate::health::{FaultyPart, TARGET};
use crate::status::{Announced, ClientSnapshot, JournalStatus, UpstreamShown, UpstreamSnapshot as Snapshot};

/// The least time between two overviews, for all callers together.
const FRESH: Duration = Duration::from_millis(500);
/// The most clients that are listed.
const MAX_CLIENTS: usize = 1000;

/// The parts of an overview, each as JSON.
#[derive(Clone, Debug)]
pub(crate) struct Overview {
    upstreams: Arc<str>,
    clients: Arc<str>,
    problems: Arc<str>,
    gateway: Arc<str>,
}

impl Overview {
    /// The parts by the names of their stream events.
    pub(crate) fn events(&self) -> [(&'static str, Arc<str>); 4] {
        [
            ("upstreams", self.upstreams.clone()),
            ("clients", self.clients.clone()),
            ("problems", self.problems.clone()),
            ("gateway", self.gateway.clone()),
        ]
    }
}

#[derive(Debug)]
pub(crate) struct Overviews {
    last: Mutex<Option<(Instant, Overview)>>,
    started_boot_ms: u64,
}

impl Overviews {
    /// For a gateway that was started at this time.
    pub(crate) fn new(started_boot_ms: u64) -> Overviews {
        Overviews { last: Mutex::new(None), started_boot_ms }
    }
}

/// An upstream with its backlog and ledger.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Upstream")]
pub(crate) struct UpstreamView<'a> {
    #[serde(flatten)]
    snapshot: &'a Snapshot,
    since: Option<String>,
    /// When the oldest waiting message arrived.
    oldest: Option<String>,
    oldest_age_seconds: Option<u64>,
}

/// A connected MQTT client.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MqttClient")]
pub(crate) struct ClientView {
    client_id: String,
    user: Option<String>,
    address: String,
    version: &'static str,
    since: Option<String>,
    since_boot_ms: u64,
    keep_alive_seconds: u16,
    persistent: bool,
    /// The number of messages that wait for a persistent session.
    waiting: Option<usize>,
    /// The number of messages that were dropped because the client has been too slow since it connected, plus those that the
    /// limits of its persistent session have dropped.
    dropped: u64,
}

/// A problem that a person should know of.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Trouble")]
pub(crate) struct ProblemView {
    /// Whether the problem exists at present. Such entries come first, and vanish when the problem is solved. The others are
    /// lines of the log.
    now: bool,
    /// The number of the log line.
    number: Option<u64>,
    /// When the line was logged, or when the problem began.
    time: Option<String>,
    /// `"warn"` if the gateway recovered and nothing was lost; `"error"` if data was lost or a person is needed.
    level: &'static str,
    /// The part of the program that has logged it.
    target: String,
    /// The problem in words.
    text: String,
    /// For a present problem, the name of the faulty part.
    part: Option<String>,
    /// For a present problem, what a person should do.
    remedy: Option<String>,
    /// For a present problem, when it began, in milliseconds of the boot clock.
    since_boot_ms: Option<u64>,
}

/// The state of the gateway itself.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Gateway")]
pub(crate) struct GatewayView<'a> {
    id: &'a str,
    version: &'static str,
    started: Option<String>,
    started_boot_ms: u64,
    clock_synchronised: bool,
    clients_connected: u64,
    sessions_away: usize,
    max_packet_size: usize,
    journal: JournalStatus,
    /// What a power cut would lose although it was promised to survive one.
    lost_at_power_cut: Option<&'a str>,
    /// What is announced in the local network by mDNS.
    mdns: Announced,
    /// The parts that do not work at present.
    faulty: Vec<FaultyView>,
}

/// A part that does not work at present.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "FaultyPart")]
pub(crate) struct FaultyView {
    since: Option<String>,
    #[serde(flatten)]
    faulty: FaultyPart,
}

fn json(value: &impl Serialize) -> String {
    // strings, numbers and lists can always be serialised
    serde_json::to_string(value).unwrap_or_default()
}

impl Http {
    /// The state of the gateway, at most half a second old.
    pub(crate) fn overview(&self) -> Overview {
        let mut last = self.overviews.last.lock();
        match &*last {
            Some((at, overview)) if at.elapsed() < FRESH => overview.clone(),
            _ => {
                let overview = Overview {
                    upstreams: self.upstreams_json().into(),
                    clients: self.clients_json().into(),
                    problems: self.problems_json(false).into(),
                    gateway: self.gateway_json().into(),
                };
                *last = Some((Instant::now(), overview.clone()));
                overview
            }
        }
    }

    /// When the gateway was started, in milliseconds of the boot clock.
    pub(crate) fn started_boot_ms(&self) -> u64 {
        self.overviews.started_boot_ms
    }

    fn upstreams_json(&self) -> String {
        let snapshots: Vec<Snapshot> = self.status.upstreams.iter().map(UpstreamShown::now).collect();
        let views: Vec<UpstreamView<'_>> = snapshots
            .iter()
            .map(|snapshot| UpstreamView {
                snapshot,
                since: self.time(snapshot.since_boot_ms),
                oldest: snapshot.oldest_boot_ms.and_then(|oldest| self.time(oldest)),
                oldest_age_seconds: snapshot.oldest_boot_ms.map(|oldest| self.age_seconds(oldest)),
            })
            .collect();
        json(&views)
    }

    fn clients_json(&self) -> String {
        let clients = self.status.clients.list(MAX_CLIENTS);
        let view = |client: &ClientSnapshot| ClientView {
            client_id: client.client_id.to_string(),
            user: client.user.as_ref().map(ToString::to_string),
            address: client.address.to_string(),
            version: client.version.as_str(),
            since: self.time(client.since_boot_ms),
            since_boot_ms: client.since_boot_ms,
            keep_alive_seconds: client.keep_alive,
            persistent: client.is_persistent,
            waiting: client.waiting,
            dropped: client.dropped,
        };
        json(&clients.iter().map(view).collect::<Vec<_>>())
    }

    fn problems_json(&self, only_now: bool) -> String {
        let faulty = self.status.health.faulty();
        let is_now = |line: &crate::health::LoggedProblem| {
            line.target == TARGET && faulty.iter().any(|faulty| line.text.starts_with(&format!("{}: ", faulty.part)))
        };
        // a present problem is listed once
        let logged_before: Vec<_> =
            self.status.problems.last().into_iter().rev().filter(|line| !only_now && !is_now(line)).collect();
        let now = faulty.into_iter().map(|faulty| ProblemView {
            now: true,
            number: None,
            time: self.time(faulty.since_boot_ms),
            level: "error",
            target: TARGET.into(),
            text: format!("{}: {}", faulty.part, faulty.fault),
            part: Some(faulty.part),
            remedy: Some(faulty.fault.remedy),
            since_boot_ms: Some(faulty.since_boot_ms),
        });
        let logged = |problem: crate::health::LoggedProblem| ProblemView {
            now: false,
            number: Some(problem.number),
            time: rfc3339(problem.unix_ms),
            level: problem.level,
            target: problem.target,
            text: problem.text,
            part: None,
            remedy: None,
            since_boot_ms: None,
        };
        json(&now.chain(logged_before.into_iter().map(logged)).collect::<Vec<_>>())
    }

    fn gateway_json(&self) -> String {
        let started_boot_ms = self.started_boot_ms();
        let view = |faulty: FaultyPart| FaultyView { since: self.time(faulty.since_boot_ms), faulty };
        json(&GatewayView {
            id: &self.status.gateway_id,
            version: env!("CARGO_PKG_VERSION"),
            started: self.time(started_boot_ms),
            started_boot_ms,
            clock_synchronised: self.ingress.clock().is_synchronised(),
            clients_connected: self.ingress.stats().connected.get(),
            sessions_away: self.status.clients.counts().away,
            max_packet_size: self.ingress.max_packet_size(),
            journal: self.ingress.journal().status(),
            lost_at_power_cut: self.status.lost_at_power_cut.as_ref().map(|power_cut| &*power_cut.cost),
            mdns: self.status.announced.borrow().clone(),
            faulty: self.status.health.faulty().into_iter().map(view).collect(),
        })
    }
}

fn answer(json: &str) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json.to_owned()).into_response()
}

/// Handles `GET /api/v1/upstreams`.
pub(crate) async fn upstreams(State(http): State<Arc<Http>>, caller: Caller) -> Result<Response, HttpProblem> {
    caller.must_observe()?;
    Ok(answer(&http.upstreams_json()))
}

/// Handles `GET /api/v1/clients`.
pub(crate) async fn clients(State(http): State<Arc<Http>>, caller: Caller) -> Result<Response, HttpProblem> {
    caller.must_observe()?;
    Ok(answer(&http.clients_json()))
}

/// Handles `GET /api/v1/problems`.
pub(crate) async fn problems(State(http): State<Arc<Http>>, caller: Caller, uri: Uri) -> Result<Response, HttpProblem> {
    let only_now = Query::parse(&uri, &["now"])?.flag("now")?;
    caller.must_observe()?;
    Ok(answer(&http.problems_json(only_now)))
}

/// Handles `GET /api/v1/gateway`.
pub(crate) async fn gateway(State(http): State<Arc<Http>>, caller: Caller) -> Result<Response, HttpProblem> {
    caller.must_observe()?;
    Ok(answer(&http.gateway_json()))
}

/// Handles `GET /livez`: an answer shows that the process is running.
pub(crate) async fn live() -> &'static str {
    "ok\n"
}

/// Handles `GET /readyz` and `/healthz`: whether messages are accepted and delivered. Faulty parts do not count as long as
/// one port for MQTT is open, because the gateway does its main work without them. A caller that may see the state is told
/// which parts are faulty.
pub(crate) async fn ready(
    State(http): State<Arc<Http>>,
    caller: Result<Caller, HttpProblem>,
) -> Result<String, HttpProblem> {
    if http.cancel.is_cancelled() {
        return Err(HttpProblem::new(StatusCode::SERVICE_UNAVAILABLE, "the gateway is shutting down"));
    }
    let faulty = http.status.health.faulty();
    let may_know = caller.is_ok_and(|caller| caller.must_observe().is_ok());
    let shown = |faulty: &FaultyPart| match may_know {
        true => format!("{}: {}\n", faulty.part, faulty.fault),
        false => String::new(),
    };
    let lines: String = faulty.iter().map(shown).collect();
    if !http.status.has_listener() {
        return Err(HttpProblem::unavailable(format!("no port for MQTT is open\n{lines}")));
    }
    Ok(match faulty.len() {
        0 => "ok\n".into(),
        1 => format!("ok; 1 part is faulty\n{lines}"),
        count => format!("ok; {count} parts are faulty\n{lines}"),
    })
}
